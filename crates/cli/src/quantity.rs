//! Sizes and shares as people type them: `512MiB`, `4GiB`, `32K`, `0.8%`.

use load::Lengths;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// A share of the indexed pages, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

/// A number of tokens; `K` means 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenCount(pub(crate) usize);

/// A time: `500ms`, `2s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

/// How long prompts or answers are: `512`, or `256..4K` for every length between them alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LengthRange(pub(crate) Lengths);

const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size; write for example 512MiB or 4GiB");
        let trimmed = text.trim();
        if trimmed == "0" {
            // Nothing is nothing in every unit.
            return Ok(Bytes(0));
        }
        let unit = UNITS.iter().find(|(name, _)| trimmed.to_lowercase().ends_with(&name.to_lowercase()));
        let (name, factor) = unit.ok_or_else(wrong)?;
        let number: f64 = trimmed[..trimmed.len() - name.len()].trim().parse().map_err(|_| wrong())?;
        let bytes = number * *factor as f64;
        match bytes.is_finite() && 0.0 <= bytes && bytes < 2f64.powi(63) {
            true => Ok(Bytes(bytes as u64)),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4].iter().find(|(_, factor)| *factor <= self.0);
        match unit {
            Some((name, factor)) => write!(f, "{:.1} {name}", self.0 as f64 / *factor as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a share between 0 and 100%; write for example 0.8% or 0.008");
        let (number, factor) = match text.trim().strip_suffix('%') {
            Some(percent) => (percent, 0.01),
            None => (text, 1.0),
        };
        let share = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
        if (0.0..=1.0).contains(&share) { Ok(Share(share)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = format!("{:.3}", 100.0 * self.0);
        write!(f, "{}%", percent.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromStr for TokenCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a number of tokens; write for example 32768 or 32K");
        let trimmed = text.trim();
        let (number, factor) = match trimmed.strip_suffix(['k', 'K']) {
            Some(thousands) => (thousands, 1024),
            None => (trimmed, 1),
        };
        let number: usize = number.replace('_', "").parse().map_err(|_| wrong())?;
        number.checked_mul(factor).filter(|n| *n < 1 << 31).map(TokenCount).ok_or_else(wrong)
    }
}

impl fmt::Display for TokenCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_multiple_of(1024) && 0 < self.0 {
            true => write!(f, "{}K", self.0 / 1024),
            false => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a time; write for example 500ms, 2s, 5m or 1h");
        let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (name, factor) = units.iter().find(|(name, _)| text.trim().ends_with(name)).ok_or_else(wrong)?;
        let number: f64 = text.trim().trim_end_matches(name).trim().parse().map_err(|_| wrong())?;
        let seconds = number * factor;
        // A year is as good as for ever, and fits everywhere.
        let is_sane = 0.0 < seconds && seconds <= 365.0 * 86_400.0;
        if is_sane { Ok(Time(Duration::from_secs_f64(seconds))) } else { Err(wrong()) }
    }
}

impl FromStr for LengthRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tokens = |text: &str| text.parse().map(|TokenCount(tokens)| tokens);
        let lengths = match text.split_once("..") {
            Some((least, most)) => Lengths::Uniform { least: tokens(least)?, most: tokens(most)? },
            None => Lengths::Fixed(tokens(text)?),
        };
        lengths.check().map_err(|error| format!("'{text}': {error}"))?;
        Ok(LengthRange(lengths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back() {
        let check = |text: &str, bytes| assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        check("512MiB", 512 << 20);
        check("4 GiB", 4 << 30);
        check("1.5gib", 3 << 29);
        check("20MB", 20_000_000);
        check("0", 0);
        for wrong in ["", "12", "MiB", "-1GiB", "1e300GiB", "4 QiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(17).to_string(), "17 B");
    }

    #[test]
    fn shares_and_token_counts_read_back() {
        assert_eq!("0.8%".parse(), Ok(Share(0.008)));
        assert_eq!("1".parse(), Ok(Share(1.0)));
        assert_eq!(Share(0.0156).to_string(), "1.56%");
        for wrong in ["", "-1%", "101%", "1.2", "nan", "abc"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
        assert_eq!("32K".parse(), Ok(TokenCount(32768)));
        assert_eq!("1_000".parse(), Ok(TokenCount(1000)));
        assert!("4.5K".parse::<TokenCount>().is_err());
        assert_eq!(TokenCount(4096).to_string(), "4K");
    }

    #[test]
    fn times_and_length_ranges_read_back() {
        let check = |text: &str, ms| assert_eq!(text.parse(), Ok(Time(Duration::from_millis(ms))), "{text}");
        check("500ms", 500);
        check("1.5 s", 1500);
        check("2m", 120_000);
        check("1h", 3_600_000);
        for wrong in ["", "5", "s", "-1s", "0s", "nan s", "1e9h", "5d"] {
            assert!(wrong.parse::<Time>().is_err(), "{wrong}");
        }
        assert_eq!("1K".parse(), Ok(LengthRange(Lengths::Fixed(1024))));
        assert_eq!("16..1K".parse(), Ok(LengthRange(Lengths::Uniform { least: 16, most: 1024 })));
        for wrong in ["0", "9..3", "a..3", "3..", "..", ""] {
            assert!(wrong.parse::<LengthRange>().is_err(), "{wrong}");
        }
    }
}
