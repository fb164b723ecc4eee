//! Numbers of PEFT that are kept, and a step over a swarm that must come to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use safetensors::SafeTensors;
use serde_json::Value;
use umbel_client::ClientModel;
use umbel_client::train::data::Example;
use umbel_client::train::{StepReport, Trainer, TrainerSettings};
use umbel_engine::train::{AdamW, Adapter, PeftFiles, TrainingState};
use umbel_protocol::Span;

use super::{join, local, remote, start};
use crate::swarm::checkpoint;
use crate::workload::client_model;

/// What implementations in binary32 differ by in a loss of about 7, over four blocks.
const LOSS_ERROR_MAX: f64 = 1e-5;

/// Of the norm of all gradients, beside it.
const NORM_ERROR_MAX: f64 = 1e-4;

/// The tensors of a stored result, by name.
///
/// # Errors
/// Where the folder has none.
pub fn stored(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<f32>>> {
    let bytes = fs::read(folder.join("golden.safetensors"))?;
    let floats =
        |bytes: &[u8]| bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let tensors = SafeTensors::deserialize(&bytes)?;
    let tensors = tensors.iter().map(|(name, tensor)| (name.to_owned(), floats(tensor.data())));
    Ok(tensors.collect())
}

/// The ids of the prompt that the stored results are of.
///
/// # Errors
/// Where the fixture has none.
pub fn prompt() -> anyhow::Result<Vec<u32>> {
    let bytes = fs::read(Path::new(&checkpoint("llama")).join("golden.safetensors"))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let ids = tensors.tensor("input_ids")?;
    let ids = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
    ids.map(|id| Ok(u32::try_from(id)?)).collect()
}

/// Has three servers take the step of an adapter whose results are stored beside it, and compares losses
/// and gradients with those, and every bit with what one process does.
///
/// # Errors
/// Where something differs, or fails.
pub async fn step_over_three_servers(folder: &Path) -> anyhow::Result<()> {
    let first = start("0..1", None);
    let servers = [start("1..3", Some(&first)), start("3..4", Some(&first))];
    let step = StoredStep::read(folder)?;
    let (mut trainer, _) =
        remote(&join(&first).await?, &step.model, step.state.clone(), step.settings).await?;
    ensure!(trainer.routes()[0].len() == 3, "{:?}", trainer.routes());
    let taken = step.take(&mut trainer).await?;
    let mut alone = local(&step.model, step.state.clone(), step.settings);
    ensure!(step.take(&mut alone).await? == taken, "one process steps otherwise");
    ensure!(alone.state() == trainer.state(), "one process has another adapter");
    trainer.close().await;
    [first].iter().chain(&servers).for_each(|server| server.assert_no_errors());
    Ok(())
}

/// A step whose results are stored.
pub struct StoredStep {
    /// The model that it is of.
    pub model: Arc<ClientModel>,
    /// The adapter before it.
    pub state: TrainingState,
    /// How a trainer takes it.
    pub settings: TrainerSettings,
    text: Example,
    learning_rate: f64,
    /// Before and behind it.
    losses: [f64; 2],
    gradient_norm: f64,
}

impl StoredStep {
    /// The step beside an adapter.
    ///
    /// # Errors
    /// Where something is missing.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let model = client_model(&checkpoint("llama"))?;
        let files = PeftFiles::read(folder, model.config())?;
        let blocks = Span::new(0, model.config().block_count)?;
        let adapter = Adapter::from_peft(&files, model.config(), blocks)?;
        let golden: Value = serde_json::from_slice(&fs::read(folder.join("golden.json"))?)?;
        let number =
            |key: &str| golden[key].as_f64().with_context(|| format!("{key} in golden.json"));
        let adamw = AdamW { weight_decay: number("weight_decay")?, ..AdamW::default() };
        let settings_of_peft = (golden["betas"][0].as_f64(), number("eps")?);
        ensure!((Some(adamw.beta1), adamw.epsilon) == settings_of_peft, "{settings_of_peft:?}");
        let stored = stored(folder)?.into_iter().filter(|(name, _)| name.starts_with("grad."));
        let squares = stored.flat_map(|(_, values)| values).map(|value| f64::from(value).powi(2));
        Ok(Self {
            model,
            state: TrainingState::new(adapter, adamw),
            settings: TrainerSettings { clip: f64::INFINITY, ..TrainerSettings::default() },
            text: Example::of_text(prompt()?),
            learning_rate: number("lr")?,
            losses: [number("loss")?, number("loss_after")?],
            gradient_norm: squares.sum::<f64>().sqrt(),
        })
    }

    /// Takes the step, and compares losses and gradients with what is stored. Gives the loss behind it,
    /// too.
    ///
    /// # Errors
    /// Where something differs, or the trainer fails.
    pub async fn take(&self, trainer: &mut Trainer) -> anyhow::Result<(StepReport, f64)> {
        let is_near = |found: f64, expected: f64| (found - expected).abs() < LOSS_ERROR_MAX;
        let report = trainer.step(&[&self.text], self.learning_rate).await?;
        ensure!(is_near(report.loss, self.losses[0]), "{report:?}");
        let norm = self.gradient_norm;
        let error = (report.gradient_norm / norm - 1.0).abs();
        ensure!(error < NORM_ERROR_MAX, "{report:?}, not {norm}");
        let after = trainer.evaluate(&[&self.text]).await?;
        ensure!(is_near(after.loss, self.losses[1]), "{after:?}");
        Ok((report, after.loss))
    }
}
