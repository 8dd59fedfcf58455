//! Which model, and opening it: everything that can be known before a weight is read.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::file::ModelFile;
use crate::folder::Folder;
use crate::gguf::Gguf;
use crate::json::Fields;
use crate::tokenizer::special_token;
use crate::{ChatTemplate, Checkpoint, Error, Generation, ModelConfig, Tokenizer};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The one inside this binary, see [`crate::bundled`].
    Bundled,
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file; of a split model, any of its parts.
    Gguf(PathBuf),
}

/// Which weights a model is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// Those in its files.
    Files,
    /// Noise in the shapes of its configuration, which is all that it needs to have.
    Random {
        /// Of the noise.
        seed: u64,
    },
}

impl ModelSource {
    /// Decides by what lies at `path`; a `config.json` stands for its folder.
    ///
    /// # Errors
    /// [`Error::NotAModel`] with what is expected, or [`Error::Io`] if nothing can be read there.
    pub fn detect(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let refused = |reason: &str| Err(Error::NotAModel { path: name.clone(), reason: reason.into() });
        let metadata = std::fs::metadata(path).map_err(|source| Error::Io { file: name.clone(), source })?;
        if metadata.is_dir() {
            return match path.join("config.json").is_file() {
                true => Ok(Self::Folder(path.to_owned())),
                false => refused("the folder has no config.json; give a Hugging Face model folder or a GGUF file"),
            };
        }
        if path.file_name().is_some_and(|name| name == "config.json") {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            return Ok(Self::Folder(folder.unwrap_or(Path::new(".")).to_owned()));
        }
        let mut magic = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut magic));
        let read = read.map_err(|source| Error::Io { file: name.clone(), source })?;
        match (&magic[..read], path.extension().and_then(|extension| extension.to_str())) {
            (b"GGUF", _) => Ok(Self::Gguf(path.to_owned())),
            (_, Some("gguf")) => refused("it does not begin with GGUF's four letters; download it again"),
            (b"ggml" | b"ggjt" | b"ggla" | b"lmgg" | b"tjgg" | b"algg", _) => {
                refused("it is in a format older than GGUF; convert it with llama.cpp's tools")
            }
            (_, Some("safetensors" | "json")) => refused("give the folder that holds it, not the file"),
            (_, Some("bin" | "pt" | "pth" | "ckpt" | "pkl")) => refused(
                "it holds Python pickles, which can run code and are not read; \
                 give a folder with model.safetensors, or a GGUF file",
            ),
            _ => refused("it is neither a Hugging Face model folder nor a GGUF file"),
        }
    }
}

/// A model whose headers were read and checked. The weights are still in their files.
pub struct Opened {
    /// The weights by name.
    pub checkpoint: Checkpoint,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How to write a chat, if the model knows any.
    pub chat: Option<ChatTemplate>,
    /// Defaults of sampling, and the end tokens.
    pub generation: Generation,
}

impl Opened {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] if the model has none.
    pub fn chat(&self) -> Result<&ChatTemplate, Error> {
        self.chat.as_ref().ok_or(Error::NoChatTemplate)
    }
}

/// Opens a model and checks all that can be checked without reading its weights.
///
/// # Errors
/// Any variant of [`Error`]; each names the file and what is wrong with it.
pub fn open(source: &ModelSource) -> Result<Opened, Error> {
    open_with(source, WeightSource::Files)
}

/// As [`open`], with weights of another source. Random weights do without a tokenizer: a stand-in takes its place.
///
/// # Errors
/// As [`open`].
pub fn open_with(source: &ModelSource, weights: WeightSource) -> Result<Opened, Error> {
    match source {
        ModelSource::Bundled => open_folder(&Folder::Bundled, weights),
        ModelSource::Folder(path) => open_folder(&Folder::Disk(path.clone()), weights),
        ModelSource::Gguf(path) => open_gguf(Gguf::open(path)?, weights),
    }
}

fn open_folder(folder: &Folder, weights: WeightSource) -> Result<Opened, Error> {
    let file = folder.need("config.json")?;
    let config = ModelConfig::from_hugging_face(file.bytes(), file.name(), &folder.name())?;
    let generation = match folder.find("generation_config.json")? {
        Some(file) => Generation::from_hugging_face(file.bytes(), file.name(), &config)?,
        None => Generation::from_end_tokens(config.eos.clone()),
    };
    let tokenizer = match (weights, folder.find("tokenizer.json")?) {
        (WeightSource::Random { .. }, None) => Tokenizer::stand_in(config.vocab_size)?,
        _ => Tokenizer::from_folder(folder)?,
    };
    let tokenizer = tokenizer.with_ids(config.bos, config.eos.first().copied());
    check_vocabulary(&tokenizer, &config, &folder.label())?;
    let chat = folder_chat(folder, &tokenizer)?;
    let checkpoint = match weights {
        WeightSource::Files => Checkpoint::from_folder(folder, config)?,
        WeightSource::Random { seed } => Checkpoint::random(config, seed),
    };
    Ok(Opened { checkpoint, tokenizer, chat, generation })
}

/// Opens a GGUF file that lies in memory; `name` is what messages call it. Split models are opened by their path.
///
/// # Errors
/// As [`open`].
pub fn open_gguf_bytes(name: &str, bytes: Vec<u8>) -> Result<Opened, Error> {
    open_gguf(Gguf::from_file(ModelFile::owned(name, bytes))?, WeightSource::Files)
}

fn open_gguf(gguf: Gguf, weights: WeightSource) -> Result<Opened, Error> {
    let config = ModelConfig::from_gguf(&gguf)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    check_vocabulary(&tokenizer, &config, gguf.file())?;
    let generation = Generation::from_end_tokens(tokenizer.gguf_end_tokens(&gguf)?);
    let chat = match gguf.metadata().str_opt("tokenizer.chat_template")? {
        Some(source) => Some(template(source, gguf.file(), &tokenizer)?),
        None => None,
    };
    let checkpoint = match weights {
        WeightSource::Files => Checkpoint::from_gguf(gguf, config)?,
        WeightSource::Random { seed } => Checkpoint::random(config, seed),
    };
    Ok(Opened { checkpoint, tokenizer, chat, generation })
}

/// Every id that the tokenizer can give must have a row in the embedding.
fn check_vocabulary(tokenizer: &Tokenizer, config: &ModelConfig, file: &str) -> Result<(), Error> {
    match tokenizer.id_max() {
        Some(id) if config.vocab_size <= id as usize => {
            let reason =
                format!("it has a token with id {id}, but the model's vocabulary ends at {}", config.vocab_size);
            Err(Error::Tokenizer { file: file.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// `chat_template.jinja`, else the `chat_template` of `tokenizer_config.json`: one text, or a list of named ones.
fn folder_chat(folder: &Folder, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Error> {
    if let Some(file) = folder.find("chat_template.jinja")? {
        let source = std::str::from_utf8(file.bytes()).map_err(|_| Error::corrupt(file.name(), "it is not UTF-8"))?;
        return template(source, file.name(), tokenizer).map(Some);
    }
    let Some(file) = folder.find("tokenizer_config.json")? else {
        return Ok(None);
    };
    let fields = Fields::parse(file.bytes(), file.name())?;
    let source = match fields.get("chat_template") {
        None => return Ok(None),
        Some(Value::String(source)) => source.clone(),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            match default.or(named.first()).and_then(|entry| entry.get("template")).and_then(Value::as_str) {
                Some(source) => source.to_owned(),
                None => return Err(fields.wrong("chat_template", "is a list without a template named default")),
            }
        }
        Some(_) => return Err(fields.wrong("chat_template", "is neither a text nor a list of named templates")),
    };
    let text = |field: &str, id: Option<u32>| {
        special_token(&fields, field).or_else(|| tokenizer.token_text(id?)).unwrap_or_default()
    };
    let (bos, eos) = (text("bos_token", tokenizer.bos()), text("eos_token", tokenizer.eos()));
    ChatTemplate::new(&source, file.name(), &bos, &eos).map(Some)
}

fn template(source: &str, file: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, Error> {
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    ChatTemplate::new(source, file, &text(tokenizer.bos()), &text(tokenizer.eos()))
}
