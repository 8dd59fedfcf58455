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

/// The folder of golden files.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

impl GoldenContext {
    /// Reads one context.
    ///
    /// # Panics
    /// The files are not as `golden/needle/README.md` says.
    pub fn read(context: usize) -> Self {
        let text = std::fs::read_to_string(folder().join("needle/golden.json")).expect("golden.json is in the project");
        let all: Value = serde_json::from_str(&text).expect("golden.json is JSON");
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
        let path = folder().join(format!("needle/docs/{}-{document}.u16", self.context));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
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
