//! A session over servers that embed tokens and draw them.

use tokio::sync::mpsc;
use umbel_coordinator::session::{DrawWanted, SessionFailure};
use umbel_protocol::Tensor;
use umbel_protocol::inference::{AnswerRows, HopTiming};

use super::driver::{Command, NextStep};
use super::{RemoteChain, timing};
use crate::chain::StepError;
use crate::chain::thin::DrawnToken;

/// A token that was drawn, as the session tells of it.
pub(super) struct Drawn {
    pub(super) id: u32,
    pub(super) goes_on: bool,
    pub(super) trace: Vec<HopTiming>,
    pub(super) total: std::time::Duration,
}

/// What comes back from the steps of an answer, in their order.
pub(super) type DrawnTokens = mpsc::Receiver<Result<Drawn, SessionFailure>>;

impl RemoteChain {
    pub(in crate::chain) const fn is_thin(&self) -> bool {
        self.wanted.options.thin
    }

    pub(in crate::chain) async fn draw(&mut self, wanted: DrawWanted) {
        // Servers go on by themselves for as many tokens as the session has room for, and a step of
        // the caller's has a token at least; one place more is for the end of the session.
        let (tell, drawn) = mpsc::channel(self.wanted.tokens_max as usize + 1);
        self.drawn = Some(drawn);
        // A session that is over answers nothing more.
        let _over = self.running.commands.send(Command::Draw { wanted, tell }).await;
    }

    pub(in crate::chain) async fn begin_ids(&mut self, position: u32, ids: &[u32]) {
        let (hidden, answer_rows) = (Tensor::of_ids(ids), AnswerRows::Last);
        let ids = Vec::new();
        let next = NextStep { position, hidden, ids, answer_rows, answer: None };
        let _over = self.running.commands.send(Command::Step(next)).await;
    }

    pub(in crate::chain) async fn drawn(&mut self) -> Result<DrawnToken, StepError> {
        let drawn = match &mut self.drawn {
            Some(drawn) => drawn.recv().await,
            None => None,
        };
        let Drawn { id, goes_on, trace, total } =
            drawn.unwrap_or(Err(SessionFailure::JournalLost))?;
        let time = timing::divide(trace, total, |peer| self.swarm.round_trip(peer));
        Ok(DrawnToken { id, goes_on, time })
    }
}
