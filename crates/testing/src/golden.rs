//! The needle model's golden documents, questions and accuracies (`golden/needle/README.md`), and tiny random models of
//! every variant with logits of the transformers library (`tools/make_tiny_models.py`).

use kv::TokenId;
use model::{ModelSource, Opened};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Everything known about one context.
pub struct GoldenContext {
    /// Nominal length in tokens.
    pub context: usize,
    /// Questions of the documents that are kept.
    pub questions: Vec<GoldenQuestion>,
    accuracy: serde_json::Map<String, Value>,
    documents: usize,
}

/// One question about one document.
#[derive(Clone, Debug)]
pub struct GoldenQuestion {
    /// Which document.
    pub document: usize,
    /// Nine words.
    pub text: String,
    /// The true digits.
    pub answer: String,
    /// Where the fact stands, 0 to 1.
    pub depth: f64,
    /// The reference's dense answer.
    pub dense: String,
    /// The smallest distance of a digit's logit from the second best.
    pub margin: f64,
}

/// The needle documents, embedded: a GPU's machine needs no checkout.
macro_rules! documents {
    ($($context:literal: $($document:literal)*;)*) => {
        &[$($((
            $context,
            $document,
            include_bytes!(concat!("../golden/needle/docs/", $context, "-", $document, ".u16")),
        )),*),*]
    };
}

/// Context, document, tokens.
const DOCUMENTS: &[(usize, usize, &[u8])] = documents![
    1024: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
    4096: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
    16384: 0 1 2 3 4 5 6 7;
    32768: 0 1 2 3 4 5 6 7;
    65536: 0 1 2 3;
    131072: 0 1 2 3;
];

/// What the reference says of them.
const GOLDEN: &str = include_str!("../golden/needle/golden.json");

/// Contexts that have documents.
pub const CONTEXTS: [usize; 6] = [1024, 4096, 16_384, 32_768, 65_536, 131_072];

/// The folder of golden files.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

impl GoldenContext {
    /// Reads one context.
    ///
    /// # Panics
    /// There is none of this length.
    pub fn read(context: usize) -> Self {
        let all: Value = serde_json::from_str(GOLDEN).expect("golden.json is JSON");
        let own = &all["contexts"][context.to_string()];
        let text = |q: &Value, field: &str| q[field].as_str().expect("a text").to_string();
        let question = |q: &Value| GoldenQuestion {
            document: q["doc"].as_u64().expect("a number") as usize,
            text: text(q, "question"),
            answer: text(q, "answer"),
            depth: q["depth"].as_f64().expect("a number"),
            dense: text(q, "dense"),
            margin: q["margin"].as_array().expect("margins").iter().filter_map(Value::as_f64).fold(1e9, f64::min),
        };
        let questions: Vec<_> = own["questions"].as_array().expect("questions").iter().map(question).collect();
        let documents = questions.iter().map(|q| q.document + 1).max().unwrap_or(0);
        let accuracy = own["accuracy"].as_object().expect("accuracies").clone();
        GoldenContext { context, questions, accuracy, documents }
    }

    /// Documents that are kept.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// A document's token ids.
    ///
    /// # Panics
    /// There is no such document.
    pub fn document(&self, document: usize) -> Vec<TokenId> {
        let of = |(context, number, _): &&(usize, usize, &[u8])| (*context, *number) == (self.context, document);
        let (_, _, bytes) = DOCUMENTS.iter().find(of).expect("a document that is kept");
        bytes.chunks_exact(2).map(|b| TokenId::from(u16::from_le_bytes([b[0], b[1]]))).collect()
    }

    /// The reference's accuracy over all 256 questions of the context, by its own key: `dense`, `sketch K2V2 0.0078`.
    ///
    /// # Panics
    /// There is no such key.
    pub fn accuracy(&self, key: &str) -> f64 {
        self.accuracy[key].as_f64().expect("an accuracy")
    }
}

/// A tiny model and what the reference says of one text.
pub struct TinyModel {
    /// Its folder's name.
    pub name: String,
    /// The model.
    pub opened: Opened,
    /// The text.
    pub tokens: Vec<TokenId>,
    /// `[tokens][vocab]` log-probabilities of the token behind each.
    pub exact: Vec<Vec<f64>>,
    /// The same with K and V rounded to bf16.
    rounded: Vec<Vec<f64>>,
}

/// All of them, in the order of their names.
///
/// # Panics
/// The files are not as the tool writes them.
pub fn tiny_models() -> Vec<TinyModel> {
    let entries = std::fs::read_dir(folder().join("tiny")).expect("golden/tiny");
    let mut folders: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|path| path.join("logits.safetensors").is_file());
    folders.sort();
    folders.iter().map(|folder| TinyModel::read(folder)).collect()
}

impl TinyModel {
    fn read(folder: &Path) -> Self {
        let name = folder.file_name().expect("a name").to_string_lossy().to_string();
        let opened = model::open(&ModelSource::Folder(folder.to_path_buf())).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = std::fs::read(folder.join("logits.safetensors")).expect("logits.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let ids = file.tensor("input_ids").expect("input_ids");
        let width = ids.data().len() / ids.shape().iter().product::<usize>();
        let low = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let log_probabilities = |name| {
            let tensor = file.tensor(name).expect("logits");
            let vocab = *tensor.shape().last().expect("two extents");
            let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_bits(low(b))).collect();
            values.chunks_exact(vocab).map(log_softmax).collect::<Vec<_>>()
        };
        TinyModel {
            name,
            opened,
            tokens: ids.data().chunks_exact(width).map(low).collect(),
            exact: log_probabilities("logits_f32"),
            rounded: log_probabilities("logits_kv_bf16"),
        }
    }

    /// Twice the largest difference that rounding K and V makes.
    pub fn bound(&self) -> f64 {
        let pairs = self.exact.iter().flatten().zip(self.rounded.iter().flatten());
        2.0 * pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    logits.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
}
