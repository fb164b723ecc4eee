//! Answers with and without guessing, compared token by token and logit by logit:
//! `cargo run --release -p umbel-tests --example speculation_runs -- 100 24` takes the number of
//! runs of a real model and the tokens of each; every fixture has as many runs.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::sync::Arc;

use anyhow::ensure;
use umbel_client::{
    Chain, ClientModel, Device, DraftModel, Drafts, Generate, LocalModel, Sampling, Speculate,
};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};
use umbel_tests::swarm::{cache, checkpoint};

/// What the model is asked to continue: texts that repeat themselves, and some that do not.
const PROMPTS: [&str; 5] = [
    "one two three four, one two three four, one two",
    "fn add(a: u32, b: u32) -> u32 {\n    a + b\n}\n\nfn sub(a: u32, b: u32) -> u32 {\n",
    "The capital of France is",
    "Gravity is a force. Gravity is a force that",
    "- apples\n- pears\n- plums\n\nThe list again:\n- apples\n",
];

/// A model with all its blocks.
struct Opened {
    model: Arc<ClientModel>,
    blocks: Arc<LocalModel>,
}

/// Tokens of an answer, and the bits of their largest logits.
type Answer = (Vec<u32>, Vec<Vec<(u32, u32)>>);

impl Opened {
    fn open(name: &str) -> anyhow::Result<Self> {
        let source = ModelSource::parse(name)?;
        let model = Model::open(&source, &Cache::new(cache()), PartsNeeded::everything(), &Silent)?;
        let model = Arc::new(ClientModel::from_shard(model)?);
        let blocks = Arc::new(LocalModel::load(model.shard(), 1024, Device::shared())?);
        Ok(Self { model, blocks })
    }

    async fn answer(&self, request: Generate) -> anyhow::Result<(Answer, Drafts)> {
        let room = request.prompt.len() + request.max_tokens as usize;
        let chain = Chain::Local(self.blocks.open(u32::try_from(room)?)?);
        let mut generation = request.start(Arc::clone(&self.model), chain)?;
        let mut logits = Vec::new();
        while let Some(token) = generation.next().await? {
            let bits = |(token, logit): (u32, f32)| (token, logit.to_bits());
            logits.push(token.top_logits.into_iter().map(bits).collect());
        }
        Ok(((generation.tokens().to_vec(), logits), generation.drafts()))
    }

    fn prompt(&self, run: u64) -> anyhow::Result<Vec<u32>> {
        let number = usize::try_from(run)?;
        if self.model.tokenizer().is_some() {
            return Ok(self.model.encode(PROMPTS[number % PROMPTS.len()])?);
        }
        let vocabulary = u32::try_from(self.model.config().vocabulary_size)?;
        let once: Vec<u32> =
            (0..9).map(|i| (u32::try_from(run).unwrap_or(0) * 31 + i * 17) % vocabulary).collect();
        Ok([once.clone(), once].concat())
    }
}

/// Greedy in every other run; else hotter and hotter, with filters and a penalty at times.
fn sampling(run: u64) -> Sampling {
    if run.is_multiple_of(2) {
        return Sampling::greedy();
    }
    let temperature = [0.2, 0.5, 0.8, 1.2][usize::try_from(run / 2 % 4).unwrap_or(0)];
    let plain = Sampling::with_temperature(temperature, run);
    if run.is_multiple_of(3) {
        return Sampling { top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..plain };
    }
    plain
}

async fn compare(name: &str, runs: u64, tokens: u32) -> anyhow::Result<bool> {
    let opened = Opened::open(name)?;
    let draft =
        DraftModel::new(Arc::clone(&opened.model), Arc::clone(&opened.blocks), &opened.model)?;
    let (mut same, mut sum) = (0, Drafts::default());
    for run in 0..runs {
        let request = Generate {
            max_tokens: tokens,
            sampling: sampling(run),
            top_logits: 3,
            ..Generate::new(opened.prompt(run)?)
        };
        let (plain, _) = opened.answer(request.clone()).await?;
        // Fixtures never repeat themselves: what they will say, not quite right, is given to them.
        let wrong = |(index, token): (usize, &u32)| token ^ u32::from(index % 7 == 6);
        let expected = match opened.model.tokenizer() {
            Some(_) => Vec::new(),
            None => plain.0.iter().enumerate().map(wrong).collect(),
        };
        let speculate = match run % 4 {
            0 | 1 => Speculate::Prompt,
            2 => Speculate::Auto,
            _ => Speculate::Model(draft.clone()),
        };
        let (guessed, drafts) = opened.answer(Generate { speculate, expected, ..request }).await?;
        same += u64::from(guessed == plain);
        sum.steps += drafts.steps;
        sum.drafted += drafts.drafted;
        sum.accepted += drafts.accepted;
    }
    println!(
        "{:<16} {same} of {runs} identical; {} steps, {} drafts, {} right",
        name.rsplit('/').next().unwrap_or(name),
        sum.steps,
        sum.drafted,
        sum.accepted
    );
    Ok(same == runs)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| -> anyhow::Result<u64> {
        Ok(arguments.get(index).map(|argument| argument.parse()).transpose()?.unwrap_or(default))
    };
    let (runs, tokens) = (number(0, 100)?, u32::try_from(number(1, 24)?)?);
    let mut identical = true;
    for name in ["llama", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        identical &= compare(&checkpoint(name), runs, 24).await?;
    }
    identical &= compare("smollm2-135m", runs, tokens).await?;
    ensure!(identical, "guessing changed an answer");
    Ok(())
}
