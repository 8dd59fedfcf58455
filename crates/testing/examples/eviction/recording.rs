//! What was selected in one decode, as a file.

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// One step of one (layer, KV head).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    /// Selected pages, ascending.
    pub(crate) pages: Vec<u32>,
    /// Selection scores of the candidates, from the first one on.
    pub(crate) scores: Vec<f32>,
}

/// One decode of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recording {
    /// Which model.
    pub(crate) model: String,
    /// What was read and decoded.
    pub(crate) text: String,
    /// By which algorithm.
    pub(crate) algorithm: String,
    /// Tokens before the first step.
    pub(crate) context: usize,
    /// The first candidate page.
    pub(crate) first_page: usize,
    /// `[layers * KV heads][steps]`.
    pub(crate) heads: Vec<Vec<Step>>,
}

impl Recording {
    /// Writes it: a line of JSON, then per head and step both lists as (length, elements) in little-endian 32 bits.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let header = json!({
            "model": self.model, "text": self.text, "algorithm": self.algorithm, "context": self.context,
            "first_page": self.first_page, "heads": self.heads.len(), "steps": self.heads[0].len(),
        });
        writeln!(file, "{header}")?;
        for step in self.heads.iter().flatten() {
            write_list(&mut file, step.pages.iter().map(|page| page.to_le_bytes()))?;
            write_list(&mut file, step.scores.iter().map(|score| score.to_le_bytes()))?;
        }
        file.flush()
    }

    /// Reads it back.
    pub(crate) fn read(path: &Path) -> std::io::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let mut line = String::new();
        file.read_line(&mut line)?;
        let header: Value = serde_json::from_str(&line)?;
        let text = |field: &str| header[field].as_str().unwrap_or_default().to_string();
        let number = |field: &str| header[field].as_u64().unwrap_or_default() as usize;
        let mut step = || -> std::io::Result<Step> {
            let pages = read_list(&mut file)?.into_iter().map(u32::from_le_bytes).collect();
            let scores = read_list(&mut file)?.into_iter().map(f32::from_le_bytes).collect();
            Ok(Step { pages, scores })
        };
        let mut head = |_| (0..number("steps")).map(|_| step()).collect();
        Ok(Recording {
            heads: (0..number("heads")).map(&mut head).collect::<Result<_, _>>()?,
            model: text("model"),
            text: text("text"),
            algorithm: text("algorithm"),
            context: number("context"),
            first_page: number("first_page"),
        })
    }

    /// The most pages that a step selects.
    pub(crate) fn k(&self) -> usize {
        self.heads.iter().flatten().map(|step| step.pages.len()).max().unwrap_or(0)
    }

    /// Decode steps.
    pub(crate) fn steps(&self) -> usize {
        self.heads[0].len()
    }
}

fn write_list(file: &mut impl Write, elements: impl ExactSizeIterator<Item = [u8; 4]>) -> std::io::Result<()> {
    file.write_all(&(elements.len() as u32).to_le_bytes())?;
    for element in elements {
        file.write_all(&element)?;
    }
    Ok(())
}

fn read_list(file: &mut impl Read) -> std::io::Result<Vec<[u8; 4]>> {
    let mut len = [0; 4];
    file.read_exact(&mut len)?;
    let mut bytes = vec![0; 4 * u32::from_le_bytes(len) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
}
