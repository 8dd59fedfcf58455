//! Weights in `model.safetensors`, or in the shards that `model.safetensors.index.json` lists.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::file::ModelFile;
use crate::folder::Folder;
use crate::json::Fields;
use crate::tensor::{bf16_from_bytes, f32_from_bytes, f32_from_f16_bytes};
use crate::{Error, ModelConfig};
use backend::{Tensor, TensorData};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// One entry per tensor of every shard. Invariant: `range` lies inside the shard's bytes and holds `shape` values of
/// `dtype`.
pub(super) struct SafetensorsWeights {
    label: String,
    shards: Vec<ModelFile>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl SafetensorsWeights {
    pub(super) fn open(folder: &Folder, config: &ModelConfig) -> Result<Self, Error> {
        let mut weights = Self { label: folder.label(), shards: Vec::new(), entries: BTreeMap::new() };
        match (folder.find(SINGLE)?, folder.find(INDEX)?) {
            (Some(file), _) => weights.add(file)?,
            (None, Some(index)) => {
                for shard in shard_names(&index)? {
                    let file = folder.find(&shard)?.ok_or_else(|| Error::NotAModel {
                        path: folder.label(),
                        reason: format!("{INDEX} lists {shard}, which is not there; download the missing file"),
                    })?;
                    weights.add(file)?;
                }
            }
            (None, None) => return Err(no_weights(folder)),
        }
        weights.check(config)?;
        Ok(weights)
    }

    pub(super) fn from_file(file: ModelFile, config: &ModelConfig) -> Result<Self, Error> {
        let mut weights = Self { label: file.name().to_owned(), shards: Vec::new(), entries: BTreeMap::new() };
        weights.add(file)?;
        weights.check(config)?;
        Ok(weights)
    }

    /// Reads the header of one shard.
    fn add(&mut self, file: ModelFile) -> Result<(), Error> {
        for (name, dtype, shape, range) in header(file.bytes(), file.name())? {
            let entry = Entry { shard: self.shards.len(), dtype, shape, range };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(Error::corrupt(file.name(), format!("tensor {name} is in another shard too")));
            }
        }
        self.shards.push(file);
        Ok(())
    }

    fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        let specs = config.tensors();
        for spec in &specs {
            let entry = self.entry(&spec.name)?;
            let file = self.shards[entry.shard].name();
            if !matches!(entry.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
                let field = format!("the type of tensor {}", spec.name);
                return Err(Error::unsupported(file, field, format!("{:?}", entry.dtype), "BF16, F16, F32"));
            }
            if entry.shape != spec.shape {
                let (found, expected) = (entry.shape.clone(), spec.shape.clone());
                return Err(Error::Shape { file: file.to_owned(), name: spec.name.clone(), found, expected });
            }
        }
        let known: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        match self.entries.keys().find(|name| !known.contains(name.as_str()) && !config.may_ignore(name)) {
            None => Ok(()),
            Some(name) => Err(Error::UnexpectedTensor {
                file: self.label.clone(),
                name: name.clone(),
                architecture: config.architecture.name(),
            }),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let entry = self.entry(name)?;
        let bytes = &self.shards[entry.shard].bytes()[entry.range.clone()];
        let data = match entry.dtype {
            Dtype::BF16 => TensorData::Bf16(bf16_from_bytes(bytes)),
            Dtype::F16 => TensorData::F32(Cow::Owned(f32_from_f16_bytes(bytes))),
            Dtype::F32 => TensorData::F32(f32_from_bytes(bytes)),
            other => unreachable!("{name} is {other:?}: types were checked when the file was opened"),
        };
        Ok(Tensor { name: name.to_owned(), shape: entry.shape.clone(), data })
    }

    pub(super) fn stored_bytes(&self, name: &str) -> Result<u64, Error> {
        Ok(self.entry(name)?.range.len() as u64)
    }

    fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.entries.get(name).ok_or_else(|| Error::MissingTensor { file: self.label.clone(), name: name.to_owned() })
    }
}

type HeaderEntry = (String, Dtype, Vec<usize>, Range<usize>);

/// The tensors of one safetensors file, ranges counted from the file's first byte and inside it.
fn header(bytes: &[u8], file: &str) -> Result<Vec<HeaderEntry>, Error> {
    let damaged = |error: safetensors::SafeTensorError| {
        Error::corrupt(file, format!("its safetensors header cannot be read ({error}); download the file again"))
    };
    // `deserialize` checks that offsets are contiguous, match shapes and types, and end with the file.
    let parsed = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let start = bytes.as_ptr().addr();
    let entry = |(name, view): (String, safetensors::tensor::TensorView)| {
        let at = view.data().as_ptr().addr() - start;
        (name, view.dtype(), view.shape().to_vec(), at..at + view.data().len())
    };
    Ok(parsed.tensors().into_iter().map(entry).collect())
}

/// The distinct file names of an index, which must be plain names: an index never reaches outside its folder.
fn shard_names(index: &ModelFile) -> Result<BTreeSet<String>, Error> {
    let fields = Fields::parse(index.bytes(), index.name())?;
    let Some(Value::Object(map)) = fields.get("weight_map") else {
        return Err(fields.missing("weight_map"));
    };
    let mut names = BTreeSet::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(name) if name.ends_with(".safetensors") && !name.contains(['/', '\\']) => {
                names.insert(name.to_owned())
            }
            _ => {
                let problem = format!("is {shard}, expected the name of a .safetensors file beside it");
                return Err(fields.wrong(&format!("weight_map.{tensor}"), problem));
            }
        };
    }
    Ok(names)
}

fn no_weights(folder: &Folder) -> Error {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];
    let pickle = pickles.into_iter().find(|name| folder.find(name).is_ok_and(|file| file.is_some()));
    let reason = match pickle {
        Some(pickle) => {
            format!("{pickle} holds Python pickles, which can run code and are not read; convert it to {SINGLE} first")
        }
        None => format!("it has neither {SINGLE} nor {INDEX}"),
    };
    Error::NotAModel { path: folder.label(), reason }
}
