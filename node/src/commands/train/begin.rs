//! Where a training begins: its texts, and a new adapter or the checkpoint of an earlier part.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use umbel_client::ClientModel;
use umbel_client::train::checkpoint::Checkpoint;
use umbel_client::train::data::{DataSet, Example, TextReader};
use umbel_client::train::run::RunSettings;
use umbel_client::train::schedule::Schedule;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TrainingState};
use umbel_protocol::Span;

use super::saving::{CHECKPOINT_FILE, Watch};
use crate::args::train::TrainArguments;

/// The texts to learn, and those for validation.
pub(super) type Texts = (Vec<Example>, Vec<Example>);

/// What may be another behind a divergence: how far the steps go that are still to be taken.
const STRIDE: [&str; 4] = ["learning rate", "schedule", "warm-up", "clip"];

/// Under which key of a checkpoint that what follows has diverged.
pub(super) const DIVERGED: &str = "diverged";

/// Where a training begins.
pub(super) struct Begun {
    pub(super) state: TrainingState,
    pub(super) sequences: u64,
    pub(super) watch: Watch,
    /// What it is of, beside the state: a training that goes on must be of the same.
    pub(super) identity: Value,
}

pub(super) fn read_texts(arguments: &TrainArguments, model: &ClientModel) -> anyhow::Result<Texts> {
    let learning = &arguments.learning;
    let longest = (learning.max_tokens as usize).min(model.config().context_tokens);
    let read = |path: &Path| -> anyhow::Result<DataSet> {
        let data = DataSet::read(path, &TextReader::of(model), longest)?;
        let (path, DataSet { cut, left_out, .. }) = (path.display(), &data);
        if *cut > 0 {
            tracing::warn!(%path, texts = cut, tokens = longest, "texts were cut");
        }
        if *left_out > 0 {
            tracing::warn!(%path, texts = left_out, "texts have nothing to learn and were left out");
        }
        Ok(data)
    };
    let data = read(&arguments.data)?;
    let texts = match &learning.validation_data {
        Some(others) => (data.examples, read(others)?.examples),
        None => data.split(learning.validation, learning.seed),
    };
    if learning.patience.is_some() && texts.1.is_empty() {
        bail!("--patience looks at texts that are not learned: give more of them, or --validation");
    }
    Ok(texts)
}

pub(super) fn begin(
    arguments: &TrainArguments,
    model: &ClientModel,
    texts: &Texts,
) -> anyhow::Result<Begun> {
    let identity = identity(arguments, model, texts);
    if arguments.resume {
        return resume(arguments, model, identity);
    }
    if arguments.out.join(CHECKPOINT_FILE).exists() {
        bail!(
            "there is a training in {}: --resume goes on with it, or give another --out",
            arguments.out.display()
        );
    }
    let typed = &arguments.adapter;
    let config = AdapterConfig {
        rank: typed.rank.into(),
        alpha: typed.alpha.unwrap_or(2.0 * f32::from(typed.rank)),
        rank_stabilized: typed.rank_stabilized,
        dropout: typed.dropout,
        target_modules: typed.target_modules.clone(),
    };
    let learning = &arguments.learning;
    let all = Span::new(0, model.config().block_count)?;
    let adapter = Adapter::begin(config, model.config(), all, learning.seed)?;
    let adamw = AdamW { weight_decay: learning.weight_decay, ..AdamW::default() };
    let (state, watch) = (TrainingState::new(adapter, adamw), Watch::default());
    Ok(Begun { state, sequences: 0, watch, identity })
}

fn resume(
    arguments: &TrainArguments,
    model: &ClientModel,
    identity: Value,
) -> anyhow::Result<Begun> {
    let path = arguments.out.join(CHECKPOINT_FILE);
    let checkpoint = Checkpoint::read(&path, model.config())
        .with_context(|| format!("cannot go on from {}", path.display()))?;
    let Checkpoint { state, sequences, other, .. } = checkpoint;
    let may_differ: &[&str] = if other[DIVERGED] == true { &STRIDE } else { &[] };
    if let Some(key) = difference(&other, &identity, may_differ) {
        bail!("{} is of a training with another {key}", path.display());
    }
    let watch = Watch::read(&other).with_context(|| format!("{} is broken", path.display()))?;
    Ok(Begun { state, sequences, watch, identity })
}

/// What decides which step comes after which.
fn identity(
    arguments: &TrainArguments,
    model: &ClientModel,
    (learned, validation): &Texts,
) -> Value {
    let (adapter, learning) = (&arguments.adapter, &arguments.learning);
    let tokens =
        |examples: &[Example]| -> usize { examples.iter().map(Example::input_count).sum() };
    let modules: Vec<_> = adapter.target_modules.iter().map(|module| module.name()).collect();
    json!({
        "model": model.id().to_string(),
        "epochs": learning.epochs,
        "batch": learning.batch,
        "seed": learning.seed,
        "learning rate": learning.learning_rate,
        "schedule": format!("{:?}", learning.schedule),
        "warm-up": learning.warmup_steps,
        "weight decay": learning.weight_decay,
        "clip": learning.clip,
        "microbatch": learning.microbatch_tokens,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "target modules": modules,
        // Last, since they follow from the others too.
        "texts": [learned.len(), validation.len()],
        "tokens": [tokens(learned), tokens(validation)],
    })
}

/// The first thing in which two trainings differ, and may not.
fn difference(one: &Value, other: &Value, may_differ: &[&str]) -> Option<String> {
    let keys = other.as_object()?.keys();
    let mut keys = keys.filter(|key| !may_differ.contains(&key.as_str()));
    keys.find(|key| one[key.as_str()] != other[key.as_str()]).cloned()
}

pub(super) fn run_settings(arguments: &TrainArguments) -> RunSettings {
    let learning = &arguments.learning;
    RunSettings { epochs: learning.epochs, batch: learning.batch.into(), seed: learning.seed }
}

pub(super) fn schedule(arguments: &TrainArguments, texts: &Texts) -> Schedule {
    let learning = &arguments.learning;
    Schedule {
        learning_rate: learning.learning_rate,
        warmup_steps: learning.warmup_steps,
        steps: run_settings(arguments).steps(texts.0.len()),
        decay: learning.schedule,
    }
}
