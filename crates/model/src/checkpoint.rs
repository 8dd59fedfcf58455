//! A model's weights behind one set of names, whichever kind of file they lie in.
//!
//! Opening reads headers only. It checks that every tensor the configuration needs is there, with the right shape, in a
//! type that can be read and inside its file, and that no tensor is there that the decoder would silently ignore. After
//! that, [`Checkpoint::tensor`] fails only for names that are not in [`ModelConfig::tensors`].

mod gguf;
mod safetensors;

use crate::file::ModelFile;
use crate::folder::Folder;
use crate::gguf::Gguf;
use crate::{Error, ModelConfig, TensorSpec};
use backend::Tensor;
use gguf::GgufWeights;
pub(crate) use gguf::ROPE_FREQS;
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

    /// The configuration that the weights were checked against.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One tensor by its Hugging Face name. `lm_head.weight` of a tied model is the embedding matrix.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a name that is not in [`ModelConfig::tensors`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let stored = if self.config.tied && name == OUTPUT { EMBEDDING } else { name };
        let mut tensor = match &self.weights {
            Weights::Safetensors(weights) => weights.tensor(stored),
            Weights::Gguf(weights) => weights.tensor(stored),
        }?;
        tensor.name = name.to_owned();
        Ok(tensor)
    }

    /// Every tensor to load, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.config.tensors()
    }

    /// What one tensor occupies in its file, in bytes: the unit of a progress bar.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn stored_bytes(&self, name: &str) -> Result<u64, Error> {
        let stored = if self.config.tied && name == OUTPUT { EMBEDDING } else { name };
        match &self.weights {
            Weights::Safetensors(weights) => weights.stored_bytes(stored),
            Weights::Gguf(weights) => weights.stored_bytes(stored),
        }
    }

    /// What all tensors of [`Checkpoint::tensors`] occupy in their files, in bytes.
    pub fn stored_bytes_total(&self) -> u64 {
        self.tensors().iter().filter_map(|spec| self.stored_bytes(&spec.name).ok()).sum()
    }
}
