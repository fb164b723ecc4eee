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

/// How much the last pass that only decodes counts in what a pass costs by itself.
const NEWEST: f64 = 1.0 / 16.0;

/// Passes whose tokens differ by less than this part (its square) say nothing of what a token adds.
const SPREAD_MIN: f64 = 0.01;

/// What passes have taken, smoothed.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds that a token and block adds to a pass with prefill.
    token_block_nanos: Option<f64>,
    /// A pass that only decodes.
    decode: Option<Duration>,
    /// Tokens times blocks of the largest pass that was no longer than it may be.
    proven: u64,
    /// Passes that only decode, by their tokens times blocks.
    line: Option<Line>,
}

/// Means over the passes that only decode, the last ones above all: of tokens times blocks, of
/// seconds, and of their products.
#[derive(Debug, Clone, Copy)]
struct Line {
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_by_seconds: f64,
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
            let line = self.line.get_or_insert_with(|| Line::of(taken.token_blocks, compute));
            line.note(taken.token_blocks, compute);
        }
    }

    /// What a pass that only decodes costs however few tokens it has: reading the weights.
    pub(super) fn cost(&self) -> Duration {
        self.line.map_or(Duration::ZERO, |line| line.at_no_tokens())
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

impl Line {
    fn of(token_blocks: u64, compute: Duration) -> Self {
        let (tokens, seconds) = (token_blocks as f64, compute.as_secs_f64());
        let (tokens_squared, tokens_by_seconds) = (tokens * tokens, tokens * seconds);
        Self { tokens, seconds, tokens_squared, tokens_by_seconds }
    }

    fn note(&mut self, token_blocks: u64, compute: Duration) {
        let new = Self::of(token_blocks, compute);
        let mix = |mean: &mut f64, new: f64| *mean += (new - *mean) * NEWEST;
        mix(&mut self.tokens, new.tokens);
        mix(&mut self.seconds, new.seconds);
        mix(&mut self.tokens_squared, new.tokens_squared);
        mix(&mut self.tokens_by_seconds, new.tokens_by_seconds);
    }

    /// Where the line through the passes meets no tokens at all. Where all passes were alike, half of
    /// what they took: it is nearly all or nearly nothing of it, and a larger pass will tell.
    fn at_no_tokens(&self) -> Duration {
        let spread = self.tokens_squared - self.tokens * self.tokens;
        if spread < SPREAD_MIN * self.tokens * self.tokens {
            return Duration::from_secs_f64(self.seconds / 2.0);
        }
        let slope = (self.tokens_by_seconds - self.tokens * self.seconds) / spread;
        let rest = self.seconds - slope * self.tokens;
        Duration::from_secs_f64(rest.clamp(0.0, self.seconds))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass that decodes so many tokens through one block.
    fn pass(tokens: u64) -> Taken {
        Taken { left: None, token_blocks: tokens, has_guesses: false, has_prefill: false }
    }

    fn millis(cost: Duration) -> f64 {
        (cost.as_secs_f64() * 1e4).round() / 10.0
    }

    #[test]
    fn what_a_pass_costs_is_told_from_what_a_token_adds() {
        for (fixed, each) in [(45, 2), (8, 6), (0, 5)] {
            let mut pace = Pace::default();
            for tokens in (0..200).map(|pass| 1 + pass % 8) {
                pace.note(&pass(tokens), Duration::from_millis(fixed + each * tokens));
            }
            assert!((millis(pace.cost()) - fixed as f64).abs() < 0.2, "{fixed} and {each}");
        }
    }

    #[test]
    fn passes_that_are_alike_leave_it_open() {
        let mut pace = Pace::default();
        assert_eq!(pace.cost(), Duration::ZERO);
        (0..20).for_each(|_| pace.note(&pass(4), Duration::from_millis(30)));
        assert!((millis(pace.cost()) - 15.0).abs() < 0.2);
        (0..20).for_each(|_| pace.note(&pass(8), Duration::from_millis(31)));
        assert!(millis(pace.cost()) > 25.0, "{:?}", pace.cost());
    }
}
