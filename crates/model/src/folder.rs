//! A folder of files in Hugging Face's layout: on disk, or embedded in this binary.

use std::path::{Path, PathBuf};

use crate::file::ModelFile;
use crate::{Error, bundled};

/// Where the files `config.json`, `model.safetensors`, … lie.
pub(crate) enum Folder {
    Disk(PathBuf),
    Bundled,
}

impl Folder {
    /// The last part of the path, which is what people call the model.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Bundled => bundled::NAME.to_owned(),
            Self::Disk(path) => path
                .canonicalize()
                .ok()
                .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
                .unwrap_or_else(|| path.display().to_string()),
        }
    }

    /// The path, for messages.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Bundled => format!("the bundled model {}", bundled::NAME),
            Self::Disk(path) => path.display().to_string(),
        }
    }

    /// A file of this folder, `None` if there is none of that name.
    pub(crate) fn find(&self, file: &str) -> Result<Option<ModelFile>, Error> {
        match self {
            Self::Bundled => Ok(bundled::file(file).map(|bytes| ModelFile::embedded(file, bytes))),
            Self::Disk(path) => {
                let path = path.join(Path::new(file));
                if path.exists() { ModelFile::map(&path).map(Some) } else { Ok(None) }
            }
        }
    }

    /// A file that must be there.
    pub(crate) fn need(&self, file: &str) -> Result<ModelFile, Error> {
        self.find(file)?
            .ok_or_else(|| Error::NotAModel { path: self.label(), reason: format!("it has no file {file}") })
    }
}
