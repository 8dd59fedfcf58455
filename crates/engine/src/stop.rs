//! Stop strings across token borders: text that may be the start of a stop string is held back until it is known.

/// Finds the first stop string in a growing text.
#[derive(Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that was not handed out: empty, or the start of a stop string. Grows by `push`, emptied by `finish`.
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCheck {
    /// This text (maybe none) can be handed out.
    Continue(String),
    /// A stop string was found; this text came before it.
    Stopped(String),
}

impl StopStrings {
    /// Looks for `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        StopStrings { stops, held: String::new() }
    }

    /// More text that may not end the completion: a stop string that is complete in it is text like any other.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.hand_out()
    }

    /// More text.
    pub fn push(&mut self, text: &str) -> StopCheck {
        self.held.push_str(text);
        // The one that is complete first wins, wherever the borders of the pieces are.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            return StopCheck::Stopped(std::mem::take(&mut self.held));
        }
        StopCheck::Continue(self.hand_out())
    }

    /// Everything but the longest start of a stop string.
    fn hand_out(&mut self) -> String {
        let kept = self.stops.iter().map(|stop| longest_start(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: what was held back is no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` with which `stop` begins.
fn longest_start(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).filter(|&at| at <= text.len());
    starts.filter(|&at| text.as_bytes().ends_with(&stop.as_bytes()[..at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces in, one line per piece out: the text handed out, `|` where text is held back, `!` at a stop.
    fn check(stops: &[&str], pieces: &[&str], expected: &[&str]) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut strings = StopStrings::new(&stops);
        let mut seen = Vec::new();
        for piece in pieces {
            match strings.push(piece) {
                StopCheck::Continue(text) if strings.held.is_empty() => seen.push(text),
                StopCheck::Continue(text) => seen.push(text + "|"),
                StopCheck::Stopped(text) => {
                    seen.push(text + "!");
                    break;
                }
            }
        }
        assert_eq!(seen, expected, "{stops:?} in {pieces:?}");
    }

    #[test]
    fn text_flows_without_stop_strings() {
        check(&[], &["a", "b\n"], &["a", "b\n"]);
        check(&[""], &["a", ""], &["a", ""]);
    }

    #[test]
    fn a_stop_string_is_found_inside_and_across_pieces() {
        check(&["END"], &["the END is"], &["the !"]);
        check(&["END"], &["the E", "ND is"], &["the |", "!"]);
        check(&["END"], &["the", " E", "N", "D"], &["the", " |", "|", "!"]);
        check(&["\n\n"], &["a\n", "\nb"], &["a|", "!"]);
    }

    #[test]
    fn held_text_is_handed_out_when_it_turns_out_harmless() {
        check(&["END"], &["E", "N", "x"], &["|", "|", "ENx"]);
        check(&["aab"], &["aa", "a", "b"], &["|", "a|", "!"]);
        check(&["abab c"], &["abab", "ab", "ab c"], &["|", "ab|", "ab!"]);
    }

    #[test]
    fn the_first_of_several_wins() {
        check(&["zz", "b"], &["abzz"], &["a!"]);
        check(&["abc", "b"], &["a", "bc"], &["|", "a!"]);
        check(&["abc", "b"], &["a", "b"], &["|", "a!"]);
        check(&["bc", "abc"], &["abc"], &["!"]);
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        check(&["→→"], &["a→", "b", "→", "→c"], &["a|", "→b", "|", "!"]);
        check(&["é"], &["aè"], &["aè"]);
    }

    #[test]
    fn passed_text_stops_nothing_but_may_begin_a_stop_string() {
        let mut strings = StopStrings::new(&["END".to_string()]);
        assert_eq!(strings.pass("the END, the E"), "the END, the ");
        assert_eq!(strings.pass("N"), "");
        assert_eq!(strings.push("D."), StopCheck::Stopped(String::new()));
    }

    #[test]
    fn the_end_hands_out_what_was_held() {
        let mut strings = StopStrings::new(&["END".to_string()]);
        assert_eq!(strings.push("the EN"), StopCheck::Continue("the ".to_string()));
        assert_eq!(strings.finish(), "EN");
    }
}
