//! Where a training begins: its texts, and a new adapter or the checkpoint of an earlier part.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use umbel_client::ClientModel;
use umbel_client::train::RemoteBlocks;
use umbel_client::train::checkpoint::Checkpoint;
use umbel_client::train::data::{DataSet, Example, TextReader};
use umbel_client::train::prompt;
use umbel_client::train::run::RunSettings;
use umbel_client::train::schedule::Schedule;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TrainingState};
use umbel_protocol::Span;

use super::saving::{CHECKPOINT_FILE, Watch};
use crate::args::train::{AdapterArguments, Method, TrainArguments};

/// The texts to learn, and those for validation.
pub(super) type Texts = (Vec<Example>, Vec<Example>);

/// What may be another behind a divergence: how far the steps go that are still to be taken.
const STRIDE: [&str; 4] = ["learning rate", "schedule", "warm-up", "clip"];

/// Under which key of a checkpoint that what follows has diverged.
pub(super) const DIVERGED: &str = "diverged";

/// Under which key what is learned is, where it is no LoRA.
pub(super) const METHOD: &str = "method";

/// Under which key it is that a LoRA has magnitudes.
pub(super) const DORA: &str = "dora";

/// Under which key it is whether a LoRA is scaled by the root of its rank.
const RANK_STABILIZED: &str = "rank stabilized";

/// Under which key the digest of all texts is.
pub(super) const DATA_SET: &str = "data set";

/// Where a training begins.
pub(super) struct Begun {
    pub(super) state: TrainingState,
    pub(super) sequences: u64,
    pub(super) watch: Watch,
    /// What it is of, beside the state: a training that goes on must be of the same.
    pub(super) identity: Value,
}

/// Whether the files are there that are read once the model is: it may take an hour to fetch. They are not
/// opened, since what comes from another program can be read but once.
pub(super) fn look_for_texts(arguments: &TrainArguments) -> anyhow::Result<()> {
    let named = [
        ("--data", Some(&arguments.data)),
        ("--validation-data", arguments.learning.validation_data.as_ref()),
    ];
    for (flag, path) in named {
        if let Some(path) = path {
            path.metadata().with_context(|| format!("{flag} {}", path.display()))?;
        }
    }
    Ok(())
}

pub(super) fn read_texts(arguments: &TrainArguments, model: &ClientModel) -> anyhow::Result<Texts> {
    let learning = &arguments.learning;
    let context = model.config().context_tokens;
    let left = context.saturating_sub(arguments.adapter.prompt_tokens().into());
    if left < 2 {
        bail!(
            "--prompt-tokens leaves no room for a text in the model's context of {context} tokens"
        );
    }
    let longest = (learning.max_tokens as usize).min(left);
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
    if !arguments.local {
        let prompt_tokens = arguments.adapter.prompt_tokens().into();
        check_lengths(&texts, prompt_tokens, RemoteBlocks::tokens_max(model) as usize)?;
    }
    if learning.patience.is_some() && texts.1.is_empty() {
        bail!("--patience looks at texts that are not learned: give more of them, or --validation");
    }
    Ok(texts)
}

/// Whether each text is short enough to be sent to a server.
fn check_lengths(texts: &Texts, prompt_tokens: usize, max: usize) -> anyhow::Result<()> {
    let longest = longest(texts, prompt_tokens);
    if longest > max {
        bail!(
            "a text of {longest} tokens, with those of a prompt, is longer than the {max} that a message \
             to a server holds of this model: cut texts with --max-tokens {}",
            // Behind its last token nothing is foretold.
            (max + 1).saturating_sub(prompt_tokens)
        );
    }
    Ok(())
}

/// Tokens of the longest text with those of a prompt.
pub(super) fn longest((learned, validation): &Texts, prompt_tokens: usize) -> usize {
    let texts = learned.iter().chain(validation);
    texts.map(|text| prompt_tokens + text.input_count()).max().unwrap_or_default()
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
    let learning = &arguments.learning;
    let adapter = adapter(&arguments.adapter, model, learning.seed)?;
    let adamw = AdamW { weight_decay: learning.weight_decay, ..AdamW::default() };
    let (state, watch) = (TrainingState::new(adapter, adamw), Watch::default());
    Ok(Begun { state, sequences: 0, watch, identity })
}

/// What is learned, before the first step.
fn adapter(typed: &AdapterArguments, model: &ClientModel, seed: u64) -> anyhow::Result<Adapter> {
    let deep = match typed.method {
        Method::Lora => {
            let config = AdapterConfig {
                rank: typed.rank.into(),
                alpha: typed.alpha.unwrap_or(2.0 * f32::from(typed.rank)),
                rank_stabilized: typed.rank_stabilized,
                weight_decomposed: typed.dora,
                dropout: typed.dropout,
                target_modules: typed.target_modules(),
                ..AdapterConfig::default()
            };
            let all = Span::new(0, model.config().block_count)?;
            return Ok(Adapter::begin(config, model.config(), all, seed)?);
        }
        Method::Ptune => false,
        Method::DeepPtune => true,
    };
    let text = match &typed.prompt_text {
        Some(text) => model.encode(text).context("--prompt-text")?,
        None => Vec::new(),
    };
    Ok(prompt::begin(model, (typed.prompt_tokens().into(), deep), &text, seed)?)
}

fn resume(
    arguments: &TrainArguments,
    model: &ClientModel,
    identity: Value,
) -> anyhow::Result<Begun> {
    let path = arguments.out.join(CHECKPOINT_FILE);
    let checkpoint = Checkpoint::read(&path, model.config())
        .with_context(|| format!("cannot go on from {}", path.display()))?;
    let Checkpoint { state, sequences, mut other, .. } = checkpoint;
    if let Some(other) = other.as_object_mut() {
        // Others have not always said it; the state has.
        let rank_stabilized = state.adapter().config().rank_stabilized;
        other.insert(RANK_STABILIZED.to_owned(), rank_stabilized.into());
    }
    let mut may_differ = if other[DIVERGED] == true { STRIDE.to_vec() } else { Vec::new() };
    if other[DATA_SET].is_null() {
        // One from before this was written.
        may_differ.push(DATA_SET);
    }
    if let Some(key) = difference(&other, &identity, &may_differ) {
        bail!("{} is of a training with another {key}", path.display());
    }
    let watch = Watch::read(&other).with_context(|| format!("{} is broken", path.display()))?;
    let watch = if arguments.learning.patience.is_some() { watch.choosing() } else { watch };
    Ok(Begun { state, sequences, watch, identity })
}

/// What decides which step comes after which.
fn identity(arguments: &TrainArguments, model: &ClientModel, texts: &Texts) -> Value {
    let (learned, validation) = texts;
    let (adapter, learning) = (&arguments.adapter, &arguments.learning);
    let tokens =
        |examples: &[Example]| -> usize { examples.iter().map(Example::input_count).sum() };
    let mut identity = json!({
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
    });
    let modules: Vec<_> = adapter.target_modules.iter().map(|module| module.name()).collect();
    let of_adapter = match adapter.method {
        Method::Lora => vec![
            ("rank", json!(adapter.rank)),
            ("alpha", json!(adapter.alpha)),
            (RANK_STABILIZED, json!(adapter.rank_stabilized)),
            ("dropout", json!(adapter.dropout)),
            ("target modules", json!(modules)),
        ],
        Method::Ptune | Method::DeepPtune => vec![
            (METHOD, json!(adapter.method.name())),
            ("prompt tokens", json!(adapter.prompt_tokens())),
            ("first prompt", json!(adapter.prompt_text)),
        ],
    };
    // Trainings from before there was DoRA say nothing of it.
    let dora = adapter.dora.then_some((DORA, json!(true)));
    // Last, since they follow from the others too.
    let of_texts = [
        ("texts", json!([learned.len(), validation.len()])),
        ("tokens", json!([tokens(learned), tokens(validation)])),
        (DATA_SET, json!(digest(texts))),
    ];
    for (key, value) in of_adapter.into_iter().chain(dora).chain(of_texts) {
        identity[key] = value;
    }
    identity
}

/// A digest of all texts in their order, and of what is learned of each.
fn digest((learned, validation): &Texts) -> String {
    let mut hash = Sha256::new();
    for texts in [learned, validation] {
        hash.update((texts.len() as u64).to_le_bytes());
        for text in texts {
            hash.update((text.input_count() as u64).to_le_bytes());
            text.inputs().iter().for_each(|id| hash.update(id.to_le_bytes()));
            for target in text.targets() {
                // No token has the number of those that are not learned.
                hash.update(target.map_or(u64::MAX, u64::from).to_le_bytes());
            }
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first thing in which two trainings differ, and may not.
fn difference(one: &Value, other: &Value, may_differ: &[&str]) -> Option<String> {
    let keys = other.as_object()?.keys().map(String::as_str);
    // What only one of the two says is a difference too.
    let mut keys = keys.chain([DORA]).filter(|key| !may_differ.contains(key));
    keys.find(|key| !is_same(&one[key], &other[key])).map(str::to_owned)
}

/// Whether two values are the same. A fraction that was written and read may have another last bit, as the 17
/// digits have in which 0.03 in binary32 is written.
fn is_same(one: &Value, other: &Value) -> bool {
    let fraction = |value: &Value| value.as_f64().filter(|_| value.is_f64());
    match (fraction(one), fraction(other)) {
        (Some(one), Some(other)) => (one - other).abs() <= 2.0 * f64::EPSILON * one.abs(),
        (_, _) => one == other,
    }
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

#[cfg(test)]
mod tests;
