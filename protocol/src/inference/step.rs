//! One pass along a route.

use std::time::Duration;

use crate::{PeerId, SessionId, Span, StepId, Tensor};

/// Most hops of a route, and so of a trace; an entry beyond it is not sent.
pub const HOPS_MAX: usize = 64;

/// Tokens on their way through the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whose tokens.
    pub session: SessionId,
    /// Which step of the session.
    pub step: StepId,
    /// Where the first token goes: the cache is cut to this position first, so that a step may
    /// take back earlier ones.
    pub position: u32,
    /// Hidden states, `[tokens, hidden]`; at least one element.
    pub hidden: Tensor,
    /// What each hop so far said of its time, in order.
    pub trace: Vec<HopTiming>,
    /// Which rows the last hop answers with.
    pub answer_rows: AnswerRows,
    /// Whether the tokens were answered before, on a route that has failed: they fill the cache,
    /// and who has had their results does not get them again.
    pub replay: bool,
    /// Of an answer in a thin session: whether the token that was drawn went on to the first server
    /// as the step after this one.
    pub goes_on: bool,
}

/// What of a step's result goes back to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AnswerRows {
    /// A row for each token.
    #[default]
    All,
    /// The row of the last token, at the position of that token.
    Last,
}

impl AnswerRows {
    /// How many of the results of `tokens` tokens that is.
    #[must_use]
    pub fn of(self, tokens: u32) -> u32 {
        match self {
            Self::All => tokens,
            Self::Last => tokens.min(1),
        }
    }
}

impl Step {
    /// The step with no more rows than its answer is to have.
    #[must_use]
    pub fn into_answer(mut self) -> Self {
        let tokens = self.token_count();
        let skipped = tokens - self.answer_rows.of(tokens);
        if skipped > 0 {
            self.hidden = self.hidden.rows(skipped, tokens);
            self.position = self.position.saturating_add(skipped);
        }
        self
    }

    /// Tokens of the step; 0 where the tensor is not of shape `[tokens, hidden]`.
    #[must_use]
    pub fn token_count(&self) -> u32 {
        match self.hidden.shape() {
            &[tokens, _] => tokens,
            _ => 0,
        }
    }

    /// The position after the step; `None` beyond 32 bits, which no step that was received is.
    #[must_use]
    pub fn end_position(&self) -> Option<u32> {
        self.position.checked_add(self.token_count())
    }
}

/// What a hop says of the time that a step took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopTiming {
    /// Which server.
    pub peer: PeerId,
    /// The blocks that it computed.
    pub span: Span,
    /// Waiting for the steps of others.
    pub queue: Duration,
    /// Arithmetic.
    pub compute: Duration,
    /// From the arrival of the step to its departure, by the hop's own clock.
    pub hop: Duration,
    /// The last round trip to the next hop, where it has been measured.
    pub link_round_trip: Option<Duration>,
}
