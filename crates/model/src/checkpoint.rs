//! A model's weights behind one set of names, whichever kind of file they lie in.
//!
//! Opening reads headers only. It checks that every tensor the configuration needs is there, with the right shape, in a
//! type that can be read and inside its file, and that no tensor is there that the decoder would silently ignore. After
//! that, [`Checkpoint::tensor`] fails only for names that are not in [`ModelConfig::tensors`].
//! Random weights have no files: the backend makes them.

mod gguf;
mod random;
mod safetensors;

use crate::file::ModelFile;
use crate::folder::Folder;
use crate::gguf::Gguf;
use crate::{Error, ModelConfig, TensorSpec};
use backend::{Backend, Tensor, Weight, WeightPart, WeightRole};
use gguf::GgufWeights;
pub(crate) use gguf::ROPE_FREQS;
use random::RandomWeights;
use safetensors::SafetensorsWeights;

/// The name of the output matrix, which a tied model shares with [`EMBEDDING`].
const OUTPUT: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The weights of one model. It may be shared between threads that load different tensors.
pub struct Checkpoint {
    config: ModelConfig,
    weights: Weights,
}

enum Weights {
    Safetensors(SafetensorsWeights),
    Gguf(GgufWeights),
    Random(RandomWeights),
}

impl Checkpoint {
    pub(crate) fn from_folder(folder: &Folder, config: ModelConfig) -> Result<Self, Error> {
        let weights = SafetensorsWeights::open(folder, &config)?;
        Ok(Self { config, weights: Weights::Safetensors(weights) })
    }

    /// The weights of a safetensors file that lies in memory; `name` is what messages call it.
    ///
    /// # Errors
    /// Any that a file can have, as [`crate::open`].
    pub fn from_safetensors_bytes(name: &str, bytes: Vec<u8>, config: ModelConfig) -> Result<Self, Error> {
        let weights = SafetensorsWeights::from_file(ModelFile::owned(name, bytes), &config)?;
        Ok(Self { config, weights: Weights::Safetensors(weights) })
    }

    pub(crate) fn from_gguf(gguf: Gguf, config: ModelConfig) -> Result<Self, Error> {
        let weights = GgufWeights::new(gguf, &config)?;
        Ok(Self { config, weights: Weights::Gguf(weights) })
    }

    /// Weights of seeded noise in the shapes of `config`: right for speed, and every answer means nothing.
    pub fn random(config: ModelConfig, seed: u64) -> Self {
        let weights = Weights::Random(RandomWeights::new(&config, seed));
        Self { config, weights }
    }

    /// Whether the weights are noise.
    pub fn is_random(&self) -> bool {
        matches!(self.weights, Weights::Random(_))
    }

    /// Where the weights come from, in a word for programs.
    pub fn kind(&self) -> &'static str {
        match self.weights {
            Weights::Safetensors(_) => "safetensors",
            Weights::Gguf(_) => "gguf",
            Weights::Random(_) => "random",
        }
    }

    /// The configuration that the weights were checked against.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Has `backend` make one weight of the tensors `NAME.weight` (and `NAME.bias`) of `names`, one below the other.
    ///
    /// # Errors
    /// What the backend refuses; names that are not in [`ModelConfig::tensors`].
    pub(crate) fn prepare(
        &self,
        backend: &dyn Backend,
        role: WeightRole,
        names: &[&str],
        bias: bool,
    ) -> Result<Weight, Error> {
        if let Weights::Random(weights) = &self.weights {
            return weights.prepare(backend, role, names, bias);
        }
        let part = |name: &&str| {
            let weight = self.tensor(&format!("{name}.weight"))?;
            let bias = if bias { Some(self.tensor(&format!("{name}.bias"))?) } else { None };
            Ok(WeightPart { weight, bias })
        };
        let parts = names.iter().map(part).collect::<Result<Vec<_>, Error>>()?;
        Ok(backend.prepare_weight(role, &parts)?)
    }

    /// One tensor by its Hugging Face name. `lm_head.weight` of a tied model is the embedding matrix.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a name that is not in [`ModelConfig::tensors`], and for random weights.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let stored = if self.config.tied && name == OUTPUT { EMBEDDING } else { name };
        let mut tensor = match &self.weights {
            Weights::Safetensors(weights) => weights.tensor(stored),
            Weights::Gguf(weights) => weights.tensor(stored),
            Weights::Random(weights) => Err(weights.missing(stored)),
        }?;
        tensor.name = name.to_owned();
        Ok(tensor)
    }

    /// Every tensor to load, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.config.tensors()
    }

    /// What one tensor occupies in its file, in bytes (in bf16, where there is no file): the unit of a progress bar.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn stored_bytes(&self, name: &str) -> Result<u64, Error> {
        let stored = if self.config.tied && name == OUTPUT { EMBEDDING } else { name };
        match &self.weights {
            Weights::Safetensors(weights) => weights.stored_bytes(stored),
            Weights::Gguf(weights) => weights.stored_bytes(stored),
            Weights::Random(weights) => weights.bytes(stored),
        }
    }

    /// What all tensors of [`Checkpoint::tensors`] occupy in their files, in bytes.
    pub fn stored_bytes_total(&self) -> u64 {
        self.tensors().iter().filter_map(|spec| self.stored_bytes(&spec.name).ok()).sum()
    }
}
