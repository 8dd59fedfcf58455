//! Writes small GGUF files, right and wrong ones, byte by byte.

/// One metadata value.
pub(crate) enum Field {
    U32(u32),
    F32(f32),
    Text(&'static str),
    Texts(Vec<&'static str>),
    F32s(Vec<f32>),
}

pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    fields: Vec<(String, Field)>,
    /// Name, dimensions innermost first, type id, bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufWriter {
    /// The fields and tensors of a llama of one layer: hidden 32, two heads of 16, one KV head, MLP 32, 8 tokens.
    pub(crate) fn llama() -> Self {
        let mut file = Self { version: 3, fields: Vec::new(), tensors: Vec::new() };
        file.set("general.architecture", Field::Text("llama"));
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            file.set(&format!("llama.{key}"), Field::U32(value));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5));
        file.set("tokenizer.ggml.model", Field::Text("gpt2"));
        file.set("tokenizer.ggml.pre", Field::Text("gpt-2"));
        file.set("tokenizer.ggml.tokens", Field::Texts(vec!["a", "b", "c", "d", "ab", "e", "f", "g"]));
        file.set("tokenizer.ggml.merges", Field::Texts(vec!["a b"]));
        for (name, rows, columns) in [
            ("token_embd.weight", 8, 32),
            ("output_norm.weight", 0, 32),
            ("blk.0.attn_norm.weight", 0, 32),
            ("blk.0.attn_q.weight", 32, 32),
            ("blk.0.attn_k.weight", 16, 32),
            ("blk.0.attn_v.weight", 16, 32),
            ("blk.0.attn_output.weight", 32, 32),
            ("blk.0.ffn_norm.weight", 0, 32),
            ("blk.0.ffn_gate.weight", 32, 32),
            ("blk.0.ffn_up.weight", 32, 32),
            ("blk.0.ffn_down.weight", 32, 32),
        ] {
            file.tensor(name, rows, columns);
        }
        file
    }

    /// Replaces or adds a field.
    pub(crate) fn set(&mut self, key: &str, value: Field) {
        self.remove(key);
        self.fields.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.fields.retain(|(known, _)| known != key);
    }

    /// Replaces or adds an f32 tensor with values 0, 1, 2, …; `rows` 0 makes it a vector.
    pub(crate) fn tensor(&mut self, name: &str, rows: u64, columns: u64) {
        let dimensions = if rows == 0 { vec![columns] } else { vec![columns, rows] };
        let values = (0..rows.max(1) * columns).flat_map(|value| (value as f32).to_le_bytes()).collect();
        self.raw_tensor(name, dimensions, 0, values);
    }

    pub(crate) fn raw_tensor(&mut self, name: &str, dimensions: Vec<u64>, kind: u32, bytes: Vec<u8>) {
        self.remove_tensor(name);
        self.tensors.push((name.to_owned(), dimensions, kind, bytes));
    }

    pub(crate) fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|(known, ..)| known != name);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.fields.len() as u64).to_le_bytes());
        for (key, value) in &self.fields {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0_u64;
        for (name, dimensions, kind, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + bytes.len() as u64).next_multiple_of(32);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

impl Field {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(out, value);
            }
            Self::Texts(values) => {
                list(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::F32s(values) => {
                list(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn list(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
