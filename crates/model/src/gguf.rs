//! The GGUF container, versions 2 and 3, little-endian: metadata, and tensors as ranges of a mapped file.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | fields u64 | fields … | tensor infos … | padding | tensor data …
//! ```
//!
//! Every count and length is checked against the bytes that are left before anything is allocated for it, so a damaged
//! file costs at most a few times its own size. What the tensors and fields *mean* is decided elsewhere
//! (`config/gguf.rs`, `checkpoint/gguf.rs`, `tokenizer/gguf.rs`).

mod cursor;
mod metadata;
mod quant;
mod split;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::Error;
use crate::file::ModelFile;
use backend::TensorData;
use cursor::Cursor;
pub(crate) use metadata::Metadata;
use quant::Quant;

/// One model: the file, or all parts of a split one.
pub(crate) struct Gguf {
    file: String,
    metadata: Metadata,
    parts: Vec<ModelFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Invariant: `range` lies inside the part's bytes and holds exactly the blocks of `shape`.
pub(crate) struct TensorInfo {
    part: usize,
    quant: Quant,
    /// Outermost dimension first (the file has it the other way round).
    pub(crate) shape: Vec<usize>,
    range: Range<usize>,
}

/// What one file holds.
struct Header {
    metadata: Metadata,
    tensors: Vec<(String, TensorInfo)>,
}

/// Shortest possible entries, in bytes: they bound the counts.
const FIELD_BYTES_MIN: usize = 8 + 4 + 1;
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;

/// GGUF's own limit (GGML_MAX_DIMS).
const DIMENSIONS_MAX: u32 = 4;

impl Gguf {
    /// Opens a file; if it is one part of a split model, the others beside it too.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = ModelFile::map(path)?;
        let header = Header::parse(file.bytes(), file.name(), 0)?;
        match split::siblings(path, &header.metadata)? {
            None => Self::assemble(vec![(file, header)]),
            Some(paths) => {
                let mut parts = Vec::new();
                for (part, path) in paths.iter().enumerate() {
                    let file = split::map_part(path, part, paths.len())?;
                    let header = Header::parse(file.bytes(), file.name(), part)?;
                    split::check_part(&header.metadata, part, paths.len())?;
                    parts.push((file, header));
                }
                let total = parts.iter().map(|(_, header)| header.tensors.len()).sum();
                split::check_total(&parts[0].1.metadata, total)?;
                Self::assemble(parts)
            }
        }
    }

    /// Reads a file that lies in memory, one that is not split.
    pub(crate) fn from_file(file: ModelFile) -> Result<Self, Error> {
        let header = Header::parse(file.bytes(), file.name(), 0)?;
        Self::assemble(vec![(file, header)])
    }

    fn assemble(parts: Vec<(ModelFile, Header)>) -> Result<Self, Error> {
        let mut tensors = BTreeMap::new();
        let (mut files, mut metadata) = (Vec::new(), None);
        for (file, header) in parts {
            for (name, info) in header.tensors {
                if tensors.insert(name.clone(), info).is_some() {
                    return Err(Error::corrupt(file.name(), format!("it has tensor {name} twice")));
                }
            }
            metadata.get_or_insert(header.metadata);
            files.push(file);
        }
        // A model has at least one part: both callers pass one or more.
        let metadata = metadata.unwrap_or_default();
        Ok(Self {
            file: files.first().map_or(String::new(), |file| file.name().to_owned()),
            metadata,
            parts: files,
            tensors,
        })
    }

    /// The (first) file, for messages.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    pub(crate) fn stored_bytes(&self, info: &TensorInfo) -> u64 {
        info.range.len() as u64
    }

    /// The values, dequantised to f32 as the reference reader does, bit for bit; bf16 stays as it is.
    pub(crate) fn values(&self, info: &TensorInfo) -> TensorData<'_> {
        let bytes = &self.parts[info.part].bytes()[info.range.clone()];
        match info.quant {
            Quant::BF16 => TensorData::Bf16(crate::tensor::bf16_from_bytes(bytes)),
            Quant::F32 => TensorData::F32(crate::tensor::f32_from_bytes(bytes)),
            Quant::F16 => TensorData::F32(Cow::Owned(crate::tensor::f32_from_f16_bytes(bytes))),
            blocks => TensorData::F32(Cow::Owned(blocks.dequantise(bytes))),
        }
    }
}

impl Header {
    fn parse(bytes: &[u8], file: &str, part: usize) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes, file);
        if cursor.take(4, "the magic")? != b"GGUF" {
            return Err(Error::corrupt(file, "it does not begin with GGUF's four letters"));
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::unsupported(file, "the byte order", "big-endian", "little-endian"));
            }
            version => return Err(Error::unsupported(file, "the GGUF version", version, "2, 3")),
        }
        let tensors = cursor.count("the number of tensors", TENSOR_BYTES_MIN)?;
        let fields = cursor.count("the number of metadata fields", FIELD_BYTES_MIN)?;
        let metadata = Metadata::parse(&mut cursor, fields)?;
        let raw = (0..tensors).map(|_| RawTensor::parse(&mut cursor)).collect::<Result<Vec<_>, _>>()?;

        let alignment = metadata.usize_opt("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() || 1 << 20 < alignment {
            let problem = format!("is {alignment}, expected a power of two up to 2^20");
            return Err(Error::field(file, "general.alignment", problem));
        }
        let data = cursor.position().next_multiple_of(alignment);
        let place = |raw: RawTensor| raw.place(data, alignment, bytes.len(), part, file);
        let tensors = raw.into_iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { metadata, tensors })
    }
}

/// A tensor info as it is written, before its sizes are believed.
struct RawTensor {
    name: String,
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl RawTensor {
    fn parse(cursor: &mut Cursor) -> Result<Self, Error> {
        let name = cursor.string("a tensor's name")?.to_owned();
        let count = cursor.u32("a tensor's number of dimensions")?;
        if !(1..=DIMENSIONS_MAX).contains(&count) {
            let reason = format!("tensor {name} has {count} dimensions, expected 1 to {DIMENSIONS_MAX}");
            return Err(cursor.corrupt(reason));
        }
        let dimensions = (0..count).map(|_| cursor.u64("a tensor's shape")).collect::<Result<_, _>>()?;
        Ok(Self { name, dimensions, kind: cursor.u32("a tensor's type")?, offset: cursor.u64("a tensor's offset")? })
    }

    /// Checks that the blocks of this shape lie inside a file of `length` bytes whose tensor data begin at `data`.
    fn place(
        self,
        data: usize,
        alignment: usize,
        length: usize,
        part: usize,
        file: &str,
    ) -> Result<(String, TensorInfo), Error> {
        let Self { name, dimensions, kind, offset } = self;
        let quant = Quant::from_id(kind)
            .map_err(|other| Error::unsupported(file, format!("the type of tensor {name}"), other, Quant::SUPPORTED))?;
        let wrong = |what: String| Error::corrupt(file, format!("tensor {name} {what}"));
        let shape = dimensions.iter().rev().map(|size| usize::try_from(*size).ok().filter(|size| 0 < *size));
        let shape: Vec<usize> =
            shape.collect::<Option<_>>().ok_or_else(|| wrong(format!("has the shape {dimensions:?}")))?;
        let columns = *shape.last().unwrap_or(&0);
        if !columns.is_multiple_of(quant.block_values()) {
            return Err(wrong(format!("has rows of {columns} values, not a multiple of {}", quant.block_values())));
        }
        let values = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let bytes = values.and_then(|values| (values / quant.block_values()).checked_mul(quant.block_bytes()));
        let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => {
                if offset % alignment as u64 != 0 {
                    return Err(wrong(format!("begins at {offset}, not a multiple of the alignment {alignment}")));
                }
                Ok((name, TensorInfo { part, quant, shape, range: start..end }))
            }
            (_, end) => {
                let end = end.map_or("beyond any file".into(), |end| format!("at byte {end}"));
                Err(wrong(format!("of shape {shape:?} ends {end}, but the file has {length} bytes; download it again")))
            }
        }
    }
}
