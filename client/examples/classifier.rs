//! A classifier over a model whose blocks are on the servers of a swarm:
//!
//! ```sh
//! cargo run -p umbel-client --example classifier -- ADDR smollm2-135m texts.jsonl FOLDER
//! ```
//!
//! Each line of the texts is a JSON object with a `label`, and a `text`, or `token_ids` for models without a
//! tokenizer. A fifth of the lines is not learned, and shows how often the classifier is right.

#![expect(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::Value;
use umbel_client::train::FrozenBlocks;
use umbel_client::train::head::Classifier;
use umbel_client::{ClientModel, Swarm, SwarmConfig};
use umbel_engine::train::AdamW;
use umbel_protocol::Span;
use umbel_shard::{Cache, ModelSource, Silent};

/// Tokens that go through the blocks together; no text is longer.
const TOKENS_MAX: u32 = 512;

/// Every so many lines one is not learned.
const HELD_OUT: usize = 5;

const EPOCHS: usize = 20;

const LEARNING_RATE: f64 = 0.01;

/// Texts, and which of the labels each has.
pub struct Texts {
    /// Their tokens.
    pub ids: Vec<Vec<u32>>,
    /// The number of the label of each.
    pub classes: Vec<usize>,
    /// What the labels are called.
    pub labels: Vec<String>,
}

/// What came of a training.
pub struct Outcome {
    /// The classifier.
    pub classifier: Classifier,
    /// The mean loss of each epoch.
    pub losses: Vec<f64>,
    /// The share of the texts that were not learned whose class it says.
    pub right: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [address, model, data, folder] = &*arguments else {
        bail!("which swarm, model, texts and folder? ADDR MODEL FILE FOLDER");
    };
    let join = vec![address.parse()?];
    let swarm = Arc::new(Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await?);
    let model = ClientModel::open(&ModelSource::parse(model)?, &Cache::new("models"), &Silent)?;
    let texts = read(&std::fs::read_to_string(data)?, &model)?;
    let outcome = train(swarm, &model, &texts).await?;
    for (epoch, loss) in outcome.losses.iter().enumerate() {
        println!("epoch {}: loss {loss:.4}", epoch + 1);
    }
    println!("{:.0}% of the texts that were not learned are right", outcome.right * 100.0);
    outcome.classifier.save(Path::new(folder))?;
    Ok(())
}

/// Reads lines of JSON.
pub fn read(lines: &str, model: &ClientModel) -> anyhow::Result<Texts> {
    let mut texts = Texts { ids: Vec::new(), classes: Vec::new(), labels: Vec::new() };
    for (number, line) in (1..).zip(lines.lines()) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
        let label = line["label"].as_str().with_context(|| format!("line {number}: no label"))?;
        let known = texts.labels.iter().position(|known| known == label);
        texts.classes.push(known.unwrap_or(texts.labels.len()));
        if known.is_none() {
            texts.labels.push(label.to_owned());
        }
        texts.ids.push(match line["text"].as_str() {
            Some(text) => model.encode(text)?,
            None => serde_json::from_value(line["token_ids"].clone())
                .with_context(|| format!("line {number}: neither text nor token_ids"))?,
        });
    }
    Ok(texts)
}

/// Learns from all texts but every fifth.
pub async fn train(
    swarm: Arc<Swarm>,
    model: &ClientModel,
    texts: &Texts,
) -> anyhow::Result<Outcome> {
    let all = Span::new(0, model.config().block_count)?;
    let mut blocks = FrozenBlocks::open(swarm, model, all, None, TOKENS_MAX).await?;
    let is_held_out = |place: &usize| place % HELD_OUT == HELD_OUT - 1;
    let (held_out, learned): (Vec<_>, Vec<_>) = (0..texts.ids.len()).partition(is_held_out);

    // What leaves the last block stays the same while nothing before it is learned.
    let mut passed = Vec::new();
    for places in [&learned, &held_out] {
        let ids: Vec<&[u32]> = places.iter().map(|&place| &*texts.ids[place]).collect();
        let lengths: Vec<_> =
            ids.iter().map(|ids| u32::try_from(ids.len())).collect::<Result<_, _>>()?;
        let left = blocks.forward(&lengths, &model.ends().embed(&ids.concat())?).await?;
        passed.push((lengths, left));
    }
    blocks.close().await;

    let hidden_size = model.config().hidden_size;
    let (labels, settings) = (texts.labels.clone(), AdamW::default());
    let mut classifier = Classifier::begin(labels, hidden_size, settings, 1)?;
    let class_of = |places: &[usize]| -> Vec<usize> {
        places.iter().map(|&place| texts.classes[place]).collect()
    };
    let (lengths, left) = &passed[0];
    let classes = class_of(&learned);
    let mut losses = Vec::new();
    for _ in 0..EPOCHS {
        let step = classifier.learn(model.ends(), left.output(), lengths, &classes)?;
        classifier.step(LEARNING_RATE, 1.0)?;
        losses.push(step.loss);
    }
    let (lengths, left) = &passed[1];
    let said = classifier.classify(model.ends(), left.output(), lengths)?;
    let right = said.iter().zip(class_of(&held_out)).filter(|(said, class)| *said == class).count();
    Ok(Outcome { classifier, losses, right: right as f64 / held_out.len().max(1) as f64 })
}
