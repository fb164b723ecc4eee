//! A round: every way of computing has its turns, of a few tokens each.
//!
//! What a shared machine gives changes from one second to the next. Ways that take turns of a fraction
//! of a second meet the same weather, so that their ratios say something of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use umbel_client::{Chain, ClientModel, Generate, Token};

use super::machine::Memory;
use super::sample::{Sample, gaps};
use super::{Contender, Way, loopback};
use crate::commands::session::{Blocks, Opened};
use crate::telemetry::dot;

/// Tokens of a turn that are measured. One before them is not: threads have slept and caches were
/// used by others.
const TURN_TOKENS: u32 = 8;

/// Tokens that a prompt is followed by where so many new ones are measured.
pub(super) const fn tokens(new_tokens: u32) -> u32 {
    1 + new_tokens + new_tokens.div_ceil(TURN_TOKENS)
}

/// Measures all of them once, and gives their samples in the same order.
pub(super) async fn round(
    contenders: &[Contender],
    prompt: &[u32],
    new_tokens: u32,
    memory: &Memory,
) -> anyhow::Result<Vec<Sample>> {
    let mut answers = Vec::new();
    for contender in contenders {
        if let Way::Umbel { opened, .. } = &contender.way {
            answers.push(Answer::begin(opened, prompt, new_tokens).await?);
            dot();
        }
    }
    let mut read = memory.look().await?;
    for turn in 0..new_tokens.div_ceil(TURN_TOKENS) {
        let tokens = TURN_TOKENS.min(new_tokens - turn * TURN_TOKENS);
        // Each way is the first in some turns: what is done before a turn may have the system or the host
        // of a virtual machine take cores away in it.
        let count = answers.len();
        for place in 0..count {
            let answer = &mut answers[(turn as usize + place) % count];
            answer.take_turn(tokens).await?;
            let after = memory.look().await?;
            answer.reads.push(f64::midpoint(read, after));
            read = after;
        }
    }
    let mut answers = answers.into_iter();
    let mut samples = Vec::new();
    for contender in contenders {
        samples.push(match &contender.way {
            Way::Umbel { .. } => {
                answers.next().context("each has begun an answer")?.end(new_tokens).await
            }
            // A program of its own, which does all at once.
            Way::Llama(llama) => {
                let before = memory.look().await?;
                let sample = llama.one(u32::try_from(prompt.len())?, new_tokens).await?;
                dot();
                Sample { read: f64::midpoint(before, memory.look().await?), ..sample }
            }
        });
    }
    Ok(samples)
}

/// An answer that grows turn by turn. Each turn asks for so many tokens and no more: the servers of a thin
/// session go on by themselves for as long as more are wanted.
struct Answer {
    model: Arc<ClientModel>,
    /// The session and what it has in its cache; none while a turn has it.
    session: Option<(Chain, Vec<u32>)>,
    /// The prompt and what follows so far.
    tokens: Vec<u32>,
    sample: Sample,
    spent: Duration,
    /// Bytes on the loopback device, where something goes over it and they can be counted.
    bytes: Option<u64>,
    /// What memory gave beside each turn.
    reads: Vec<f64>,
}

impl Answer {
    /// Reads the prompt.
    async fn begin(opened: &Opened, prompt: &[u32], new_tokens: u32) -> anyhow::Result<Self> {
        let chain = opened.chain(prompt.len() + tokens(new_tokens) as usize, &[]).await?;
        let mut answer = Self {
            model: Arc::clone(&opened.model),
            session: Some((chain, Vec::new())),
            tokens: prompt.to_vec(),
            sample: Sample::default(),
            spent: Duration::ZERO,
            bytes: matches!(opened.blocks, Blocks::Swarm(..)).then_some(0),
            reads: Vec::new(),
        };
        let started = Instant::now();
        answer.next(1, |_| ()).await?;
        answer.sample.prefill = prompt.len() as f64 / started.elapsed().as_secs_f64();
        Ok(answer)
    }

    /// Has so many tokens follow, and shows each one as it comes.
    async fn next(&mut self, tokens: u32, mut each: impl FnMut(&Token)) -> anyhow::Result<()> {
        let (chain, cached) = self.session.take().context("the turn before has failed")?;
        let request = Generate::new(self.tokens.clone());
        let request = Generate { max_tokens: tokens, ignore_eos: true, ..request };
        let mut generation = request.resume(Arc::clone(&self.model), chain, &cached)?;
        for _ in 0..tokens {
            each(&generation.next().await?.context("the answer is longer")?);
        }
        self.tokens = generation.tokens().to_vec();
        self.session = Some(generation.into_chain());
        Ok(())
    }

    async fn take_turn(&mut self, tokens: u32) -> anyhow::Result<()> {
        let (mut times, mut spent_in, mut before) = (Vec::new(), Vec::new(), None);
        self.next(1 + tokens, |token| {
            times.push(Instant::now());
            if times.len() == 1 {
                before = loopback::bytes();
            } else {
                spent_in.push(token.time.clone());
            }
        })
        .await?;
        let sent =
            loopback::bytes().zip(before).map(|(after, before)| after.saturating_sub(before));
        self.bytes = self.bytes.zip(sent).map(|(bytes, sent)| bytes + sent);
        let spent: Duration = gaps(&times).sum();
        self.spent += spent;
        spent_in.iter().for_each(|time| self.sample.add(time));
        self.sample.turns.push(f64::from(tokens) / spent.as_secs_f64());
        self.sample.gaps.extend(gaps(&times));
        Ok(())
    }

    async fn end(self, new_tokens: u32) -> Sample {
        if let Some((chain, _)) = self.session {
            chain.close().await;
        }
        let tokens = f64::from(new_tokens);
        Sample {
            decode: tokens / self.spent.as_secs_f64(),
            read: self.reads.iter().sum::<f64>() / self.reads.len().max(1) as f64,
            wire_bytes: self.bytes.map(|bytes| bytes as f64 / tokens),
            ..self.sample
        }
    }
}
