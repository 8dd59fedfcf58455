//! The needle model's golden documents, questions and accuracies (`golden/needle/README.md`).

use kv::TokenId;
use serde_json::Value;
use std::path::PathBuf;

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
