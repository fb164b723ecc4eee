//! How tokens are drawn at the end of a thin session, and where they go.
//!
//! In a thin session ids of tokens enter the first block and leave the last one, whose server draws
//! each token as its client would have: a draw is a function of the logits, the position, the seed
//! and the tokens so far. It sends the token to the client and, as the next step, to the first
//! server, until there is one that ends the answer.

use super::NextHop;
use crate::SessionId;

/// Most tokens that end an answer: models have one to a handful.
pub const END_IDS_MAX: usize = 64;

/// How a token is chosen; what each number means, `umbel_engine::Sampling` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 or more; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest; 0 for all.
    pub top_k: u32,
    /// Above 0 and at most 1, which leaves all.
    pub top_p: f32,
    /// From 0, which leaves all, to 1.
    pub min_p: f32,
    /// Above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Equal seeds give equal tokens.
    pub seed: u64,
}

impl Sampling {
    /// The name and value of a number that is out of its range, if there is one.
    pub(super) fn out_of_range(&self) -> Option<(&'static str, f32)> {
        let Self { temperature, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        let checks = [
            ("temperature", temperature, temperature.is_finite() && temperature >= 0.0),
            ("top-p", top_p, top_p > 0.0 && top_p <= 1.0),
            ("min-p", min_p, (0.0..=1.0).contains(&min_p)),
            ("repetition penalty", penalty, penalty.is_finite() && penalty > 0.0),
        ];
        let wrong = checks.into_iter().find(|(.., sound)| !sound);
        wrong.map(|(name, value, _)| (name, value))
    }

    /// Whether a draw depends on which tokens there were, and not only on how many.
    #[must_use]
    pub fn needs_text(&self) -> bool {
        self.repetition_penalty != 1.0
    }
}

/// How the last server of a thin session draws tokens from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Which session.
    pub session: SessionId,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The position of the first token to be drawn: steps that end before it are answered with
    /// token 0, which means none.
    pub from: u32,
    /// Tokens that are drawn for this position or a later one do not go on by themselves.
    pub until: u32,
    /// Tokens that do not go on wherever they are drawn, [`END_IDS_MAX`] at most.
    pub end_ids: Vec<u32>,
    /// All tokens so far, where the sampling needs them.
    pub text: Vec<u32>,
    /// The session's first server, to which tokens go. `None`: they go to the client alone.
    pub first: Option<NextHop>,
}
