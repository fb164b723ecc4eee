//! Tokens that the last server of a thin session draws.
//!
//! This side hands in the tokens that are not in the cache, and from the last of them on the servers
//! go on by themselves: each token comes here, and is the next step already. What is drawn is what
//! this side would have drawn, so nothing else of a generation differs.

use std::collections::VecDeque;
use std::time::Instant;

use umbel_coordinator::session::DrawWanted;
use umbel_protocol::inference::END_IDS_MAX;

use super::verify::Verified;
use super::{Generation, RESTARTS_MAX};
use crate::chain::thin::{DrawnToken, sampling_to_wire};
use crate::chain::{StepError, StepTime};
use crate::generate::GenerateError;

/// How far the servers of a thin session have come.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// They know how to draw.
    told: bool,
    /// Tokens that were handed in, or that the servers hand in themselves.
    handed_in: usize,
    /// The ends of the steps under way.
    under_way: VecDeque<usize>,
}

impl Generation {
    /// Takes up the next token.
    pub(super) async fn step_thin(&mut self) -> Result<(), GenerateError> {
        loop {
            match self.next_drawn().await {
                Err(error) if error.may_begin_anew() && self.restarts < RESTARTS_MAX => {
                    self.restarts += 1;
                    tracing::warn!(error = %error, "the chain failed; beginning anew");
                    self.round = Round::default();
                    self.computed = 0;
                    self.chain.reopen(&[]).await?;
                }
                Err(error) => return Err(error.into()),
                Ok((id, time)) => {
                    self.verified.push_back(Verified {
                        id,
                        top_logits: Vec::new(),
                        logprobs: None,
                        time,
                    });
                    return Ok(());
                }
            }
        }
    }

    /// The token behind all that there are.
    async fn next_drawn(&mut self) -> Result<(u32, StepTime), StepError> {
        let begun = Instant::now();
        if !self.round.told {
            self.tell_how_to_draw().await;
        }
        self.hand_in().await;
        let (mut time, streams) = (StepTime::default(), self.round.under_way.len() > 1);
        loop {
            let DrawnToken { id, goes_on, time: of_step } = self.chain.drawn().await?;
            time.add(of_step);
            let end = self.round.under_way.pop_front().unwrap_or(self.tokens.len());
            self.computed = end;
            if goes_on {
                self.round.under_way.push_back(end + 1);
                self.round.handed_in = end + 1;
            }
            if end == self.tokens.len() {
                if streams {
                    // Steps that are under way at once take less than the sum of their times.
                    time.total = begun.elapsed();
                }
                return Ok((id, time));
            }
        }
    }

    async fn tell_how_to_draw(&mut self) {
        let size = |size: usize| u32::try_from(size).expect("a context is counted in 32 bits");
        let left = self.request.max_tokens.saturating_sub(self.new_count) as usize;
        let full = self.tokens.len().saturating_add(left).min(self.context);
        let eos = &self.model.config().eos_token_ids;
        let ends = eos.iter().copied().filter(|_| !self.request.ignore_eos).take(END_IDS_MAX);
        let wanted = DrawWanted {
            sampling: sampling_to_wire(&self.request.sampling),
            from: size(self.tokens.len()),
            // Nobody wants what follows the last token.
            until: size(full.saturating_sub(1)),
            end_ids: ends.collect(),
            text: self.tokens.clone(),
        };
        self.chain.draw(wanted).await;
        self.round = Round { told: true, handed_in: self.computed, under_way: VecDeque::new() };
    }

    /// Hands in what the servers do not have, in chunks that are under way at once.
    async fn hand_in(&mut self) {
        let size = |size: usize| u32::try_from(size).expect("a context is counted in 32 bits");
        let begin = self.round.handed_in;
        let Some(left) = self.tokens.len().checked_sub(begin).filter(|left| *left > 0) else {
            return;
        };
        let chunks = self.chain.prefill_chunks(size(begin), size(left), self.request.prefill_chunk);
        for chunk in chunks {
            let begin = self.round.handed_in;
            let end = begin + chunk as usize;
            self.chain.begin_ids(size(begin), &self.tokens[begin..end]).await;
            self.round.handed_in = end;
            self.round.under_way.push_back(end);
        }
    }
}
