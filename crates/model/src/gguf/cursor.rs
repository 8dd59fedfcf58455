//! Reads little-endian values from a slice, and never past its end.

use crate::Error;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
}

/// Longer names than this are damage: GGUF's own limit is 65,535 for keys and 64 for tensors.
const NAME_BYTES_MAX: usize = 65_535;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], file: &'a str) -> Self {
        Self { bytes, at: 0, file }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(self.file, reason)
    }

    /// The next `count` bytes; `what` says in a message what they would have been.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Error> {
        let left = &self.bytes[self.at..];
        match left.split_at_checked(count) {
            Some((taken, _)) => {
                self.at += count;
                Ok(taken)
            }
            None => Err(self.corrupt(format!(
                "{what} needs {count} bytes at byte {}, but the file ends after {}; download it again",
                self.at,
                left.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, Error> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, Error> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `bytes_min` bytes each that follow, so it is bounded by what is left.
    pub(super) fn count(&mut self, what: &str, bytes_min: usize) -> Result<usize, Error> {
        let count = self.u64(what)?;
        let most = (self.bytes.len() - self.at) / bytes_min;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => {
                Err(self.corrupt(format!("{what} is {count}, but at most {most} fit into the file; download it again")))
            }
        }
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, Error> {
        let length = self.count(what, 1)?;
        let at = self.at;
        std::str::from_utf8(self.take(length, what)?)
            .map_err(|_| self.corrupt(format!("{what} at byte {at} is not UTF-8")))
    }

    /// A text that names something.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, Error> {
        match self.text(what)? {
            name if name.len() <= NAME_BYTES_MAX => Ok(name),
            name => Err(self.corrupt(format!("{what} has {} bytes", name.len()))),
        }
    }
}
