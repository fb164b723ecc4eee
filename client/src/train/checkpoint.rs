//! A training on disk: one file, which is the last one or the one before it, never half of either.
//!
//! It is a file of safetensors: the values of the adapter and the optimizer's two rows, and in its
//! metadata what they belong to.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use umbel_engine::train::{AdamW, AdapterConfig, AdapterError, TargetModule, TrainingState};
use umbel_protocol::Span;
use umbel_protocol::training::StateKind;
use umbel_shard::ModelConfig;

/// The longest header: it names three tensors and some twenty numbers.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// The tensors of the file, in order.
const ROWS: [(&str, StateKind); 3] = [
    ("values", StateKind::Values),
    ("means", StateKind::Means),
    ("mean_squares", StateKind::MeanSquares),
];

/// Under which name the metadata has what is not a tensor.
const METADATA: &str = "umbel_training";

/// A training as it was behind one of its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The adapter with its optimizer.
    pub state: TrainingState,
    /// The name of the model's manifest.
    pub model: String,
    /// Sequences that have gone forward.
    pub sequences: u64,
    /// What else the one who trains wants back.
    pub other: Value,
}

impl Checkpoint {
    /// Writes the file beside its place first, so that what was there survives a full disk.
    ///
    /// # Errors
    /// [`CheckpointError::File`] where the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let count = self.state.value_count();
        let rows = ROWS.map(|(_, kind)| {
            let values = self.state.read(kind, 0..count).expect("the state has its values");
            values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
        });
        let header = self.header(count).to_string().into_bytes();
        let part = path.with_extension("part");
        let write = || -> io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            rows.iter().try_for_each(|row| file.write_all(row))?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().map_err(|source| {
            // Half a file would take room that a full disk lacks; that it cannot go away changes nothing.
            let _stays = fs::remove_file(&part);
            CheckpointError::File { source }
        })
    }

    fn header(&self, count: u64) -> Value {
        let config = self.state.adapter().config();
        let AdamW { beta1, beta2, epsilon, weight_decay } = self.state.settings();
        let modules: Vec<_> = config.target_modules.iter().map(|module| module.name()).collect();
        let about = json!({
            "model": self.model,
            "steps": self.state.steps(),
            "sequences": self.sequences,
            "rank": config.rank,
            "alpha": config.alpha,
            "rank_stabilized": config.rank_stabilized,
            "weight_decomposed": config.weight_decomposed,
            "dropout": config.dropout,
            "target_modules": modules,
            "prompt_tokens": config.prompt_tokens,
            "block_prompt_tokens": config.block_prompt_tokens,
            "adamw": [beta1, beta2, epsilon, weight_decay],
            "other": self.other,
        });
        let mut header = json!({ "__metadata__": { METADATA: about.to_string() } });
        for (place, (name, _)) in (0_u64..).zip(ROWS) {
            let offsets = [place * count * 4, (place + 1) * count * 4];
            header[name] = json!({ "dtype": "F32", "shape": [count], "data_offsets": offsets });
        }
        header
    }

    /// Reads a file that [`Checkpoint::write`] wrote, for a training of `model`.
    ///
    /// # Errors
    /// [`CheckpointError`] where there is none, or it is broken or of another model.
    pub fn read(path: &Path, model: &ModelConfig) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::File { source };
        let mut file = File::open(path).map_err(failed)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            return Err(CheckpointError::Malformed { what: "its header" });
        }
        let mut header = Vec::new();
        (&mut file).take(length).read_to_end(&mut header).map_err(failed)?;
        let header: Value = serde_json::from_slice(&header).map_err(|_| malformed("its header"))?;
        let about = header["__metadata__"][METADATA].as_str().ok_or(malformed("its metadata"))?;
        let about: Value = serde_json::from_str(about).map_err(|_| malformed("its metadata"))?;
        let (settings, sequences) = (settings(&about)?, number(&about, "sequences")?);
        let all = Span::new(0, model.block_count).map_err(|_| malformed("its blocks"))?;
        let numbers = (0, number(&about, "steps")?);
        let mut state = TrainingState::begin(settings, model, all, numbers)?;
        let count = usize::try_from(state.value_count()).map_err(|_| malformed("its size"))?;
        for (_, kind) in ROWS {
            let mut bytes = vec![0; count * 4];
            file.read_exact(&mut bytes).map_err(failed)?;
            let (values, _) = bytes.as_chunks();
            let values: Vec<_> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            state.write(kind, 0, &values).map_err(|_| malformed("its values"))?;
        }
        let name = about["model"].as_str().ok_or(malformed("its model"))?.to_owned();
        Ok(Self { state, model: name, sequences, other: about["other"].clone() })
    }
}

fn settings(about: &Value) -> Result<(AdapterConfig, AdamW), CheckpointError> {
    let float = |value: &Value| value.as_f64().ok_or(malformed("its settings"));
    let flag = |value: &Value| value.as_bool().ok_or(malformed("its settings"));
    let modules = about["target_modules"].as_array().ok_or(malformed("its settings"))?;
    let module = |name: &Value| {
        let known = TargetModule::ALL.into_iter().find(|module| name == module.name());
        known.ok_or(malformed("its settings"))
    };
    // Those that were written before there were prompts say nothing of them.
    let tokens = |key: &str| match about.get(key) {
        Some(_) => usize::try_from(number(about, key)?).map_err(|_| malformed("its settings")),
        None => Ok(0),
    };
    #[expect(clippy::cast_possible_truncation, reason = "it was written from binary32")]
    let config = AdapterConfig {
        rank: usize::try_from(number(about, "rank")?).map_err(|_| malformed("its settings"))?,
        alpha: float(&about["alpha"])? as f32,
        rank_stabilized: flag(&about["rank_stabilized"])?,
        // Those that were written before there was DoRA say nothing of it.
        weight_decomposed: about.get("weight_decomposed").map_or(Ok(false), flag)?,
        dropout: float(&about["dropout"])? as f32,
        target_modules: modules.iter().map(module).collect::<Result<_, _>>()?,
        prompt_tokens: tokens("prompt_tokens")?,
        block_prompt_tokens: tokens("block_prompt_tokens")?,
    };
    let adamw = AdamW {
        beta1: float(&about["adamw"][0])?,
        beta2: float(&about["adamw"][1])?,
        epsilon: float(&about["adamw"][2])?,
        weight_decay: float(&about["adamw"][3])?,
    };
    Ok((config, adamw))
}

fn number(about: &Value, key: &str) -> Result<u64, CheckpointError> {
    about[key].as_u64().ok_or(malformed("its settings"))
}

const fn malformed(what: &'static str) -> CheckpointError {
    CheckpointError::Malformed { what }
}

/// A checkpoint that was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refuses; what was there before still is.
    #[error("the checkpoint cannot be written or read")]
    File {
        /// What the system said.
        source: io::Error,
    },
    /// It is not what a training writes.
    #[error("the checkpoint is broken: {what}")]
    Malformed {
        /// Which part of it.
        what: &'static str,
    },
    /// Its adapter is none, or not for the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

#[cfg(test)]
mod tests;
