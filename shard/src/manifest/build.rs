//! From the tensors that files have to a manifest with its id.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use umbel_protocol::ModelId;

use super::{Manifest, ManifestFile, ManifestTensor, TensorPlace};
use crate::config::ModelConfig;
use crate::layout::{self, LayoutTensor};
use crate::weight::WeightType;

/// Where one tensor was found.
pub(crate) struct FoundTensor {
    /// The index of its file.
    pub(crate) file: usize,
    /// What its file says of it; `None` where the file is not here.
    pub(crate) stored: Option<FoundInFile>,
    /// Whether the file has rotated rows in GGUF's order.
    pub(crate) permuted: bool,
}

/// What a file says of a tensor.
pub(crate) struct FoundInFile {
    pub(crate) weight_type: WeightType,
    pub(crate) shape: Vec<usize>,
    pub(crate) offset: u64,
}

/// The quantization as the id has it and as people are told.
pub(crate) enum Quantization {
    /// Values as they were trained: the type that most bytes have is what people are told.
    AsTrained,
    /// A name from the file, or that of the type that most bytes have.
    Named(Option<&'static str>),
}

impl Manifest {
    /// The manifest of a model whose tensors `find` knows.
    pub(crate) fn build(
        config: &ModelConfig,
        files: Vec<ManifestFile>,
        quantization: &Quantization,
        find: impl Fn(&LayoutTensor) -> Result<FoundTensor, ManifestError>,
    ) -> Result<Self, ManifestError> {
        let part = |tensors: Vec<LayoutTensor>| -> Result<Vec<ManifestTensor>, ManifestError> {
            tensors.into_iter().map(|one| find_one(one, &files, &find)).collect()
        };
        let embedding = part(layout::embedding(config))?;
        let head = part(layout::head(config))?;
        let blocks = (0..config.block_count)
            .map(|index| part(layout::block(config, index)))
            .collect::<Result<_, _>>()?;
        let (name, id) = (String::new(), ModelId::from_bytes([0; 32]));
        let mut manifest = Self { files, embedding, blocks, head, quantization: name, id };
        manifest.estimate_unknown_bytes();
        let main_type = manifest.main_type().map_or("unknown", WeightType::name);
        let (label, name) = match quantization {
            Quantization::AsTrained => ("safetensors", main_type),
            Quantization::Named(name) => (name.unwrap_or(main_type), name.unwrap_or(main_type)),
        };
        manifest.id = manifest.compute_id(config, label);
        manifest.quantization = name.to_owned();
        Ok(manifest)
    }

    fn compute_id(&self, config: &ModelConfig, quantization: &str) -> ModelId {
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, value: usize| hash.update((value as u64).to_le_bytes());
        let bytes = |hash: &mut Sha256, bytes: &[u8]| {
            number(hash, bytes.len());
            hash.update(bytes);
        };
        bytes(&mut hash, b"umbel manifest 1");
        bytes(&mut hash, &config.canonical_bytes());
        bytes(&mut hash, quantization.as_bytes());
        let blocks = self.blocks.iter().map(|tensors| {
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect::<BTreeMap<_, _>>()
        });
        for part in std::iter::once(self.ends()).chain(blocks) {
            number(&mut hash, part.len());
            for (name, tensor) in part {
                bytes(&mut hash, name.as_bytes());
                hash.update(tensor.hash);
            }
        }
        ModelId::from_bytes(hash.finalize().into())
    }

    /// The type that most bytes have, among the tensors whose files are here.
    fn main_type(&self) -> Option<WeightType> {
        let mut bytes: BTreeMap<WeightType, u64> = BTreeMap::new();
        let ends = self.ends();
        let blocks = self.blocks.iter().flatten();
        for tensor in blocks.chain(ends.into_values()) {
            if let Some(place) = tensor.place {
                *bytes.entry(place.weight_type).or_default() += tensor.bytes;
            }
        }
        bytes.into_iter().max_by_key(|&(_, bytes)| bytes).map(|(weight_type, _)| weight_type)
    }

    /// Shares the length of a file that is not here among its tensors by their numbers of values.
    fn estimate_unknown_bytes(&mut self) {
        /// Bytes of a value where nothing is known: most checkpoints have 16 bits.
        const VALUE_BYTES: u64 = 2;
        let mut values = vec![0u64; self.files.len()];
        for tensor in self.ends().into_values().chain(self.blocks.iter().flatten()) {
            values[tensor.file] += value_count(tensor);
        }
        let files = &self.files;
        let all = self.blocks.iter_mut().flatten().chain(&mut self.embedding).chain(&mut self.head);
        for tensor in all.filter(|tensor| tensor.place.is_none()) {
            let own = value_count(tensor);
            let share = |bytes: u64| {
                u128::from(bytes) * u128::from(own) / u128::from(values[tensor.file].max(1))
            };
            let estimate = files[tensor.file].bytes.map(share);
            let estimate = estimate.and_then(|bytes| u64::try_from(bytes).ok());
            tensor.bytes = estimate.unwrap_or(own * VALUE_BYTES);
        }
    }
}

fn value_count(tensor: &ManifestTensor) -> u64 {
    tensor.shape.iter().map(|&size| size as u64).product()
}

fn find_one(
    wanted: LayoutTensor,
    files: &[ManifestFile],
    find: impl Fn(&LayoutTensor) -> Result<FoundTensor, ManifestError>,
) -> Result<ManifestTensor, ManifestError> {
    let FoundTensor { file, stored, permuted } = find(&wanted)?;
    let LayoutTensor { name, shape, rotated_heads, .. } = wanted;
    let carrier = &files[file];
    let mut place = None;
    let mut bytes = 0;
    if let Some(FoundInFile { weight_type, shape: found, offset }) = stored {
        if found != shape {
            let file = carrier.name.clone();
            return Err(ManifestError::WrongShape { tensor: name, file, found, expected: shape });
        }
        // Norms and biases are added and multiplied value by value, never as quantized rows.
        let vector = shape.len() == 1;
        let Some(length) =
            weight_type.tensor_bytes(&shape).filter(|_| !vector || weight_type.is_float())
        else {
            let (file, found) = (carrier.name.clone(), weight_type.name().to_owned());
            return Err(ManifestError::UnsupportedType { tensor: name, file, found });
        };
        place = Some(TensorPlace { weight_type, offset });
        bytes = length;
    }
    let mut hash = Sha256::new();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(carrier.sha256);
    let permuted_heads = rotated_heads.filter(|_| permuted);
    Ok(ManifestTensor {
        name,
        shape,
        file,
        hash: hash.finalize().into(),
        place,
        bytes,
        permuted_heads,
    })
}

/// Files whose tensors are not those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A tensor that the configuration asks for is in none of the files.
    #[error("{file} has no tensor {tensor}, which the configuration asks for")]
    MissingTensor {
        /// The tensor's name in such files.
        tensor: String,
        /// The file that should have it.
        file: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error(
        "tensor {tensor} in {file} has the shape {found:?}, but the configuration asks for \
         {expected:?}: the files do not belong together, or one is corrupt"
    )]
    WrongShape {
        /// The tensor's canonical name.
        tensor: String,
        /// The file that carries it.
        file: String,
        /// The shape that it has.
        found: Vec<usize>,
        /// The shape that it should have.
        expected: Vec<usize>,
    },
    /// A tensor of a type that the engine does not multiply.
    #[error("tensor {tensor} in {file} has the type {found}, which is not supported there")]
    UnsupportedType {
        /// The tensor's canonical name.
        tensor: String,
        /// The file that carries it.
        file: String,
        /// The type's name.
        found: String,
    },
}
