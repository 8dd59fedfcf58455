//! The one error type of this crate: it names the file, the thing in it, and what would have been right.

/// Why a model could not be opened, read or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend refused the weights or has no memory for them.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// The operating system refused to open or read a file.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The path as the caller gave it.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The path names something that no reader of this crate understands.
    #[error("{path} is not a model that can be loaded: {reason}")]
    NotAModel {
        /// The path as the caller gave it.
        path: String,
        /// What is wrong with it and what is expected.
        reason: String,
    },
    /// The bytes contradict the file's own format: truncated, overwritten, or never of that format.
    #[error("{file} is damaged: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Which part of it is wrong, with both sizes or values where there are two.
        reason: String,
    },
    /// A field is missing or has a value of the wrong kind or size.
    #[error("{file}: {field} {problem}")]
    Field {
        /// The file.
        file: String,
        /// The field's name in that file.
        field: String,
        /// A phrase that follows the name: "is missing", "is -1, expected a positive whole number".
        problem: String,
    },
    /// The model is well formed but asks for something that this decoder does not do.
    #[error("{file}: {field} is {value}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The field's name in that file.
        field: String,
        /// The value found.
        value: String,
        /// What would have been accepted.
        supported: String,
    },
    /// The configuration needs a tensor that the file does not have.
    #[error("{file} has no tensor {name}, which its configuration needs")]
    MissingTensor {
        /// The file (or folder) that was searched.
        file: String,
        /// The tensor's name in that file.
        name: String,
    },
    /// The file has a tensor that this decoder would silently ignore.
    #[error("{file} has a tensor {name}, which a {architecture} decoder does not use; is this another kind of model?")]
    UnexpectedTensor {
        /// The file (or folder) that was searched.
        file: String,
        /// The tensor's name in that file.
        name: String,
        /// The decoder that the configuration asks for.
        architecture: &'static str,
    },
    /// A tensor's shape contradicts the configuration. Both shapes are outermost dimension first.
    #[error("{file}: tensor {name} has shape {found:?}, but its configuration makes it {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor's name in that file.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
    },
    /// The tokenizer cannot be built, or cannot encode or decode what it was given.
    #[error("the tokenizer of {file} failed: {reason}")]
    Tokenizer {
        /// The file that the tokenizer came from.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// A chat was asked of a model that has no chat template.
    #[error("this model has no chat template; use a plain prompt")]
    NoChatTemplate,
    /// The chat template does not parse, or failed while it was rendered.
    #[error("the chat template of {file} failed: {reason}")]
    Template {
        /// The file that the template came from.
        file: String,
        /// The template engine's message, with the line.
        reason: String,
    },
    /// The chat template itself refused the messages (`raise_exception`).
    #[error("the chat template does not accept these messages: {reason}")]
    TemplateRefused {
        /// The template's own words.
        reason: String,
    },
}

impl Error {
    pub(crate) fn corrupt(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), reason: reason.into() }
    }

    pub(crate) fn field(file: impl Into<String>, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { file: file.into(), field: field.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(
        file: impl Into<String>,
        field: impl Into<String>,
        value: impl std::fmt::Display,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            file: file.into(),
            field: field.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }
}
