//! Models split over `name-00001-of-00003.gguf`, … : any part leads to all of them.

use std::path::{Path, PathBuf};

use super::Metadata;
use crate::Error;
use crate::file::ModelFile;

/// More parts than any published model has.
const PARTS_MAX: usize = 1000;

/// The paths of all parts in order, `None` if the model is not split.
pub(super) fn siblings(path: &Path, metadata: &Metadata) -> Result<Option<Vec<PathBuf>>, Error> {
    let parts = metadata.usize_opt("split.count")?.unwrap_or(1);
    if parts <= 1 {
        return Ok(None);
    }
    if PARTS_MAX < parts {
        return Err(metadata.wrong("split.count", format!("is {parts}, expected at most {PARTS_MAX}")));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let part = metadata.usize_opt("split.no")?.unwrap_or(0);
    let ending = part_ending(part, parts);
    let Some(stem) = name.strip_suffix(&ending) else {
        let reason = format!("it is part {} of {parts}, so its name must end with {ending}", part + 1);
        return Err(Error::NotAModel { path: path.display().to_string(), reason });
    };
    Ok(Some((0..parts).map(|part| path.with_file_name(format!("{stem}{}", part_ending(part, parts)))).collect()))
}

fn part_ending(part: usize, parts: usize) -> String {
    format!("-{:05}-of-{parts:05}.gguf", part + 1)
}

/// Maps a part that must be there.
pub(super) fn map_part(path: &Path, part: usize, parts: usize) -> Result<ModelFile, Error> {
    if !path.exists() {
        let reason = format!("this part {} of {parts} is missing; download all parts into one folder", part + 1);
        return Err(Error::NotAModel { path: path.display().to_string(), reason });
    }
    ModelFile::map(path)
}

/// A part must say itself that it is the one its name says.
pub(super) fn check_part(metadata: &Metadata, part: usize, parts: usize) -> Result<(), Error> {
    for (key, expected) in [("split.no", part), ("split.count", parts)] {
        let found = metadata.usize(key)?;
        if found != expected {
            let problem = format!("is {found}, but the file's name says {expected}; are parts of two models mixed?");
            return Err(metadata.wrong(key, problem));
        }
    }
    Ok(())
}

/// Together the parts must have the tensors that the first one promises.
pub(super) fn check_total(metadata: &Metadata, found: usize) -> Result<(), Error> {
    match metadata.usize_opt("split.tensors.count")? {
        Some(promised) if promised != found => {
            let problem = format!("is {promised}, but the parts have {found} tensors; download them again");
            Err(metadata.wrong("split.tensors.count", problem))
        }
        _ => Ok(()),
    }
}
