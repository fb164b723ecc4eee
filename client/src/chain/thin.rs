//! Sessions in which tokens alone cross to and from this side.

use umbel_coordinator::session::DrawWanted;
use umbel_engine::Sampling;

use super::{Chain, StepError, StepTime};

/// A token that the last server has drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DrawnToken {
    /// Its id; nothing where the step ended before the first token that was to be drawn.
    pub(crate) id: u32,
    /// Whether the servers go on with it by themselves.
    pub(crate) goes_on: bool,
    pub(crate) time: StepTime,
}

impl Chain {
    /// Whether servers embed tokens and draw them, so that ids cross the links to this side, and no
    /// hidden states.
    #[must_use]
    pub const fn is_thin(&self) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Remote(chain) => chain.is_thin(),
        }
    }

    /// Says how the tokens of an answer are to be drawn, before its first step.
    ///
    /// # Panics
    /// If the chain is not thin.
    pub(crate) async fn draw(&mut self, wanted: DrawWanted) {
        self.thin().draw(wanted).await;
    }

    /// Hands in ids of tokens, without waiting for what is drawn.
    ///
    /// # Panics
    /// If the chain is not thin.
    pub(crate) async fn begin_ids(&mut self, position: u32, ids: &[u32]) {
        self.thin().begin_ids(position, ids).await;
    }

    /// What was drawn from the first step that has not been asked for yet.
    ///
    /// # Panics
    /// If the chain is not thin.
    pub(crate) async fn drawn(&mut self) -> Result<DrawnToken, StepError> {
        self.thin().drawn().await
    }

    fn thin(&mut self) -> &mut super::remote::RemoteChain {
        match self {
            Self::Remote(chain) if chain.is_thin() => chain,
            Self::Local(_) | Self::Remote(_) => panic!("tokens are drawn here"),
        }
    }
}

/// The same in the protocol's words.
pub(crate) fn sampling_to_wire(sampling: &Sampling) -> umbel_protocol::inference::Sampling {
    umbel_protocol::inference::Sampling {
        temperature: sampling.temperature,
        top_k: u32::try_from(sampling.top_k).unwrap_or(u32::MAX),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        seed: sampling.seed,
    }
}
