//! What members agree on, and what they hear and say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use umbel_protocol::PeerId;
use umbel_protocol::averaging::Stand;

use super::combine::Rule;
use super::delta::Delta;
use super::state::{OuterStep, RunState};

/// What all members of a run agree on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunSettings {
    /// How deltas are combined.
    pub rule: Rule,
    /// What is done with what comes of them.
    pub outer: OuterStep,
    /// How long members learn by themselves.
    pub learn: Duration,
    /// How long the first who may propose waits for deltas, and each further one for those before it.
    pub gather: Duration,
}

impl RunSettings {
    /// The name of a run: of all that its members agree on, among which is `what` they learn.
    #[must_use]
    pub fn name(&self, what: &[u8]) -> [u8; 32] {
        let Self { rule, outer, learn, gather } = *self;
        let rule = match rule {
            Rule::Mean => 0u8,
            Rule::TrimmedMean => 1,
        };
        let hash = Sha256::new()
            .chain_update([rule])
            .chain_update(outer.learning_rate.to_le_bytes())
            .chain_update(outer.momentum.to_le_bytes())
            .chain_update(learn.as_nanos().to_le_bytes())
            .chain_update(gather.as_nanos().to_le_bytes())
            .chain_update(what);
        hash.finalize().into()
    }
}

/// What members say to each other. Links lose nothing and keep the order.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Where the sender stands; `None` where it has no state yet.
    Stand(Option<Stand>),
    /// What the sender has learned.
    Contribution {
        /// In the round that began here.
        start: Stand,
        /// By how much its values have shrunk.
        delta: Arc<Delta>,
    },
    /// Which deltas are to count.
    Proposal {
        /// In the round that began here.
        start: Stand,
        /// Whose, and their digests.
        deltas: BTreeMap<PeerId, [u8; 32]>,
    },
    /// Send on what another has told you.
    WantDelta {
        /// In the round that began here.
        start: Stand,
        /// Who.
        author: PeerId,
    },
    /// An answer to it.
    Relayed {
        /// In the round that began here.
        start: Stand,
        /// Who.
        author: PeerId,
        /// What.
        delta: Arc<Delta>,
    },
    /// Send the state at which you stand, if it is this one.
    WantState(Stand),
    /// An answer to it.
    State(Arc<RunState>),
}

/// What happens to a member.
#[derive(Debug)]
pub enum Input {
    /// There is a link to another member.
    Met {
        /// Which.
        peer: PeerId,
    },
    /// It is gone.
    Left {
        /// Whose.
        peer: PeerId,
    },
    /// Another member said something.
    Received {
        /// Who.
        from: PeerId,
        /// What.
        message: Message,
    },
    /// An answer to [`Output::Learned`].
    Learned {
        /// In which round.
        round: u64,
        /// The adapter's values.
        values: Vec<f32>,
    },
}

/// What a member wants done.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Say something to another member.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message,
    },
    /// Learn from these values on, whatever was learned since the last.
    Begin {
        /// The state with them.
        state: Arc<RunState>,
    },
    /// Say what was learned: the answer is [`Input::Learned`]. Learning goes on until the next
    /// [`Output::Begin`], for nothing where the answer is late.
    Learned {
        /// In which round.
        round: u64,
    },
}
