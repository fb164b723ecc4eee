//! One step of a generation: the tokens that are not in the cache go through the chain, with drafts
//! behind them, and what comes back says which drafts are right.
//!
//! The row of each draft holds what the model says of the token behind it. A draft is right where
//! it is the token that the row before it gives, drawn with the noise of its own position and with
//! all tokens before it as its past: the very token that a step of its own would have given. Behind
//! the last draft that is right there is always one more token, which the model itself gave.

use std::time::Instant;

use umbel_coordinator::session::speculation::StepSample;
use umbel_engine::{HiddenStates, check_numbers, top_logits};

use super::{Generation, Logprobs, embed};
use crate::chain::{Entering, StepTime};
use crate::generate::GenerateError;
use crate::speculation::Draft;

/// A token that the model gave.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) id: u32,
    pub(super) top_logits: Vec<(u32, f32)>,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) time: StepTime,
}

impl Generation {
    /// Computes the next token, or several.
    pub(super) async fn step(&mut self) -> Result<(), GenerateError> {
        // A step that was dropped, or failed at the head, is taken once more.
        self.computed = self.computed.min(self.tokens.len() - 1);
        // It is away while it works: where the caller drops this future, no drafts follow.
        let mut speculator = self.speculator.take();
        let decodes = self.tokens.len() - self.computed == 1 && self.new_count > 0;
        let (mut draft, room) = (None, self.draft_room());
        if let Some(speculator) = speculator.as_mut().filter(|_| decodes) {
            draft = speculator.draft(&self.tokens, room).await;
        }
        if let Some(draft) = &mut draft {
            self.cut(draft);
        }
        let draft = draft.filter(|draft| !draft.tokens.is_empty());
        let begun = Instant::now();
        let (drafts, leaving, time) = match &draft {
            Some(draft) => self.compute_with(&draft.tokens).await?,
            None => {
                let reads = speculator.as_mut().filter(|_| !decodes);
                let prompt = if reads.is_some() { self.tokens.clone() } else { Vec::new() };
                let reading = async {
                    if let Some(speculator) = reads {
                        speculator.read(&prompt).await;
                    }
                };
                let (computed, ()) = tokio::join!(self.compute(), reading);
                let (leaving, time) = computed?;
                (&[][..], leaving.last_row(), time)
            }
        };
        let accepted = self.accept(drafts, leaving, time.clone()).await?;
        if let Some(speculator) = &mut speculator {
            if decodes {
                let draft = draft.as_ref().filter(|_| !drafts.is_empty());
                speculator.settle(draft, accepted, sample(begun, &time));
            }
            self.drafts = speculator.drafts();
        }
        self.speculator = speculator;
        Ok(())
    }

    /// Takes the last token and `drafts` through the chain in one step, after cutting the cache to
    /// where the last token goes: drafts of the step before that were wrong are still in it.
    ///
    /// Where the chain fails, it begins anew without drafts.
    async fn compute_with<'a>(
        &mut self,
        drafts: &'a [u32],
    ) -> Result<(&'a [u32], HiddenStates, StepTime), GenerateError> {
        let ids = [&self.tokens[self.computed..], drafts].concat();
        let entering = Entering { hidden: embed(&self.model, ids.clone()).await?, ids };
        let position = u32::try_from(self.computed).expect("a context is counted in 32 bits");
        match self.chain.step(position, entering).await {
            Ok((leaving, time)) => {
                self.computed = self.tokens.len();
                Ok((drafts, leaving, time))
            }
            Err(error) if error.may_begin_anew() => {
                let (leaving, time) = self.compute().await?;
                Ok((&[], leaving.last_row(), time))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Draws a token from each row of `leaving`, up to the first that is not the draft of its
    /// place; how many drafts were right.
    async fn accept(
        &mut self,
        drafts: &[u32],
        leaving: HiddenStates,
        time: StepTime,
    ) -> Result<usize, GenerateError> {
        let rows = self.model.logits(leaving).await?;
        let (mut text, mut time) = (self.tokens.clone(), time);
        for (index, mut logits) in rows.into_iter().enumerate() {
            // Before a grammar makes numbers of some of them.
            check_numbers(&logits)?;
            let largest = top_logits(&logits, self.request.top_logits);
            let given = self.request.top_logprobs.map(|count| (count, logits.clone()));
            self.request.adjust.apply(&mut logits, &text[self.request.prompt.len()..]);
            if let Some(grammar) = &mut self.request.grammar {
                grammar.restrict(&mut logits)?;
            }
            let id = self.sampler.sample(&mut logits, &text)?;
            if let Some(grammar) = &mut self.request.grammar {
                grammar.accept(id)?;
            }
            text.push(id);
            let logprobs = given.map(|(count, logits)| logprobs(&logits, id, count));
            let (top_logits, time) = (largest, std::mem::take(&mut time));
            self.verified.push_back(Verified { id, top_logits, logprobs, time });
            if drafts.get(index) != Some(&id) {
                self.computed += index;
                return Ok(index);
            }
        }
        // A chain that leaves rows out is caught before; the tokens that it gave are right.
        let accepted = self.verified.len() - 1;
        self.computed += accepted;
        Ok(accepted)
    }

    /// How many drafts make sense: with all of them and one more token, the answer is full.
    fn draft_room(&self) -> u32 {
        let wanted = self.request.max_tokens.saturating_sub(self.new_count);
        let free = u32::try_from(self.context.saturating_sub(self.tokens.len()));
        wanted.min(free.unwrap_or(u32::MAX)).saturating_sub(1)
    }

    /// Takes off what cannot follow: tokens that the model lacks, and those behind its end.
    fn cut(&self, draft: &mut Draft) {
        let config = self.model.config();
        let known = |id: &u32| (*id as usize) < config.vocabulary_size;
        let mut count = draft.tokens.iter().take_while(|id| known(id)).count();
        if !self.request.ignore_eos {
            let ends = |id: &u32| config.eos_token_ids.contains(id);
            let end = draft.tokens.iter().position(ends);
            count = end.map_or(count, |end| count.min(end + 1));
        }
        draft.tokens.truncate(count);
    }
}

/// The logarithms of the chances of `chosen` and of the `count` likeliest tokens.
#[expect(clippy::cast_possible_truncation, reason = "a logit has no more digits than that")]
fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let largest = logits.iter().copied().filter(|logit| !logit.is_nan()).fold(f32::MIN, f32::max);
    let above = |logit: f32| f64::from(logit) - f64::from(largest);
    let sum: f64 =
        logits.iter().map(|logit| above(*logit).exp()).filter(|part| !part.is_nan()).sum();
    let logprob = |logit: f32| (above(logit) - sum.ln()) as f32;
    let top = top_logits(logits, count).into_iter();
    Logprobs {
        chosen: logprob(logits[chosen as usize]),
        top: top.map(|(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// Where the time of a step went that began at `begun` and has just given its tokens.
fn sample(begun: Instant, time: &StepTime) -> StepSample {
    StepSample {
        total: begun.elapsed(),
        compute: time.hops.iter().map(|hop| hop.compute).sum(),
        queue: time.hops.iter().map(|hop| hop.queue).sum(),
    }
}
