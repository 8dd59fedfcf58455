//! The noise model of `crates/testing/golden/noise`, and noise itself.

use model::{ModelSource, Opened, open};
use std::path::Path;

/// Its template, of the Hermes family.
pub(crate) const HERMES: &str = include_str!("../../testing/golden/noise/chat_template.jinja");

/// The one of Llama 3 that lies beside it.
pub(crate) const LLAMA3: &str = include_str!("../../testing/golden/noise/llama3.jinja");

/// Opens it.
pub(crate) fn opened() -> Opened {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/noise");
    open(&ModelSource::Folder(folder)).expect("tools/make_noise_llama.py wrote it")
}

/// Numbers that look random: SplitMix64.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// The next one, below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}
