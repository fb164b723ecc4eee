//! Opening a GGUF file.

mod files;

use std::path::Path;

use super::super::{Model, OpenModelError};
use crate::config::ModelConfig;
use crate::gguf::{self, Value};
use crate::manifest::{
    FoundInFile, FoundTensor, Manifest, ManifestError, ManifestFile, Quantization,
};
use crate::part::PartsNeeded;
use crate::plan;
use crate::progress::Progress;
use crate::store::Cache;
use crate::tokenizer::{self, TextParts};

use files::GgufFiles;
pub(super) use files::model_name;

/// Opens a GGUF file as the model `name`, with those beside it where it is one part of several.
pub(super) fn open(
    name: String,
    path: &Path,
    cache: &Cache,
    parts: PartsNeeded,
    progress: &dyn Progress,
) -> Result<Model, OpenModelError> {
    let GgufFiles { header, rope_factors, files } = GgufFiles::read(path)?;
    let config = ModelConfig::from_gguf(&header, rope_factors)
        .map_err(|source| OpenModelError::Config { path: path.to_owned(), source })?;
    plan::tensors(&config, parts)?;
    let (paths, lengths): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let digests = cache.digests(&paths, progress)?;
    let files = paths.iter().zip(lengths).zip(digests).map(|((path, bytes), sha256)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ManifestFile { name, sha256, bytes: Some(bytes) }
    });
    let metadata = header.metadata();
    let architecture = metadata.get("general.architecture").and_then(Value::as_text);
    let permuted = architecture == Some("llama");
    let file_type = metadata.get("general.file_type").and_then(Value::as_unsigned);
    let quantization = Quantization::Named(file_type.and_then(gguf::file_type_name));
    let manifest = Manifest::build(&config, files.collect(), &quantization, |wanted| {
        let Some(found) = header.tensors().get(&wanted.gguf_name) else {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(ManifestError::MissingTensor { tensor: wanted.gguf_name.clone(), file });
        };
        let (weight_type, shape, offset) = (found.weight_type, found.shape.clone(), found.offset);
        let stored = Some(FoundInFile { weight_type, shape, offset });
        Ok(FoundTensor { file: found.part, stored, permuted })
    })?;
    let text = if parts.tokenizer { tokenizer::read_gguf(metadata) } else { TextParts::default() };
    let paths = paths.into_iter().map(Some).collect();
    Ok(Model { name, config, manifest, paths, text })
}
