//! Text to token ids and back.
//!
//! The work is done by the `tokenizers` library; this file adds what a server needs on top: special ids in one place,
//! text that streams in whole characters ([`Detokenizer`]), and the words that a closed vocabulary does not know.

mod detokenizer;
mod gguf;
mod stand_in;

use crate::Error;
use crate::folder::Folder;
use crate::json::Fields;
pub use detokenizer::Detokenizer;

/// A tokenizer with the special ids of its model. Read-only and shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: std::sync::Arc<tokenizers::Tokenizer>,
    file: String,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
}

/// What a text has that the vocabulary does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownWords {
    /// Tokens of the text that became the unknown token.
    pub count: usize,
    /// The distinct words behind them, in order of appearance, at most [`UnknownWords::WORDS_MAX`].
    pub words: Vec<String>,
}

impl UnknownWords {
    /// More words than a warning would show.
    pub const WORDS_MAX: usize = 16;
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the special tokens of `tokenizer_config.json`.
    pub(crate) fn from_folder(folder: &Folder) -> Result<Self, Error> {
        let file = folder.need("tokenizer.json")?;
        let inner = tokenizers::Tokenizer::from_bytes(file.bytes()).map_err(|error| Error::Tokenizer {
            file: file.name().to_owned(),
            reason: format!("{error}; it must be a tokenizer.json of the tokenizers library"),
        })?;
        let (mut bos, mut eos) = (None, None);
        if let Some(config) = folder.find("tokenizer_config.json")? {
            let fields = Fields::parse(config.bytes(), config.name())?;
            let id = |field| special_token(&fields, field).and_then(|token| inner.token_to_id(&token));
            (bos, eos) = (id("bos_token"), id("eos_token"));
        }
        Ok(Self::new(inner, file.name(), bos, eos))
    }

    fn new(inner: tokenizers::Tokenizer, file: &str, bos: Option<u32>, eos: Option<u32>) -> Self {
        let unknown = unknown_token(&inner).and_then(|token| inner.token_to_id(&token));
        Self { inner: std::sync::Arc::new(inner), file: file.to_owned(), bos, eos, unknown }
    }

    /// Whether it stands in for a model's own: its tokens are bytes.
    pub fn is_stand_in(&self) -> bool {
        self.file == stand_in::NAME
    }

    /// Takes the model's own special ids where the tokenizer's files name none.
    pub(crate) fn with_ids(mut self, bos: Option<u32>, eos: Option<u32>) -> Self {
        (self.bos, self.eos) = (self.bos.or(bos), self.eos.or(eos));
        self
    }

    /// The tokens of `text`. `add_special` adds what the model expects around a text (usually its first token); texts
    /// that a chat template wrote carry these already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the text cannot be encoded, which a valid vocabulary never causes.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|error| self.failed(error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; `skip_special` leaves special tokens out. Ids outside the vocabulary give nothing, bytes that
    /// are not UTF-8 give U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder of the vocabulary fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        self.inner.decode(ids, skip_special).map_err(|error| self.failed(error))
    }

    /// One token as the vocabulary spells it (`Ġhello`, `▁hello`, `<|im_end|>`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that one token adds to a text, as far as a token alone tells: for log-probabilities and constraints.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        if self.is_special(id) {
            return Some(token.into_bytes());
        }
        Some(detokenizer::token_bytes(&token, &self.inner))
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a control token, which never is text.
    pub fn is_special(&self, id: u32) -> bool {
        // The library's own short cut copies the map at every call.
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text. The full set of end tokens is [`crate::Generation::end_tokens`].
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token of words outside a closed vocabulary.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Ids are below this, added tokens included. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id that the tokenizer can give.
    pub(crate) fn id_max(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// The words of `text` that the vocabulary does not have; none for vocabularies that fall back to bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn unknown_words(&self, text: &str) -> Result<UnknownWords, Error> {
        let Some(unknown) = self.unknown else {
            return Ok(UnknownWords::default());
        };
        let encoding = self.inner.encode(text, false).map_err(|error| self.failed(error))?;
        let mut found = UnknownWords::default();
        for (id, (start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            if *id != unknown {
                continue;
            }
            found.count += 1;
            let word = text.get(*start..*end).unwrap_or_default();
            if found.words.len() < UnknownWords::WORDS_MAX && !found.words.iter().any(|known| known == word) {
                found.words.push(word.to_owned());
            }
        }
        Ok(found)
    }

    /// Turns tokens into text as they come; `prompt` is what came before them, empty if nothing did.
    pub fn detokenizer(&self, prompt: &[u32], skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), prompt, skip_special)
    }

    fn failed(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { file: self.file.clone(), reason: error.to_string() }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("file", &self.file).field("vocab_size", &self.vocab_size()).finish()
    }
}

/// A special token's text: written as a text, or as an object with `content`.
pub(crate) fn special_token(fields: &Fields, field: &str) -> Option<String> {
    let value = fields.get(field)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The unknown token that the model itself names. Byte-level vocabularies have none.
fn unknown_token(inner: &tokenizers::Tokenizer) -> Option<String> {
    use tokenizers::models::ModelWrapper;
    match inner.get_model() {
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::BPE(model) if !model.byte_fallback => model.unk_token.clone(),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        _ => None,
    }
}
