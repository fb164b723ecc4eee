//! A head of one's own on the hidden states of a block in the middle of a model: two layers with a bend
//! between them, which say of each token whether it belongs to some kind, such as the digits.
//!
//! ```sh
//! cargo run -p umbel-client --example custom_head -- ADDR smollm2-135m 12 texts.txt FOLDER
//! ```
//!
//! The blocks before the one that is named are computed by the servers of a swarm, and those behind it by
//! nobody. A fifth of the lines is not learned, and shows how often the head is right.

#![expect(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::json;
use umbel_client::train::FrozenBlocks;
use umbel_client::train::head::{self, HeadError, Linear};
use umbel_client::{ClientModel, Swarm, SwarmConfig};
use umbel_engine::HiddenStates;
use umbel_engine::train::AdamW;
use umbel_protocol::Span;
use umbel_shard::{Cache, ModelSource, Silent};

/// Tokens that go through the blocks together; no text is longer.
const TOKENS_MAX: u32 = 512;

/// Every so many texts one is not learned.
const HELD_OUT: usize = 5;

const STEPS: usize = 100;

const LEARNING_RATE: f64 = 0.01;

/// Values between the two layers.
const INNER: usize = 32;

/// Two layers, and what is below zero between them is cut off. The result of a token is above zero where it
/// belongs to the kind.
pub struct Probe {
    inner: Linear,
    outer: Linear,
}

impl Probe {
    /// A new head over hidden states of this size.
    pub fn begin(hidden_size: usize) -> Result<Self, HeadError> {
        let settings = AdamW::default();
        let inner = Linear::begin(INNER, hidden_size, settings, 1)?;
        Ok(Self { inner, outer: Linear::begin(1, INNER, settings, 2)? })
    }

    /// Reads one that [`Probe::save`] has written.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let (_, mut layers) = head::load(folder, AdamW::default())?;
        let mut take = |name| layers.remove(name).with_context(|| format!("no layer {name}"));
        Ok(Self { inner: take("inner")?, outer: take("outer")? })
    }

    /// Writes both layers, and of which block the hidden states are.
    pub fn save(&self, folder: &Path, block: u32) -> Result<(), HeadError> {
        head::save(
            folder,
            &json!({ "block": block }),
            &[("inner", &self.inner), ("outer", &self.outer)],
        )
    }

    /// A result for each token.
    pub fn results(&self, hidden: &HiddenStates) -> Result<Vec<f32>, HeadError> {
        let inner = self.inner.forward(&hidden.to_values())?;
        self.outer.forward(&inner.iter().map(|value| value.max(0.0)).collect::<Vec<_>>())
    }

    /// The mean cross-entropy, and its gradient by the hidden states, for what is learned before them.
    pub fn learn(
        &mut self,
        hidden: &HiddenStates,
        belongs: &[bool],
    ) -> Result<(f64, HiddenStates), HeadError> {
        let values = hidden.to_values();
        let inner = self.inner.forward(&values)?;
        let bent: Vec<_> = inner.iter().map(|value| value.max(0.0)).collect();
        let results = self.outer.forward(&bent)?;
        let mut loss = 0.0;
        let mut of_results = Vec::new();
        for (&result, &belongs) in results.iter().zip(belongs) {
            let wanted = if belongs { 1.0 } else { 0.0 };
            // The logistic loss, written so that no exponential overflows.
            loss += f64::from((-result.abs()).exp().ln_1p() + result.max(0.0) - wanted * result);
            of_results.push((1.0 / (1.0 + (-result).exp()) - wanted) / results.len() as f32);
        }
        let mut of_bent = self.outer.backward(&bent, &of_results)?;
        of_bent
            .iter_mut()
            .zip(&inner)
            .filter(|(_, inner)| **inner <= 0.0)
            .for_each(|(of, _)| *of = 0.0);
        let of_hidden = self.inner.backward(&values, &of_bent)?;
        let of_hidden = HiddenStates::from_values(of_hidden, hidden.hidden_size());
        Ok((loss / results.len() as f64, of_hidden.expect("the layer has the size of its input")))
    }

    /// Takes a step of both layers.
    pub fn step(&mut self) -> Result<f64, HeadError> {
        head::step(&mut [&mut self.inner, &mut self.outer], LEARNING_RATE, 1.0)
    }
}

/// What came of a training.
pub struct Outcome {
    /// The head.
    pub probe: Probe,
    /// The mean loss of each step.
    pub losses: Vec<f64>,
    /// The share of the tokens of texts that were not learned of which it is right.
    pub right: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [address, model, block, data, folder] = &*arguments else {
        bail!("which swarm, model, block, texts and folder? ADDR MODEL BLOCK FILE FOLDER");
    };
    let join = vec![address.parse()?];
    let swarm = Arc::new(Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await?);
    let model = ClientModel::open(&ModelSource::parse(model)?, &Cache::new("models"), &Silent)?;
    let tokenizer = model.tokenizer().context("the model has no tokenizer")?;
    let has_digit = |id: u32| {
        let text = tokenizer.decode(&[id]).unwrap_or_default();
        text.chars().any(|character| character.is_ascii_digit())
    };
    let texts = std::fs::read_to_string(data)?;
    let texts: Vec<_> = texts.lines().map(|line| model.encode(line)).collect::<Result<_, _>>()?;
    let block = block.parse()?;
    let outcome = train(swarm, &model, block, &texts, &has_digit).await?;
    println!("loss {:.4} at first, {:.4} at last", outcome.losses[0], outcome.losses[STEPS - 1]);
    println!("{:.1}% of the tokens that were not learned are right", outcome.right * 100.0);
    outcome.probe.save(Path::new(folder), block)?;
    Ok(())
}

/// Learns from all texts but every fifth which tokens `belongs` holds for, from what enters `block`.
pub async fn train(
    swarm: Arc<Swarm>,
    model: &ClientModel,
    block: u32,
    texts: &[Vec<u32>],
    belongs: &dyn Fn(u32) -> bool,
) -> anyhow::Result<Outcome> {
    let before = Span::new(0, block)?;
    let mut blocks = FrozenBlocks::open(swarm, model, before, None, TOKENS_MAX).await?;
    let is_held_out = |place: &usize| place % HELD_OUT == HELD_OUT - 1;
    let (held_out, learned): (Vec<_>, Vec<_>) = (0..texts.len()).partition(is_held_out);
    let mut passed = Vec::new();
    for places in [learned, held_out] {
        let ids: Vec<&[u32]> = places.iter().map(|&place| &*texts[place]).collect();
        let lengths: Vec<_> =
            ids.iter().map(|ids| u32::try_from(ids.len())).collect::<Result<_, _>>()?;
        let left = blocks.forward(&lengths, &model.ends().embed(&ids.concat())?).await?;
        let wanted: Vec<_> = ids.concat().into_iter().map(belongs).collect();
        passed.push((left, wanted));
    }
    blocks.close().await;
    let mut probe = Probe::begin(model.config().hidden_size)?;
    let (left, wanted) = &passed[0];
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let (loss, _) = probe.learn(left.output(), wanted)?;
        probe.step()?;
        losses.push(loss);
    }
    let (left, wanted) = &passed[1];
    let results = probe.results(left.output())?;
    let right = results.iter().zip(wanted).filter(|(result, wanted)| (**result > 0.0) == **wanted);
    Ok(Outcome { probe, losses, right: right.count() as f64 / wanted.len().max(1) as f64 })
}
