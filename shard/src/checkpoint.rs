//! The files of a Hugging Face checkpoint, in a folder or on the hub.

use std::path::{Path, PathBuf};

use crate::config::ModelConfig;
use crate::manifest::{ManifestError, Sha256Digest};
use crate::model::OpenModelError;
use crate::part::PartsNeeded;
use crate::plan;
use crate::safetensors::WeightIndex;
use crate::store::read_text;

/// The configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// How an answer is begun and ended, where the configuration does not say it all.
pub(crate) const GENERATION_FILE: &str = "generation_config.json";
/// The weights of a checkpoint that is not sharded.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Which file holds which tensor, of a checkpoint that is.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// Largest `config.json` or `generation_config.json`; the longest known have 10 kB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest index: a hundred thousand tensors take some 10 MB.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// A checkpoint whose configuration is here and whose weights are here in part or whole.
pub(crate) struct Checkpoint {
    /// Where the configuration and the tokenizer are.
    pub(crate) folder: PathBuf,
    pub(crate) config: ModelConfig,
    /// Which file holds which tensor; `None` where there is one file.
    pub(crate) index: Option<WeightIndex>,
    /// The files that carry tensors, in the order of their names.
    pub(crate) shards: Vec<Shard>,
}

/// A file that carries tensors.
pub(crate) struct Shard {
    pub(crate) name: String,
    /// Where it is; `None` where it is not here.
    pub(crate) path: Option<PathBuf>,
    pub(crate) sha256: Sha256Digest,
    pub(crate) bytes: Option<u64>,
}

/// Reads `config.json`, and `generation_config.json` where there is one.
pub(crate) fn read_config(folder: &Path) -> Result<ModelConfig, OpenModelError> {
    let path = folder.join(CONFIG_FILE);
    let text = read_text(&path, CONFIG_BYTES_MAX)?;
    let config =
        ModelConfig::from_json(&text).map_err(|source| OpenModelError::Config { path, source })?;
    let path = folder.join(GENERATION_FILE);
    if !path.is_file() {
        return Ok(config);
    }
    let text = read_text(&path, CONFIG_BYTES_MAX)?;
    config.with_generation_json(&text).map_err(|source| OpenModelError::Config { path, source })
}

/// Reads `model.safetensors.index.json`.
pub(crate) fn read_index(path: &Path) -> Result<WeightIndex, OpenModelError> {
    let text = read_text(path, INDEX_BYTES_MAX)?;
    WeightIndex::from_json(&text)
        .map_err(|source| OpenModelError::Index { path: path.to_owned(), source })
}

/// The files that carry the tensors of the whole model, in the order of their names.
pub(crate) fn weight_files(
    config: &ModelConfig,
    index: Option<&WeightIndex>,
) -> Result<Vec<String>, OpenModelError> {
    let Some(index) = index else {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    };
    let everything = PartsNeeded::everything();
    if let Some(missing) = plan::tensors(config, everything)?
        .into_iter()
        .find(|tensor| index.file_of(&tensor.name).is_none())
    {
        let (tensor, file) = (missing.name, INDEX_FILE.to_owned());
        return Err(ManifestError::MissingTensor { tensor, file }.into());
    }
    let files = plan::files(config, everything, |tensor| index.file_of(tensor))?;
    Ok(files.into_iter().map(str::to_owned).collect())
}
