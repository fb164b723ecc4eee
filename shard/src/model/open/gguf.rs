//! Opening a GGUF file.

use std::path::Path;

use super::super::{Model, OpenModelError};
use crate::config::{ConfigError, ModelConfig};
use crate::gguf::{self, GgufHeader, Value};
use crate::manifest::{
    FoundInFile, FoundTensor, Manifest, ManifestError, ManifestFile, Quantization,
};
use crate::mapping::Mapping;
use crate::part::PartsNeeded;
use crate::plan;
use crate::progress::Progress;
use crate::store::{Cache, ReadFileError};
use crate::tokenizer;
use crate::weight::WeightType;

/// The tensor of the factors by which Llama 3.1 and later files stretch their context.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Opens a GGUF file as the model `name`.
pub(super) fn open(
    name: String,
    path: &Path,
    cache: &Cache,
    parts: PartsNeeded,
    progress: &dyn Progress,
) -> Result<Model, OpenModelError> {
    let (header, config, file_bytes) = read(path)?;
    plan::tensors(&config, parts)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let digests = cache.digests(&[path.to_owned()], progress)?;
    let files = digests.into_iter().map(|sha256| ManifestFile {
        name: file.clone(),
        sha256,
        bytes: Some(file_bytes),
    });
    let metadata = header.metadata();
    let architecture = metadata.get("general.architecture").and_then(Value::as_text);
    let permuted = architecture == Some("llama");
    let file_type = metadata.get("general.file_type").and_then(Value::as_unsigned);
    let quantization = Quantization::Named(file_type.and_then(gguf::file_type_name));
    let manifest = Manifest::build(&config, files.collect(), &quantization, |wanted| {
        let Some(found) = header.tensors().get(&wanted.gguf_name) else {
            let (tensor, file) = (wanted.gguf_name.clone(), file.clone());
            return Err(ManifestError::MissingTensor { tensor, file });
        };
        let (weight_type, shape, offset) = (found.weight_type, found.shape.clone(), found.offset);
        let stored = Some(FoundInFile { weight_type, shape, offset });
        Ok(FoundTensor { file: 0, stored, permuted })
    })?;
    let (tokenizer, chat_template, special_tokens) =
        if parts.tokenizer { tokenizer::read_gguf(metadata) } else { Default::default() };
    let paths = vec![Some(path.to_owned())];
    Ok(Model { name, config, manifest, paths, tokenizer, chat_template, special_tokens })
}

/// Reads the header and the configuration.
///
/// The file is mapped only meanwhile, so that the vocabulary's pages do not stay resident.
fn read(path: &Path) -> Result<(GgufHeader, ModelConfig, u64), OpenModelError> {
    let mapping = Mapping::open(path).map_err(|source| ReadFileError::io(path, source))?;
    let bytes = mapping.bytes();
    let header = gguf::parse_header(bytes)
        .map_err(|source| OpenModelError::Gguf { path: path.to_owned(), source })?;
    let config = rope_factors(&header, bytes)
        .and_then(|factors| ModelConfig::from_gguf(&header, factors))
        .map_err(|source| OpenModelError::Config { path: path.to_owned(), source })?;
    Ok((header, config, bytes.len() as u64))
}

fn rope_factors(header: &GgufHeader, bytes: &[u8]) -> Result<Option<Vec<f32>>, ConfigError> {
    let Some(tensor) = header.tensors().get(ROPE_FACTORS) else {
        return Ok(None);
    };
    if tensor.weight_type != WeightType::F32 {
        let (field, found) = (ROPE_FACTORS.to_owned(), tensor.weight_type.name().to_owned());
        return Err(ConfigError::Unsupported { field, found });
    }
    let range = usize::try_from(tensor.offset).ok().zip(usize::try_from(tensor.bytes).ok());
    let values = range.and_then(|(start, length)| bytes.get(start..start.checked_add(length)?));
    let missing = || ConfigError::Missing { field: ROPE_FACTORS.to_owned() };
    let quads = values.ok_or_else(missing)?.as_chunks::<4>().0;
    Ok(Some(quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect()))
}
