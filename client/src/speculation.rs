//! Speculation: drafts of the tokens to come, so that one trip round the chain gives several.
//!
//! Every draft is compared with the token that would have been chosen without it, so speculation
//! changes how long an answer takes and nothing else. What is decided is in
//! [`umbel_coordinator::session::speculation`]; here are the drafts of a model, and the clock.

mod model;

use std::time::{Duration, Instant};

use umbel_coordinator::session::speculation::{
    Choice, DraftControl, DraftKind, Drafted, Offer, Outcome, StepSample, SuffixIndex,
};
use umbel_engine::Sampler;

use crate::generate::GenerateError;

use model::DraftSession;
pub use model::{DraftModel, DraftModelError};

/// Drafts of a step where nobody sets their number: as many as a short phrase has tokens.
const PROMPT_DRAFT_TOKENS: u32 = 8;

/// Tokens that are taken into the index at once; more are a task of their own, since 65,536 take
/// some 50 ms.
const INDEXED_AT_ONCE_MAX: usize = 1024;

/// How the tokens of an answer are guessed.
#[derive(Debug, Clone, Default)]
pub enum Speculate {
    /// Not at all: a trip for each token.
    #[default]
    Off,
    /// From the text so far, as many at a time as measurements say pays.
    Auto,
    /// From the text so far, always, whether or not it pays.
    Prompt,
    /// From a small model in this process, or from the text so far: what pays better.
    Model(DraftModel),
}

/// What came of drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Trips round the chain after the prefill.
    pub steps: u64,
    /// Trips that carried drafts.
    pub drafted_steps: u64,
    /// Tokens that were guessed.
    pub drafted: u64,
    /// How many of them were right.
    pub accepted: u64,
    /// The time that it took to guess.
    pub took: Duration,
}

/// Makes drafts for one generation.
pub(crate) struct Speculator {
    index: SuffixIndex,
    /// Tokens that are in the index.
    indexed: usize,
    model: Option<DraftSession>,
    control: Option<DraftControl>,
    drafts: Drafts,
}

/// Tokens that may come next.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) tokens: Vec<u32>,
    kind: DraftKind,
    took: Duration,
    overhead: Duration,
}

impl Speculator {
    /// Nothing where nothing is to be guessed. `expected` may come up in the answer, which does
    /// without the draft model where other answers have all of its room.
    pub(crate) fn new(
        speculate: &Speculate,
        expected: &[u32],
        tokens_max: usize,
        sampler: &Sampler,
    ) -> Option<Self> {
        let (model, control) = match speculate {
            Speculate::Off => return None,
            Speculate::Auto => (None, Some(DraftControl::new())),
            Speculate::Prompt => (None, None),
            Speculate::Model(model) => {
                let session = model.open(tokens_max, sampler.clone()).inspect_err(|error| {
                    tracing::info!(%error, "an answer begins without the draft model");
                });
                (session.ok(), Some(DraftControl::new()))
            }
        };
        let (mut index, drafts) = (SuffixIndex::default(), Drafts::default());
        // As if it stood before the prompt.
        expected.iter().for_each(|&token| index.push(token));
        Some(Self { index, indexed: 0, model, control, drafts })
    }

    /// Reads a prompt, so that drafts may follow.
    pub(crate) async fn read(&mut self, tokens: &[u32]) {
        self.index_up_to(tokens).await;
        if let Some(model) = &mut self.model
            && let Err(error) = model.read(tokens).await
        {
            self.give_up_model(&error);
        }
    }

    /// At most `room` tokens that may follow `tokens`.
    pub(crate) async fn draft(&mut self, tokens: &[u32], room: u32) -> Option<Draft> {
        self.index_up_to(tokens).await;
        let Choice { kind, tokens: count } = self.choose(tokens, room)?;
        let begun = Instant::now();
        let (drafted, overhead) = match kind {
            DraftKind::Suffix { .. } => (self.index.draft(count as usize), Duration::ZERO),
            DraftKind::Model => match self.model.as_mut()?.draft(tokens, count as usize).await {
                Ok(drafted) => drafted,
                Err(error) => {
                    self.give_up_model(&error);
                    return None;
                }
            },
        };
        let took = begun.elapsed().saturating_sub(overhead);
        Some(Draft { tokens: drafted, kind, took, overhead })
    }

    /// Learns what a step gave: how many of its drafts were right, and its time.
    pub(crate) fn settle(&mut self, draft: Option<&Draft>, accepted: usize, step: StepSample) {
        let count = |tokens: usize| u32::try_from(tokens).expect("drafts of a step are few");
        let drafted = draft.map(|draft| Drafted {
            kind: draft.kind,
            tokens: count(draft.tokens.len()),
            accepted: count(accepted),
            took: draft.took,
            overhead: draft.overhead,
        });
        self.drafts.steps += 1;
        if let Some(drafted) = &drafted {
            self.drafts.drafted_steps += 1;
            self.drafts.drafted += u64::from(drafted.tokens);
            self.drafts.accepted += u64::from(drafted.accepted);
            self.drafts.took += drafted.took + drafted.overhead;
        }
        if let Some(control) = &mut self.control {
            control.settle(&Outcome { drafted, step });
        }
    }

    pub(crate) const fn drafts(&self) -> Drafts {
        self.drafts
    }

    fn choose(&self, tokens: &[u32], room: u32) -> Option<Choice> {
        let matched = self.index.matched();
        let suffix = (matched > 0).then_some(Offer {
            kind: DraftKind::Suffix { matched },
            tokens_max: room,
            overhead: Duration::ZERO,
        });
        let Some(control) = &self.control else {
            let Offer { kind, tokens_max, .. } = suffix?;
            let tokens = tokens_max.min(PROMPT_DRAFT_TOKENS);
            return (tokens > 0).then_some(Choice { kind, tokens });
        };
        let model = self.model.as_ref().and_then(|model| model.offer(tokens, room));
        let offers: Vec<_> = suffix.into_iter().chain(model).collect();
        control.choose(&offers)
    }

    async fn index_up_to(&mut self, tokens: &[u32]) {
        let new = &tokens[self.indexed.min(tokens.len())..];
        self.indexed = tokens.len();
        if new.len() <= INDEXED_AT_ONCE_MAX {
            new.iter().for_each(|&token| self.index.push(token));
            return;
        }
        let (mut index, new) = (std::mem::take(&mut self.index), new.to_vec());
        let indexing = tokio::task::spawn_blocking(move || {
            new.into_iter().for_each(|token| index.push(token));
            index
        });
        self.index = indexing.await.expect("an index takes every token");
    }

    /// An answer does not need its drafts.
    fn give_up_model(&mut self, error: &GenerateError) {
        tracing::warn!(error = %error, "the draft model fails; the answer goes on without it");
        self.model = None;
    }
}
