//! Opening a checkpoint of safetensors files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::{Model, OpenModelError};
use crate::checkpoint::{
    CONFIG_FILE, Checkpoint, INDEX_FILE, SINGLE_FILE, Shard, read_config, read_index, weight_files,
};
use crate::layout::LayoutTensor;
use crate::manifest::{
    FoundInFile, FoundTensor, Manifest, ManifestError, ManifestFile, Quantization,
};
use crate::part::PartsNeeded;
use crate::plan;
use crate::progress::Progress;
use crate::safetensors::{self, SafetensorsHeader, StoredType, WeightIndex};
use crate::store::{Cache, ReadFileError};
use crate::tokenizer::{self, TextParts};

/// The checkpoint in a folder, all of whose files must be there.
pub(super) fn in_folder(
    folder: &Path,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Checkpoint, OpenModelError> {
    if !folder.join(CONFIG_FILE).is_file() {
        return Err(OpenModelError::NoConfig { folder: folder.to_owned() });
    }
    let config = read_config(folder)?;
    let index_path = folder.join(INDEX_FILE);
    let index = if index_path.is_file() {
        Some(read_index(&index_path)?)
    } else if folder.join(SINGLE_FILE).is_file() {
        None
    } else {
        return Err(OpenModelError::NoWeights { folder: folder.to_owned() });
    };
    let names = weight_files(&config, index.as_ref())?;
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    // A broken header is told before minutes go by in hashing.
    for path in &paths {
        read_header(path)?;
    }
    let digests = cache.digests(&paths, progress)?;
    let shards = names.into_iter().zip(paths).zip(digests).map(|((name, path), sha256)| {
        let bytes = path.metadata().ok().map(|metadata| metadata.len());
        Shard { name, path: Some(path), sha256, bytes }
    });
    Ok(Checkpoint { folder: folder.to_owned(), config, index, shards: shards.collect() })
}

/// Opens a checkpoint of which some files may be elsewhere.
pub(super) fn open(
    name: String,
    checkpoint: Checkpoint,
    parts: PartsNeeded,
) -> Result<Model, OpenModelError> {
    let Checkpoint { folder, config, index, shards } = checkpoint;
    plan::tensors(&config, parts)?;
    let headers = shards
        .iter()
        .map(|shard| shard.path.as_deref().map(read_header).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    let carriers = Carriers { index: index.as_ref(), shards: &shards, headers };
    let numbers = carriers.numbers();
    let files = shards.iter().map(|shard| ManifestFile {
        name: shard.name.clone(),
        sha256: shard.sha256,
        bytes: shard.bytes,
    });
    let manifest = Manifest::build(&config, files.collect(), &Quantization::AsTrained, |wanted| {
        carriers.find(wanted, &numbers)
    })?;
    let text =
        if parts.tokenizer { tokenizer::read_folder(&folder)? } else { TextParts::default() };
    let paths = shards.into_iter().map(|shard| shard.path).collect();
    Ok(Model { name, config, manifest, paths, text })
}

fn read_header(path: &Path) -> Result<SafetensorsHeader, OpenModelError> {
    safetensors::read_header(path)
        .map_err(|source| ReadFileError::io(path, source))?
        .map_err(|source| OpenModelError::Safetensors { path: path.to_owned(), source })
}

/// The files of a checkpoint, with the headers of those that are here.
struct Carriers<'a> {
    index: Option<&'a WeightIndex>,
    shards: &'a [Shard],
    headers: Vec<Option<SafetensorsHeader>>,
}

impl Carriers<'_> {
    fn numbers(&self) -> BTreeMap<&str, usize> {
        self.shards.iter().enumerate().map(|(number, one)| (one.name.as_str(), number)).collect()
    }

    fn find(
        &self,
        wanted: &LayoutTensor,
        numbers: &BTreeMap<&str, usize>,
    ) -> Result<FoundTensor, ManifestError> {
        let name = self.index.map_or(Some(SINGLE_FILE), |index| index.file_of(&wanted.name));
        let missing = |file: &str| {
            let (tensor, file) = (wanted.name.clone(), file.to_owned());
            ManifestError::MissingTensor { tensor, file }
        };
        let number = name.and_then(|name| numbers.get(name).copied());
        let file = number.ok_or_else(|| missing(INDEX_FILE))?;
        let carrier = &self.shards[file].name;
        let Some(header) = &self.headers[file] else {
            return Ok(FoundTensor { file, stored: None, permuted: false });
        };
        let found = header.tensors().get(&wanted.name).ok_or_else(|| missing(carrier))?;
        let weight_type = match &found.stored_type {
            StoredType::Supported(weight_type) => *weight_type,
            StoredType::Other(other) => {
                let (tensor, file, found) = (wanted.name.clone(), carrier.clone(), other.clone());
                return Err(ManifestError::UnsupportedType { tensor, file, found });
            }
        };
        let (shape, offset) = (found.shape.clone(), found.offset);
        let stored = Some(FoundInFile { weight_type, shape, offset });
        Ok(FoundTensor { file, stored, permuted: false })
    }
}
