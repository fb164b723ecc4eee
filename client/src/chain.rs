//! Where hidden states go through the blocks: in this process, or over a swarm.

mod lead;
pub mod local;
pub mod remote;
pub(crate) mod thin;

use std::time::Duration;

use umbel_coordinator::route::NoRoute;
use umbel_coordinator::session::SessionFailure;
use umbel_engine::HiddenStates;
use umbel_protocol::inference::AnswerRows;
use umbel_protocol::{PeerId, Span};

use lead::Lead;
use local::{LocalChain, LocalStepError};
use remote::{OpenChainError, RemoteChain, RemoteStep};

/// One session through all blocks of a model.
///
/// Where its adapter has learned vectors that stand before the text, the session begins with them, and
/// positions, room and what servers hold are told without them.
pub enum Chain {
    /// Everything in this process.
    Local(LocalChain),
    /// Over the servers of a swarm.
    Remote(Box<RemoteChain>),
}

/// Tokens as they enter the first block.
#[derive(Debug, Clone)]
pub struct Entering {
    /// Their embedding, `[tokens, hidden]`.
    pub hidden: HiddenStates,
    /// The tokens themselves, one for each row, so that servers may keep what they compute for later
    /// sessions of this client. Empty where they are not told.
    pub ids: Vec<u32>,
}

impl From<HiddenStates> for Entering {
    fn from(hidden: HiddenStates) -> Self {
        Self { hidden, ids: Vec::new() }
    }
}

/// A step that was handed in.
#[must_use = "a step is over when its answer has come"]
pub struct StepUnderWay {
    under_way: UnderWay,
    /// Rows at the beginning that nobody has asked for.
    skipped: usize,
}

enum UnderWay {
    Done(Box<Result<(HiddenStates, StepTime), StepError>>),
    Sent(RemoteStep),
}

impl StepUnderWay {
    /// The rows that were wanted, once they have come.
    ///
    /// # Errors
    /// [`StepError`]; the chain is then of no use until it is reopened.
    pub async fn finish(self) -> Result<(HiddenStates, StepTime), StepError> {
        let (rows, time) = match self.under_way {
            UnderWay::Done(result) => (*result)?,
            UnderWay::Sent(step) => step.finish().await?,
        };
        let all = rows.token_count();
        // An answer that has the last row alone has none of them.
        if self.skipped == 0 || all <= self.skipped {
            return Ok((rows, time));
        }
        Ok((rows.rows(self.skipped..all).expect("they are among all"), time))
    }
}

/// Where the time of one or more steps went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepTime {
    /// From handing the tokens in to their result.
    pub total: Duration,
    /// Each hop's share, in order. The shares add up to the total, save where hops worked on
    /// several steps at once: then they add up to more.
    pub hops: Vec<HopTime>,
}

/// One hop's share of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopTime {
    /// Who computed; `None` for this process.
    pub peer: Option<PeerId>,
    /// Through which blocks.
    pub blocks: Span,
    /// Arithmetic.
    pub compute: Duration,
    /// Waiting for the steps of others.
    pub queue: Duration,
    /// Everything else: the link that leads to this hop (for the last hop also the one that leads
    /// back), encoding, wake-ups. The total is measured; it is divided among the links in
    /// proportion to their round trips, since no two peers share a clock.
    pub network: Duration,
}

impl StepTime {
    /// Adds the time of a further step along the same hops.
    pub fn add(&mut self, other: Self) {
        self.total += other.total;
        let same = |(a, b): (&HopTime, &HopTime)| a.peer == b.peer && a.blocks == b.blocks;
        if self.hops.len() != other.hops.len() || !self.hops.iter().zip(&other.hops).all(same) {
            // After a failover the route is another; what the old one did is in the total.
            self.hops = other.hops;
            return;
        }
        for (hop, more) in self.hops.iter_mut().zip(other.hops) {
            hop.compute += more.compute;
            hop.queue += more.queue;
            hop.network += more.network;
        }
    }
}

impl Chain {
    /// Takes tokens through every block, after cutting the cache to `position`.
    ///
    /// # Errors
    /// [`StepError`]; the chain is then of no use until it is reopened.
    pub async fn step(
        &mut self,
        position: u32,
        entering: impl Into<Entering>,
    ) -> Result<(HiddenStates, StepTime), StepError> {
        self.begin(position, entering, AnswerRows::All).await.finish().await
    }

    /// Hands tokens in without waiting for their result, of which these rows are wanted. The next
    /// step may begin at once where it follows this one; where too many are under way, it waits.
    pub async fn begin(
        &mut self,
        position: u32,
        entering: impl Into<Entering>,
        answer_rows: AnswerRows,
    ) -> StepUnderWay {
        let (mut position, mut entering, mut skipped) = (position, entering.into(), 0);
        if let Some(lead) = self.lead() {
            (position, entering, skipped) = lead.before(position, entering);
        }
        let under_way = match self {
            Self::Local(chain) => {
                UnderWay::Done(Box::new(chain.step(position, entering.hidden).await))
            }
            Self::Remote(chain) => {
                UnderWay::Sent(chain.begin(position, entering, answer_rows).await)
            }
        };
        StepUnderWay { under_way, skipped }
    }

    /// What stands before the text.
    fn lead(&self) -> Option<&Lead> {
        match self {
            Self::Local(chain) => chain.lead(),
            Self::Remote(chain) => chain.lead(),
        }
    }

    /// Tokens of what stands before the text.
    fn lead_tokens(&self) -> u32 {
        self.lead().map_or(0, Lead::tokens)
    }

    /// Whether learned vectors stand before the text.
    #[must_use]
    pub fn has_prompt(&self) -> bool {
        self.lead().is_some()
    }

    /// Tokens at the beginning of the prompt for which it was opened that need not be handed in.
    #[must_use]
    pub fn held(&self) -> &[u32] {
        match self {
            Self::Local(_) => &[],
            Self::Remote(chain) => chain.held(),
        }
    }

    /// The chunks, of at most `tokens_max` tokens, in which a prompt of `tokens` tokens that begins
    /// at `position` is best handed in.
    #[must_use]
    pub fn prefill_chunks(&self, position: u32, tokens: u32, tokens_max: u32) -> Vec<u32> {
        match self {
            // One stage, which is busy all the time with the longest chunks.
            Self::Local(_) => {
                let whole = (0..tokens).step_by(tokens_max.max(1) as usize);
                whole.map(|begin| tokens_max.max(1).min(tokens - begin)).collect()
            }
            Self::Remote(chain) => chain.chunks(position + self.lead_tokens(), tokens, tokens_max),
        }
    }

    /// Tokens for which the chain has room.
    #[must_use]
    pub fn tokens_max(&self) -> u32 {
        let all = match self {
            Self::Local(chain) => chain.tokens_max(),
            Self::Remote(chain) => chain.tokens_max(),
        };
        all.saturating_sub(self.lead_tokens())
    }

    /// Who computes which blocks; the peer is `None` for this process.
    #[must_use]
    pub fn route(&self) -> Vec<(Option<PeerId>, Span)> {
        match self {
            Self::Local(chain) => vec![(None, chain.blocks())],
            Self::Remote(chain) => {
                chain.hops().into_iter().map(|hop| (Some(hop.peer), hop.blocks)).collect()
            }
        }
    }

    /// Begins anew after a step has failed, with nothing in the cache but what servers hold of `text`
    /// ([`Chain::held`]).
    ///
    /// # Errors
    /// [`StepError`] where there is no route.
    pub async fn reopen(&mut self, text: &[u32]) -> Result<(), StepError> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Remote(chain) => Ok(chain.reopen(text).await?),
        }
    }

    /// Ends the session, so that servers free its cache at once.
    pub async fn close(self) {
        match self {
            Self::Local(_) => {}
            Self::Remote(chain) => chain.close().await,
        }
    }
}

/// A step that the chain could not take.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The arithmetic in this process failed.
    #[error("the blocks could not be computed")]
    Compute(#[from] LocalStepError),
    /// An earlier step was given up half-way, so nobody knows what the cache holds.
    #[error("an earlier step of this session was interrupted: open a new one")]
    Interrupted,
    /// The session could not be kept up.
    #[error(transparent)]
    Session(Box<SessionFailure>),
    /// No new session could be opened.
    #[error(transparent)]
    Open(#[from] Box<OpenChainError>),
    /// The answer is no hidden states of this model.
    #[error("the last server answered with a tensor that is no hidden states of this model")]
    Malformed {
        /// What is wrong with it.
        source: umbel_engine::WrongHiddenStates,
    },
}

impl From<OpenChainError> for StepError {
    fn from(error: OpenChainError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<SessionFailure> for StepError {
    fn from(failure: SessionFailure) -> Self {
        Self::Session(Box::new(failure))
    }
}

impl StepError {
    /// Whether the tokens can be computed once more, in a new session: what the session itself
    /// could mend, it has.
    #[must_use]
    pub fn may_begin_anew(&self) -> bool {
        match self {
            Self::Session(failure) => match failure.as_ref() {
                SessionFailure::JournalLost => true,
                SessionFailure::NoRoute { .. } | SessionFailure::Hop(_) => false,
            },
            Self::Malformed { .. } => true,
            Self::Compute(_) | Self::Interrupted | Self::Open(_) => false,
        }
    }

    /// Whether servers are there and have no room: later one may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Session(failure) => failure.is_full(),
            Self::Open(error) => match error.as_ref() {
                OpenChainError::Session(failure) => failure.is_full(),
                OpenChainError::NotServed { .. } => false,
            },
            Self::Compute(_) | Self::Interrupted | Self::Malformed { .. } => false,
        }
    }

    /// The blocks that nobody serves, where that is the trouble.
    #[must_use]
    pub fn no_route(&self) -> Option<&NoRoute> {
        let failure = match self {
            Self::Session(failure) => failure.as_ref(),
            Self::Open(error) => match error.as_ref() {
                OpenChainError::Session(failure) => failure,
                OpenChainError::NotServed { .. } => return None,
            },
            Self::Compute(_) | Self::Interrupted | Self::Malformed { .. } => return None,
        };
        match failure {
            SessionFailure::NoRoute { no_route, .. } => Some(no_route),
            SessionFailure::Hop(_) | SessionFailure::JournalLost => None,
        }
    }
}
