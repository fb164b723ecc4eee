//! Opening a GGUF file.

mod files;

use std::path::Path;

use super::super::{Model, OpenModelError};
use crate::config::ModelConfig;
use crate::gguf::{self, GgufTensor, Value};
use crate::layout::Stacked;
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
        ManifestFile { name: name_of(path), sha256, bytes: Some(bytes) }
    });
    let metadata = header.metadata();
    let architecture = metadata.get("general.architecture").and_then(Value::as_text);
    let permuted = architecture == Some("llama");
    let file_type = metadata.get("general.file_type").and_then(Value::as_unsigned);
    let quantization = Quantization::Named(file_type.and_then(gguf::file_type_name));
    let manifest = Manifest::build(&config, files.collect(), &quantization, |wanted| {
        let Some(found) = header.tensors().get(&wanted.gguf_name) else {
            let (tensor, file) = (wanted.gguf_name.clone(), name_of(path));
            return Err(ManifestError::MissingTensor { tensor, file });
        };
        let stored = Some(match wanted.stacked {
            None => FoundInFile {
                weight_type: found.weight_type,
                shape: found.shape.clone(),
                offset: found.offset,
            },
            Some(stacked) => found_in(found, stacked).ok_or_else(|| ManifestError::WrongShape {
                tensor: wanted.gguf_name.clone(),
                file: name_of(&paths[found.part]),
                found: found.shape.clone(),
                expected: [&[stacked.count], &wanted.shape[..]].concat(),
            })?,
        });
        Ok(FoundTensor { file: found.part, stored, permuted })
    })?;
    let text = if parts.tokenizer { tokenizer::read_gguf(metadata) } else { TextParts::default() };
    let paths = paths.into_iter().map(Some).collect();
    Ok(Model { name, config, manifest, paths, text })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// One of the matrices that follow each other in a tensor; `None` where it is no stack of so many.
fn found_in(tensor: &GgufTensor, Stacked { index, count }: Stacked) -> Option<FoundInFile> {
    let (&first, shape) = tensor.shape.split_first()?;
    if first != count {
        return None;
    }
    // The header was checked: the whole tensor lies in the file.
    let each = tensor.bytes / u64::try_from(count).ok()?;
    let offset = tensor.offset + each * u64::try_from(index).ok()?;
    Some(FoundInFile { weight_type: tensor.weight_type, shape: shape.to_vec(), offset })
}
