//! How long passes take, and so how many tokens go into one.

use std::time::Duration;

use super::PART_TOKENS_MAX;
use super::turn::{Candidate, Kind};

/// How long a pass may take while others want to decode: a step of one token waits for at most one
/// pass that runs and goes into the next, so that nobody who reads along at 10 tokens a second
/// notices another's prompt.
const PASS: Duration = Duration::from_millis(50);

/// Where decoding alone takes long, a pass with prefill may take this many times as long: there is
/// hardly a difference between the time of one token and of as many as are computed while the weights
/// are read.
const DECODE_PASSES: u32 = 2;

/// Tokens of prefill that go into a pass however slow the machine: so many share the weights in the
/// registers of the plainest kernel.
const PREFILL_TOKENS_MIN: u32 = 4;

/// Tokens of a pass before one with prefill has been measured: 50 ms at some 300 tokens a second.
const TOKENS_UNMEASURED: u32 = 16;

/// How many times as much as in any that was short enough may be in a pass: a machine that computes
/// 16 tokens in the time of one need not compute 500 in it.
const GROWTH: u64 = 2;

/// What passes have taken, smoothed.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds that a token and block adds to a pass with prefill.
    token_block_nanos: Option<f64>,
    /// A pass that only decodes.
    decode: Option<Duration>,
    /// Tokens times blocks of the largest pass that was no longer than it may be.
    proven: u64,
}

/// What a pass has taken of its budget.
#[derive(Debug)]
pub(super) struct Taken {
    /// Tokens times blocks that may still be taken; `None` without a limit.
    left: Option<u64>,
    token_blocks: u64,
    /// Whether a step of several tokens that decodes was taken.
    has_guesses: bool,
    has_prefill: bool,
}

impl Pace {
    /// A pass for which these wait.
    pub(super) fn begin(&self, is_shared: bool, candidates: &[Candidate]) -> Taken {
        let left = is_shared.then(|| self.token_blocks(candidates));
        Taken { left, token_blocks: 0, has_guesses: false, has_prefill: false }
    }

    /// A pass has taken so long.
    pub(super) fn note(&mut self, taken: &Taken, compute: Duration) {
        if taken.has_prefill {
            // Where weights are read while the tokens are computed, few tokens add nothing at all;
            // then more may be taken, but not without measure.
            let added = compute.saturating_sub(self.decode.unwrap_or_default()).max(compute / 4);
            let sample = added.as_secs_f64() * 1e9 / taken.token_blocks.max(1) as f64;
            let known = self.token_block_nanos.unwrap_or(sample);
            // What is dearer than it was is believed at once, and a pass that stood still for other
            // reasons is forgotten within some ten.
            self.token_block_nanos = Some(sample.max(known * 0.75 + sample * 0.25));
            let is_short = compute <= self.longest();
            self.proven = if is_short { self.proven } else { 0 }.max(taken.token_blocks);
        } else {
            let known = self.decode.unwrap_or(compute);
            self.decode = Some(known * 7 / 8 + compute / 8);
        }
    }

    /// Tokens times blocks of a pass that takes as long as it may.
    fn token_blocks(&self, candidates: &[Candidate]) -> u64 {
        let Some(nanos) = self.token_block_nanos.filter(|nanos| *nanos > 0.0) else {
            let blocks = candidates.iter().map(|candidate| candidate.blocks).max().unwrap_or(1);
            return u64::from(TOKENS_UNMEASURED) * u64::from(blocks);
        };
        let room = self.longest().saturating_sub(self.decode.unwrap_or_default());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a quotient of positive numbers; far below 64 bits, where it saturates"
        )]
        let token_blocks = (room.as_secs_f64() * 1e9 / nanos) as u64;
        token_blocks.min(self.proven * GROWTH)
    }

    /// How long a pass may take.
    fn longest(&self) -> Duration {
        PASS.max(self.decode.unwrap_or_default() * DECODE_PASSES)
    }
}

impl Taken {
    /// How many tokens of a candidate go into the pass; `None` if it has to wait for another.
    ///
    /// One token always goes; of guesses and of prefill at least something in each pass, so that
    /// nobody waits for ever.
    pub(super) fn take(&mut self, candidate: &Candidate) -> Option<u32> {
        let blocks = u64::from(candidate.blocks);
        let room = self.left.map_or(u64::MAX, |left| left / blocks);
        let tokens = match candidate.kind {
            Kind::Decode => {
                let is_guess = candidate.tokens > 1;
                if is_guess && self.has_guesses && u64::from(candidate.tokens) > room {
                    return None;
                }
                self.has_guesses |= is_guess;
                candidate.tokens
            }
            Kind::Prefill => {
                let least = if self.has_prefill { 0 } else { PREFILL_TOKENS_MIN };
                let room = u32::try_from(room).unwrap_or(u32::MAX).max(least);
                let tokens = candidate.tokens.min(room).min(PART_TOKENS_MAX);
                if tokens < PREFILL_TOKENS_MIN {
                    return None;
                }
                self.has_prefill = true;
                tokens
            }
        };
        let cost = u64::from(tokens) * blocks;
        self.left = self.left.map(|left| left.saturating_sub(cost));
        self.token_blocks += cost;
        Some(tokens)
    }
}
