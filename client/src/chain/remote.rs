//! One session over the servers of a swarm.
//!
//! A task of its own drives the session ([`umbel_coordinator::session`]), so that servers that
//! leave are relieved also while the caller is busy with something else.

mod driver;
mod links;
mod stages;
mod thin;
mod timing;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use umbel_coordinator::prefill::CHUNK_TOKENS_MIN;
use umbel_coordinator::session::{HopFailure, SessionConfig, SessionFailure};
use umbel_coordinator::{Hop, prefill};
use umbel_engine::{Ends, EndsError, HiddenStates};
use umbel_protocol::inference::AnswerRows;
use umbel_protocol::{DType, ModelId};

use super::lead::Lead;
use super::{Entering, StepError, StepTime};
use crate::adapter::NamedAdapter;
use crate::apart;
use crate::model::ClientModel;
use crate::swarm::Swarm;
use driver::{Command, Driver, NextStep, Stepped};
use stages::Proportions;
use thin::DrawnTokens;

/// Bytes of hidden states that a client keeps for the failure of its first hop: 4,096 tokens of a
/// hidden size of 8,192. Beyond them it begins anew from the tokens.
const JOURNAL_BYTES_MAX: usize = 128 << 20;

/// Commands that wait for the session: the caller asks for one thing at a time.
const COMMANDS_WAITING_MAX: usize = 4;

/// What a session is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Whether each hop has a spare, which computes along, so that a failure costs no replay.
    pub standby: bool,
    /// How hidden states are written on the links. Only binary32 gives the numbers of a single
    /// process, and the same ones however the model is split; narrower types take less of a slow
    /// link.
    pub wire: DType,
    /// How servers keep keys and values. Narrower types take less of their memory, so that more
    /// sessions or longer ones find room; each server rounds alike, so that a replacement continues
    /// as its predecessor would have.
    pub cache: DType,
    /// Whether the session takes over what servers have kept of earlier ones of this client, and
    /// leaves them what it reads. With `standby` it takes nothing over, with `thin` it does neither.
    pub share: bool,
    /// Whether the servers at the ends of the route embed tokens and draw them, so that each token
    /// crosses a link once and this side needs no weights. It takes the last server's word for what
    /// the model says; spares and drafts there are none.
    pub thin: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { standby: false, wire: DType::F32, cache: DType::F32, share: true, thin: false }
    }
}

/// For what a session is opened.
#[derive(Debug, Clone, Default)]
pub struct Opening<'a> {
    /// Tokens for which it has room.
    pub tokens_max: u32,
    /// What it will read first. Where servers still hold what that begins with, from an earlier session
    /// of this client, the session begins behind it ([`RemoteChain::held`]).
    pub prompt: &'a [u32],
    /// What it is to be like.
    pub options: SessionOptions,
    /// What is added to the matrices for this session's tokens and nobody else's. Servers that lack it
    /// are sent it.
    pub adapter: Option<NamedAdapter>,
}

/// A session along a route of servers.
pub struct RemoteChain {
    swarm: Arc<Swarm>,
    /// For what servers hold and no step has brought; absent where servers embed.
    ends: Option<Ends>,
    wanted: Wanted,
    hidden_size: usize,
    running: Running,
    /// The tokens that every server holds and no step has brought.
    held: Vec<u32>,
    /// What the last server of a thin session draws.
    drawn: Option<DrawnTokens>,
}

/// What a session is opened for.
#[derive(Debug, Clone)]
struct Wanted {
    model: ModelId,
    block_count: u32,
    tokens_max: u32,
    token_bytes: u32,
    head_size: u32,
    vocabulary_size: u32,
    options: SessionOptions,
    proportions: Proportions,
    adapter: Option<NamedAdapter>,
    /// The vectors of the adapter that stand before the text.
    lead: Option<Lead>,
}

impl Wanted {
    /// Whether the session takes over what earlier ones have read: what a thin one has read only its
    /// servers know how to write.
    const fn shares(&self) -> bool {
        self.options.share && !self.options.thin
    }

    /// As many tokens in binary32 take as much room.
    fn room_tokens(&self) -> u32 {
        let head = |dtype: DType| dtype.row_bytes(self.head_size).max(1);
        let bytes = u64::from(self.tokens_max) * head(self.options.cache);
        u32::try_from(bytes.div_ceil(head(DType::F32))).unwrap_or(u32::MAX)
    }
}

/// The task that drives the session.
struct Running {
    commands: mpsc::Sender<Command>,
    hops: watch::Receiver<Vec<Hop>>,
    failures: watch::Receiver<Vec<HopFailure>>,
}

impl RemoteChain {
    /// Opens a session with room for `tokens_max` tokens on the route of least time.
    ///
    /// # Errors
    /// As [`RemoteChain::open_with`].
    pub async fn open(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        tokens_max: u32,
    ) -> Result<Self, OpenChainError> {
        Self::open_with(swarm, model, Opening { tokens_max, ..Opening::default() }).await
    }

    /// Opens a session as it is wanted on the route of least time.
    ///
    /// # Errors
    /// [`OpenChainError`] where no route covers the model, or a server of it refuses or has no room for
    /// the adapter.
    pub async fn open_with(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        opening: Opening<'_>,
    ) -> Result<Self, OpenChainError> {
        let Opening { tokens_max, prompt, options, adapter } = opening;
        let hidden_size = model.config().hidden_size;
        let lead = Lead::of(adapter.as_ref());
        let context = u32::try_from(model.config().context_tokens).unwrap_or(u32::MAX);
        let tokens_max = match &lead {
            // Room is asked for text, and a session has none beyond the model's context.
            Some(lead) => tokens_max.saturating_add(lead.tokens()).min(context),
            None => tokens_max,
        };
        let wanted = Wanted {
            model: model.id(),
            block_count: model.config().block_count,
            tokens_max,
            token_bytes: u32::try_from(
                options.wire.row_bytes(u32::try_from(hidden_size).unwrap_or(u32::MAX)),
            )
            .unwrap_or(u32::MAX),
            head_size: u32::try_from(model.config().head_size).unwrap_or(u32::MAX),
            vocabulary_size: u32::try_from(model.config().vocabulary_size).unwrap_or(u32::MAX),
            options,
            proportions: Proportions::of(model.config()),
            adapter,
            lead,
        };
        let ends = model.has_weights().then(|| model.ends().clone());
        let (running, held) = Running::start(&swarm, &wanted, ends.as_ref(), prompt).await?;
        Ok(Self { swarm, ends, wanted, hidden_size, running, held, drawn: None })
    }

    /// Begins anew on a route of its own, with nothing in its cache but what servers hold of `text`.
    pub(super) async fn reopen(&mut self, text: &[u32]) -> Result<(), OpenChainError> {
        (self.running, self.held) =
            Running::start(&self.swarm, &self.wanted, self.ends.as_ref(), text).await?;
        Ok(())
    }

    /// Tokens at the beginning of the prompt that every server holds already: the first step may begin
    /// behind them. Nothing any more once there has been a step.
    #[must_use]
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Hands tokens in; they wait while as many steps are under way as may be.
    pub(super) async fn begin(
        &mut self,
        position: u32,
        Entering { hidden, ids }: Entering,
        answer_rows: AnswerRows,
    ) -> RemoteStep {
        let (answer, answered) = oneshot::channel();
        let hidden = hidden.to_wire_as(self.wanted.options.wire);
        let next = NextStep { position, hidden, ids, answer_rows, answer: Some(answer) };
        self.held.clear();
        // A session that is over answers nothing more.
        let _over = self.running.commands.send(Command::Step(next)).await;
        RemoteStep { answered, swarm: Arc::clone(&self.swarm), hidden_size: self.hidden_size }
    }

    /// The chunks in which a prompt is over first.
    pub(super) fn chunks(&self, position: u32, tokens: u32, tokens_max: u32) -> Vec<u32> {
        if tokens <= tokens_max.min(CHUNK_TOKENS_MIN) {
            // A token of decode, most often, for which nobody need be looked up.
            return vec![tokens];
        }
        let Wanted { model, proportions, token_bytes, .. } = self.wanted;
        let announcements = self.swarm.known(Some(model));
        let stages = stages::of_route(&self.hops(), &announcements, proportions, token_bytes);
        prefill::plan(&stages, position, tokens, tokens_max)
    }

    pub(super) const fn lead(&self) -> Option<&Lead> {
        self.wanted.lead.as_ref()
    }

    pub(super) const fn tokens_max(&self) -> u32 {
        self.wanted.tokens_max
    }

    pub(super) fn hops(&self) -> Vec<Hop> {
        self.running.hops.borrow().clone()
    }

    /// The last hops that have failed, and why; 64 at most.
    #[must_use]
    pub fn failures(&self) -> Vec<HopFailure> {
        self.running.failures.borrow().clone()
    }

    /// The same as it changes, for who wants to know of a failure when it is noticed.
    #[must_use]
    pub fn watch_failures(&self) -> watch::Receiver<Vec<HopFailure>> {
        self.running.failures.clone()
    }

    pub(super) async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.running.commands.send(Command::Close { done }).await.is_ok() {
            let _when_said = closed.await;
        }
    }
}

/// A step that is under way.
pub(super) struct RemoteStep {
    answered: oneshot::Receiver<Result<Stepped, SessionFailure>>,
    swarm: Arc<Swarm>,
    hidden_size: usize,
}

impl RemoteStep {
    pub(super) async fn finish(self) -> Result<(HiddenStates, StepTime), StepError> {
        let Stepped { hidden, trace, total } =
            self.answered.await.unwrap_or(Err(SessionFailure::JournalLost))?;
        let time = timing::divide(trace, total, |peer| self.swarm.round_trip(peer));
        let hidden = HiddenStates::from_wire(&hidden, self.hidden_size)
            .map_err(|source| StepError::Malformed { source })?;
        Ok((hidden, time))
    }
}

impl Running {
    /// Opens a session; what its servers hold of `text`.
    async fn start(
        swarm: &Arc<Swarm>,
        wanted: &Wanted,
        ends: Option<&Ends>,
        text: &[u32],
    ) -> Result<(Self, Vec<u32>), OpenChainError> {
        let swarm = Arc::clone(swarm);
        let model = wanted.model;
        swarm.refresh(model).await;
        if swarm.knows_nobody(model) {
            return Err(OpenChainError::NotServed { model });
        }
        let adapter = wanted.adapter.as_ref();
        let adapter_id = adapter.map(NamedAdapter::id);
        let named = wanted.lead.as_ref().map_or_else(|| text.to_vec(), |lead| lead.named(text));
        let config = SessionConfig {
            model,
            block_count: wanted.block_count,
            tokens_max: wanted.tokens_max,
            token_bytes: wanted.token_bytes,
            journal_bytes_max: JOURNAL_BYTES_MAX,
            results: wanted.options.wire,
            cache: wanted.options.cache,
            standby: wanted.options.standby,
            sharing: wanted.shares().then(|| swarm.sharing(&named, adapter_id)),
            thin_vocabulary: wanted.options.thin.then_some(wanted.vocabulary_size),
            adapter: adapter.and_then(NamedAdapter::described),
        };
        let (commands, receive) = mpsc::channel(COMMANDS_WAITING_MAX);
        let (ready, opened) = oneshot::channel();
        let (driver, hops, failures) =
            Driver::new(swarm, (config, adapter.cloned()), wanted.room_tokens(), receive, ready);
        tokio::spawn(driver.run());
        let taken_over = match opened.await {
            Ok(Ok(taken_over)) => taken_over,
            Ok(Err(failure)) => return Err(OpenChainError::Session(failure)),
            Err(_) => return Err(OpenChainError::NotServed { model }),
        };
        let running = Self { commands, hops, failures };
        // Of what stands before the text servers may hold a part alone: the text then begins anew.
        let before = wanted.lead.as_ref().map_or(0, Lead::tokens);
        let taken_over = taken_over.saturating_sub(before) as usize;
        let mut held = text[..text.len().min(taken_over)].to_vec();
        // The prompt has tokens that the model lacks: who hands them in will be told so.
        if let Some(ends) = ends
            && running.remember(ends, &held, wanted).await.is_err()
        {
            held.clear();
        }
        Ok((running, held))
    }

    /// Hands in what enters the first block for tokens that no step brings, in case a server has to
    /// be filled anew; of a text for which there is no room the session could keep nothing.
    async fn remember(&self, ends: &Ends, held: &[u32], wanted: &Wanted) -> Result<(), EndsError> {
        let lead = wanted.lead.clone();
        let tokens = held.len() + lead.as_ref().map_or(0, |lead| lead.vectors().token_count());
        let bytes = tokens.saturating_mul(wanted.token_bytes as usize);
        if held.is_empty() || bytes > JOURNAL_BYTES_MAX {
            return Ok(());
        }
        tracing::debug!(tokens = held.len(), "servers hold the beginning of the prompt");
        let (ends, held, wire) = (ends.clone(), held.to_vec(), wanted.options.wire);
        let hidden = apart::compute(move || {
            let embedded = ends.embed(&held)?;
            let all = lead.iter().map(|lead| lead.vectors().clone()).chain([embedded]);
            let all = HiddenStates::concat(&all.collect::<Vec<_>>());
            Ok::<_, EndsError>(all.expect("the adapter is for this model").to_wire_as(wire))
        });
        let hidden = hidden.await?;
        // A session that is over needs nothing any more.
        let _over = self.commands.send(Command::Remember { hidden }).await;
        Ok(())
    }
}

/// No session could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenChainError {
    /// Nobody in the swarm serves this model.
    #[error(
        "no server of the swarm serves this model (id {model}); `umbel status` shows what is served"
    )]
    NotServed {
        /// Its id.
        model: ModelId,
    },
    /// Some blocks are served by nobody, or a server that is needed refused the session.
    #[error(transparent)]
    Session(SessionFailure),
}
