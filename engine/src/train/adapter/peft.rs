//! Adapters in the layout of PEFT (<https://github.com/huggingface/peft>): two files in a folder.
//!
//! They come from strangers: sizes are checked before anything is taken apart, each tensor must be
//! one that the model has a place for, and a setting that would change the mathematics and is not
//! known here is an error and not a silence.

mod config;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use umbel_protocol::{AdapterId, Span};
use umbel_shard::ModelConfig;
use umbel_shard::safetensors::{StoredTensor, StoredType, parse_header};

use super::{Adapter, AdapterConfig, AdapterError, Parameters, Place, TargetModule, module_shape};
use crate::kernel::dequantize_row;

/// What the adapter is.
pub const PEFT_CONFIG_FILE: &str = "adapter_config.json";

/// Its tensors.
pub const PEFT_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What stands before the text, as PEFT names it.
const PROMPT_TENSOR: &str = "prompt_embeddings";

/// What blocks add, before the number of each.
const BLOCK_PROMPT_TENSOR: &str = "block_prompt_embeddings";

/// What the header of the tensors takes for each: a name of some 80 bytes, and 80 more for type, shape
/// and place. A header that is longer has tensors that no model has a place for.
const HEADER_TENSOR_BYTES: u64 = 512;

/// Bytes of a value in the widest type that is taken.
const VALUE_BYTES: u64 = 4;

/// The bytes of an adapter's two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl Adapter {
    /// Takes the part for `blocks` out of an adapter for all blocks of `model`.
    ///
    /// # Errors
    /// [`AdapterError`] where it is broken, of another model, or of a kind that is not known.
    pub fn from_peft(
        files: &PeftFiles,
        model: &ModelConfig,
        blocks: Span,
    ) -> Result<Self, AdapterError> {
        super::check_blocks(model, blocks)?;
        check_length(PEFT_CONFIG_FILE, files.config.len() as u64, PeftFiles::CONFIG_BYTES_MAX)?;
        let config = config::parse(&files.config)?;
        config.check_modules(model)?;
        let max = weights_bytes_max(&config, model);
        check_length(PEFT_WEIGHTS_FILE, files.weights.len() as u64, max)?;
        let header = parse_header(&files.weights, files.weights.len() as u64)?;
        let mut tensors: BTreeMap<&str, &StoredTensor> =
            header.tensors().iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let all = Span::new(0, model.block_count).map_err(|_| AdapterError::Parts)?;
        let mut whole = Self::blank(config, model, all)?;
        let names = whole.parameters.tensors(model.hidden_size);
        for ((name, shape), (_, values)) in names.into_iter().zip(whole.parameters.rows_mut()) {
            let Some(tensor) = tensors.remove(name.as_str()) else {
                return Err(AdapterError::MissingTensor { name });
            };
            values.copy_from_slice(&read(&files.weights, name, tensor, shape)?);
        }
        if let Some(name) = tensors.into_keys().next() {
            return Err(AdapterError::UnknownTensor { name: name.to_owned() });
        }
        if blocks == all { Ok(whole) } else { whole.part(blocks) }
    }

    /// The files that PEFT reads. Those of an adapter for all blocks of a model are a whole adapter.
    #[must_use]
    pub fn to_peft(&self) -> PeftFiles {
        let hidden_size = self.parameters.prompt.len() / self.config.prompt_tokens.max(1);
        let mut header = serde_json::Map::new();
        let mut values = Vec::new();
        let names = self.parameters.tensors(hidden_size);
        for ((name, shape), (_, tensor)) in names.into_iter().zip(self.parameters.rows()) {
            let start = values.len();
            values.extend(tensor.iter().flat_map(|value| value.to_le_bytes()));
            let entry =
                json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, values.len()] });
            header.insert(name, entry);
        }
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut header = Value::Object(header).to_string().into_bytes();
        // The tensors begin at a multiple of 8 bytes, and the header may end in spaces.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend_from_slice(&header);
        weights.extend_from_slice(&values);
        PeftFiles { config: config::write(&self.config, hidden_size), weights }
    }
}

impl Parameters {
    /// The names that the rows of values have in the file, and their shapes.
    fn tensors(&self, hidden_size: usize) -> Vec<(String, Vec<usize>)> {
        let matrices = self.matrices.iter().flat_map(|(&place, pair)| {
            let ([rows, columns], rank) = (pair.shape(), pair.rank());
            let magnitudes =
                (!pair.magnitudes().is_empty()).then(|| ("lora_magnitude_vector", vec![rows]));
            let tensors =
                [("lora_A.weight", vec![rank, columns]), ("lora_B.weight", vec![rows, rank])];
            let tensors = tensors.into_iter().chain(magnitudes);
            tensors.map(move |(tensor, shape)| (tensor_name(place, tensor), shape))
        });
        let shape = |values: &Vec<f32>| vec![values.len() / hidden_size.max(1), hidden_size];
        let of_block = |(block, values)| (format!("{BLOCK_PROMPT_TENSOR}.{block}"), shape(values));
        let prompt = (PROMPT_TENSOR.to_owned(), shape(&self.prompt));
        let prompt = (!self.prompt.is_empty()).then_some(prompt);
        matrices.chain(self.block_prompts.iter().map(of_block)).chain(prompt).collect()
    }
}

impl PeftFiles {
    /// The name of their content.
    #[must_use]
    pub fn id(&self) -> AdapterId {
        let mut hasher = Sha256::new_with_prefix(b"umbel adapter v1\0");
        hasher.update((self.config.len() as u64).to_le_bytes());
        hasher.update(&self.config);
        hasher.update(&self.weights);
        AdapterId::from_bytes(hasher.finalize().into())
    }

    /// The longest configuration: those that PEFT writes have a kilobyte.
    pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

    /// The longest file of weights that goes with a configuration, for `model`.
    ///
    /// # Errors
    /// [`AdapterError`] where the configuration is broken or of a kind that is not known.
    pub fn weights_bytes_max(config: &[u8], model: &ModelConfig) -> Result<u64, AdapterError> {
        check_length(PEFT_CONFIG_FILE, config.len() as u64, Self::CONFIG_BYTES_MAX)?;
        let config = config::parse(config)?;
        config.check_modules(model)?;
        Ok(weights_bytes_max(&config, model))
    }

    /// Reads the files of an adapter for any model in `folder`, whose weights are no longer than so many
    /// bytes.
    ///
    /// # Errors
    /// As [`PeftFiles::read`].
    pub fn read_within(folder: &Path, weights_bytes_max: u64) -> Result<Self, AdapterError> {
        let config = read_file(folder, PEFT_CONFIG_FILE, Self::CONFIG_BYTES_MAX)?;
        config::parse(&config)?;
        Ok(Self { config, weights: read_file(folder, PEFT_WEIGHTS_FILE, weights_bytes_max)? })
    }

    /// Reads the files of an adapter for `model` in `folder`, no longer than such files can be.
    ///
    /// # Errors
    /// [`AdapterError`] where one cannot be read, is too long, or has a broken configuration.
    pub fn read(folder: &Path, model: &ModelConfig) -> Result<Self, AdapterError> {
        let config = read_file(folder, PEFT_CONFIG_FILE, Self::CONFIG_BYTES_MAX)?;
        let max = Self::weights_bytes_max(&config, model)?;
        Ok(Self { config, weights: read_file(folder, PEFT_WEIGHTS_FILE, max)? })
    }

    /// Writes the files into `folder`, which is made where it is missing. Each file is written beside
    /// its place first, so that what was there survives a disk that is full.
    ///
    /// # Errors
    /// [`AdapterError::File`] where the operating system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), AdapterError> {
        let files = [(PEFT_CONFIG_FILE, &self.config), (PEFT_WEIGHTS_FILE, &self.weights)];
        let part = |file: &str| folder.join(format!("{file}.part"));
        let failed = |file| move |source| AdapterError::File { file, source };
        fs::create_dir_all(folder).map_err(failed(PEFT_CONFIG_FILE))?;
        let write = || {
            for (file, bytes) in files {
                let mut part = File::create(part(file)).map_err(failed(file))?;
                part.write_all(bytes).and_then(|()| part.sync_all()).map_err(failed(file))?;
            }
            for (file, _) in files {
                fs::rename(part(file), folder.join(file)).map_err(failed(file))?;
            }
            Ok(())
        };
        let written = write();
        if written.is_err() {
            // Half a file would take room that a full disk lacks; one that stays does no other harm.
            for (file, _) in files {
                let _stays = fs::remove_file(part(file));
            }
        }
        written
    }
}

/// The name of a tensor in PEFT's file.
fn tensor_name((block, module): Place, tensor: &str) -> String {
    let parent = match module {
        TargetModule::Query | TargetModule::Key | TargetModule::Value | TargetModule::Output => {
            "self_attn"
        }
        TargetModule::Gate | TargetModule::Up | TargetModule::Down => "mlp",
    };
    let name = module.name();
    format!("base_model.model.model.layers.{block}.{parent}.{name}.{tensor}")
}

/// The longest file of tensors that an adapter for `model` has.
fn weights_bytes_max(config: &AdapterConfig, model: &ModelConfig) -> u64 {
    let values = |module: &TargetModule| {
        let shape = module_shape(*module, model).unwrap_or_default();
        let sizes = shape.map(|size| (size as u64).saturating_mul(VALUE_BYTES));
        let magnitudes = if config.weight_decomposed { sizes[0] } else { 0 };
        let of_rank = sizes[0].saturating_add(sizes[1]).saturating_mul(config.rank as u64);
        of_rank.saturating_add(magnitudes)
    };
    let of_module = if config.weight_decomposed { 3 } else { 2 };
    let tensors = of_module * config.target_modules.len() as u64;
    let of_block = config.target_modules.iter().map(values).fold(0, u64::saturating_add);
    let prompt = |tokens: usize| {
        let values = (tokens as u64).saturating_mul(model.hidden_size as u64);
        values.saturating_mul(VALUE_BYTES).saturating_add(HEADER_TENSOR_BYTES)
    };
    let of_block = of_block
        .saturating_add(tensors * HEADER_TENSOR_BYTES)
        .saturating_add(prompt(config.block_prompt_tokens));
    of_block
        .saturating_mul(u64::from(model.block_count))
        .saturating_add(prompt(config.prompt_tokens))
        .saturating_add(HEADER_TENSOR_BYTES)
}

fn check_length(file: &'static str, found: u64, max: u64) -> Result<(), AdapterError> {
    if found > max { Err(AdapterError::TooLong { file, found, max }) } else { Ok(()) }
}

fn read_file(folder: &Path, file: &'static str, max: u64) -> Result<Vec<u8>, AdapterError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte more than is allowed shows that there are too many.
        File::open(folder.join(file))?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| AdapterError::File { file, source })?;
    check_length(file, bytes.len() as u64, max)?;
    Ok(bytes)
}

/// The values of a tensor in binary32.
fn read(
    file: &[u8],
    name: String,
    tensor: &StoredTensor,
    expected: Vec<usize>,
) -> Result<Vec<f32>, AdapterError> {
    let (StoredType::Supported(kind), true) = (&tensor.stored_type, tensor.shape == expected)
    else {
        let found = format!("{:?} in {:?}", tensor.shape, tensor.stored_type);
        return Err(AdapterError::Tensor { name, expected, found });
    };
    let range = usize::try_from(tensor.offset).ok().zip(usize::try_from(tensor.bytes).ok());
    let bytes = range.and_then(|(start, length)| file.get(start..)?.get(..length));
    let bytes = bytes.expect("the header was checked against the file");
    let mut values = vec![0.0; expected.iter().product()];
    dequantize_row(*kind, bytes, &mut values);
    if values.iter().any(|value| !value.is_finite()) {
        return Err(AdapterError::NotFinite { name });
    }
    Ok(values)
}
