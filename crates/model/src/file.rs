//! The bytes of one file: mapped from disk, part of this binary, or held in memory.

use std::fs::File;
use std::path::Path;

use crate::Error;

/// A read-only file. Its name is for messages.
pub(crate) struct ModelFile {
    name: String,
    bytes: FileBytes,
}

enum FileBytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
    /// An empty file cannot be mapped on every system.
    Empty,
}

impl ModelFile {
    /// Maps a file. Nothing is read until it is touched.
    pub(crate) fn map(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |source| Error::Io { file: name.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::NotAModel { path: name, reason: "it is not a regular file".into() });
        }
        if metadata.len() == 0 {
            return Ok(Self { name, bytes: FileBytes::Empty });
        }
        // SAFETY: the mapping is read-only and private to this value. Model files are not written to while they are
        // being loaded: that is this program's requirement on its user, as it is of every loader that maps files; the
        // mapping is dropped when the weights have been prepared.
        let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { name, bytes: FileBytes::Mapped(mapped) })
    }

    pub(crate) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { name: name.to_owned(), bytes: FileBytes::Static(bytes) }
    }

    pub(crate) fn owned(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), bytes: FileBytes::Owned(bytes) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            FileBytes::Mapped(mapped) => mapped,
            FileBytes::Static(bytes) => bytes,
            FileBytes::Owned(bytes) => bytes,
            FileBytes::Empty => &[],
        }
    }
}
