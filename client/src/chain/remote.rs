//! One session over the servers of a swarm: the body of [`umbel_coordinator::session`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use umbel_coordinator::random::Random;
use umbel_coordinator::route::cost::Costs;
use umbel_coordinator::route::{NoRoute, Route, RouteRequest, plan_route};
use umbel_coordinator::session::{
    Input, Output, RouteHop, STEP_TIMEOUT, Session, SessionConfig, SessionFailure,
};
use umbel_coordinator::{Hop, Time};
use umbel_engine::HiddenStates;
use umbel_net::{LinkProtocol, LinkReceiver, LinkSender, OpenLinkError};
use umbel_protocol::announcement::Announcement;
use umbel_protocol::inference::{HopTiming, ServerMessage};
use umbel_protocol::{ModelId, PeerId, SessionId, Span, Tensor};

use super::{HopTime, StepError, StepTime};
use crate::model::ClientModel;
use crate::swarm::Swarm;

/// Messages of all hops that wait for the session: each hop has at most an answer, an error and a
/// farewell under way.
const MESSAGES_WAITING_MAX: usize = 64;

/// A session along a route of servers.
pub struct RemoteChain {
    swarm: Arc<Swarm>,
    model: ModelId,
    block_count: u32,
    hidden_size: usize,
    tokens_max: u32,
    excluded: BTreeSet<PeerId>,
    live: Live,
}

/// The session on the route of the moment.
struct Live {
    session: Session,
    senders: Vec<LinkSender>,
    messages: mpsc::Receiver<(usize, Option<ServerMessage>)>,
    readers: Vec<tokio::task::JoinHandle<()>>,
    started: Instant,
}

/// What the session was driven to.
enum Event {
    Ready,
    Stepped { hidden: Tensor, trace: Vec<HopTiming>, total: Duration },
}

impl RemoteChain {
    /// Opens a session with room for `tokens_max` tokens on the route of least time.
    ///
    /// # Errors
    /// [`OpenChainError`] where no route covers the model or a server of it refuses.
    pub async fn open(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        tokens_max: u32,
    ) -> Result<Self, OpenChainError> {
        let wanted = Wanted {
            swarm: &swarm,
            model: model.id(),
            block_count: model.config().block_count,
            tokens_max,
        };
        let mut excluded = BTreeSet::new();
        let live = wanted.open(&mut excluded).await?;
        Ok(Self {
            model: model.id(),
            block_count: model.config().block_count,
            hidden_size: model.config().hidden_size,
            tokens_max,
            excluded,
            live,
            swarm,
        })
    }

    /// Leaves the route, on which `failed` failed, for another, with an empty cache.
    pub(super) async fn reopen(&mut self, failed: Option<PeerId>) -> Result<(), OpenChainError> {
        self.live.abandon();
        self.excluded.extend(failed);
        let wanted = Wanted {
            swarm: &self.swarm,
            model: self.model,
            block_count: self.block_count,
            tokens_max: self.tokens_max,
        };
        self.live = wanted.open(&mut self.excluded).await?;
        Ok(())
    }

    pub(super) async fn step(
        &mut self,
        position: u32,
        hidden: HiddenStates,
    ) -> Result<(HiddenStates, StepTime), StepError> {
        let hidden = hidden.to_wire();
        self.live.handle(Input::Step { position, hidden });
        match self.live.drive().await? {
            Event::Stepped { hidden, trace, total } => {
                let time = self.time(trace, total);
                let hidden = HiddenStates::from_wire(&hidden, self.hidden_size)
                    .map_err(|source| StepError::Malformed { source })?;
                Ok((hidden, time))
            }
            Event::Ready => unreachable!("a session becomes ready once, when it opens"),
        }
    }

    pub(super) const fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    pub(super) fn hops(&self) -> &[Hop] {
        self.live.session.hops()
    }

    pub(super) async fn close(mut self) {
        self.live.handle(Input::Close);
        self.live.flush().await;
        for sender in std::mem::take(&mut self.live.senders) {
            sender.close().await;
        }
    }

    /// Divides what is neither arithmetic nor waiting among the links.
    fn time(&self, trace: Vec<HopTiming>, total: Duration) -> StepTime {
        let busy: Duration = trace.iter().map(|hop| hop.compute.saturating_add(hop.queue)).sum();
        let network = total.saturating_sub(busy);
        let own = |peer| self.swarm.round_trip(peer);
        let mut weights: Vec<f64> = Vec::with_capacity(trace.len());
        let mut into = trace.first().and_then(|first| own(first.peer));
        for hop in &trace {
            weights.push(into.map_or(f64::NAN, |trip| trip.as_secs_f64()));
            into = hop.link_round_trip;
        }
        if let (Some(last), Some(weight)) = (trace.last(), weights.last_mut()) {
            *weight += own(last.peer).map_or(f64::NAN, |trip| trip.as_secs_f64());
        }
        // Where a link has not been measured yet, all count the same.
        let sum: f64 = weights.iter().sum();
        let even = 1.0 / trace.len().max(1) as f64;
        let share = |weight: f64| {
            if sum.is_finite() && sum > 0.0 { weight / sum } else { even }
        };
        let hops = trace
            .iter()
            .zip(&weights)
            .map(|(hop, weight)| HopTime {
                peer: Some(hop.peer),
                blocks: hop.span,
                compute: hop.compute,
                queue: hop.queue,
                network: network.mul_f64(share(*weight).clamp(0.0, 1.0)),
            })
            .collect();
        StepTime { total, hops }
    }
}

impl Live {
    fn handle(&mut self, input: Input) {
        let now = Time::after_start(self.started.elapsed());
        if let Err(violation) = self.session.handle(input, now) {
            tracing::warn!(session = %self.session.id(), %violation, "a server broke the protocol");
        }
    }

    /// Does what the session asks for until it has something to tell.
    async fn drive(&mut self) -> Result<Event, SessionFailure> {
        loop {
            while let Some(output) = self.session.poll() {
                match output {
                    Output::Send { hop, message } => {
                        if self.senders[hop].send(message.encode()).await.is_err() {
                            self.handle(Input::LinkLost { hop });
                        }
                    }
                    Output::Ready => return Ok(Event::Ready),
                    Output::Stepped { hidden, trace, total } => {
                        return Ok(Event::Stepped { hidden, trace, total });
                    }
                    Output::Failed(failure) => {
                        self.flush().await;
                        return Err(failure);
                    }
                }
            }
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let deadline = self.session.poll_timeout().map_or(STEP_TIMEOUT, Time::elapsed);
        let deadline = tokio::time::Instant::from_std(self.started + deadline);
        tokio::select! {
            message = self.messages.recv() => match message {
                Some((hop, Some(message))) => self.handle(Input::Received { hop, message }),
                Some((hop, None)) => self.handle(Input::LinkLost { hop }),
                // Every reader has reported the end of its link before it ended.
                None => self.handle(Input::LinkLost { hop: 0 }),
            },
            () = tokio::time::sleep_until(deadline) => {
                self.session.handle_timeout(Time::after_start(self.started.elapsed()));
            }
        }
    }

    /// Sends what is left to send; a link that is gone needs no farewell.
    async fn flush(&mut self) {
        while let Some(output) = self.session.poll() {
            if let Output::Send { hop, message } = output {
                // A server that does not read any more must not hold this client up.
                let send = self.senders[hop].send(message.encode());
                let _gone = tokio::time::timeout(Duration::from_secs(1), send).await;
            }
        }
    }

    fn abandon(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Its links close with it, which tells the servers.
        self.abandon();
    }
}

/// What a route is wanted for.
struct Wanted<'a> {
    swarm: &'a Swarm,
    model: ModelId,
    block_count: u32,
    tokens_max: u32,
}

impl Wanted<'_> {
    /// Opens a session, passing over servers that cannot be reached or refuse; each attempt
    /// excludes one more, so there are at most as many as there are servers.
    async fn open(&self, excluded: &mut BTreeSet<PeerId>) -> Result<Live, OpenChainError> {
        let mut servers = self.swarm.servers(self.model).await;
        let mut last = None;
        loop {
            let route = match self.plan(&servers, excluded) {
                Ok(route) => route,
                Err(no_route) => return Err(self.explain(no_route, &servers, last)),
            };
            match self.open_on(&route, &servers).await {
                Ok(live) => return Ok(live),
                Err(error) => {
                    let peer = error.peer();
                    tracing::warn!(%peer, error = %error, "passing over a server");
                    excluded.insert(peer);
                    last = Some(error);
                    servers = self.swarm.servers(self.model).await;
                }
            }
        }
    }

    fn plan(
        &self,
        servers: &[Announcement],
        excluded: &BTreeSet<PeerId>,
    ) -> Result<Route, NoRoute> {
        let round_trips: BTreeMap<_, _> = servers
            .iter()
            .filter_map(|server| Some((server.peer, self.swarm.round_trip(server.peer)?)))
            .collect();
        let request = RouteRequest {
            block_count: self.block_count,
            tokens_max: self.tokens_max,
            excluded: excluded.clone(),
            costs: Costs { round_trips },
        };
        plan_route(&request, servers, &mut Random::new(random_bits()))
    }

    /// The reason that helps most: what a server said, if only refusals stand in the way.
    fn explain(
        &self,
        no_route: NoRoute,
        servers: &[Announcement],
        last: Option<AttemptError>,
    ) -> OpenChainError {
        match last {
            Some(AttemptError::Link { peer, source }) => OpenChainError::Link { peer, source },
            Some(AttemptError::Session(failure)) => OpenChainError::Session(failure),
            None if servers.is_empty() => OpenChainError::NotServed { model: self.model },
            None => OpenChainError::NoRoute(no_route),
        }
    }

    async fn open_on(&self, route: &Route, servers: &[Announcement]) -> Result<Live, AttemptError> {
        let addresses_of = |peer: PeerId| {
            let server = servers.iter().find(|server| server.peer == peer);
            server.map(|server| server.addresses.clone()).unwrap_or_default()
        };
        let (tell, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let (mut senders, mut readers, mut hops) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &hop) in route.hops().iter().enumerate() {
            let addresses = addresses_of(hop.peer);
            let link = self
                .swarm
                .open_link(hop.peer, &addresses, LinkProtocol::Session)
                .await
                .map_err(|source| AttemptError::Link { peer: hop.peer, source })?;
            let (sender, receiver) = link.split();
            senders.push(sender);
            readers.push(tokio::spawn(read(index, receiver, tell.clone())));
            hops.push(RouteHop { hop, addresses });
        }
        let config = SessionConfig {
            session: random_session(),
            model: self.model,
            tokens_max: self.tokens_max,
            hops,
        };
        let session = Session::open(config, self.swarm.peer(), Time::START);
        let mut live = Live { session, senders, messages, readers, started: Instant::now() };
        live.drive().await.map_err(AttemptError::Session)?;
        tracing::info!(%route, session = %live.session.id(), "session opened");
        Ok(live)
    }
}

/// Hands on what one hop says, and at last that it says no more.
async fn read(
    hop: usize,
    mut receiver: LinkReceiver,
    tell: mpsc::Sender<(usize, Option<ServerMessage>)>,
) {
    loop {
        let message = match receiver.receive().await {
            Ok(Some(frame)) => ServerMessage::decode(frame).map_err(|error| error.to_string()),
            Ok(None) => Err("the link closed".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match message {
            Ok(message) => {
                if tell.send((hop, Some(message))).await.is_err() {
                    return;
                }
            }
            Err(reason) => {
                tracing::debug!(hop, reason, "a hop says no more");
                let _nobody_listens = tell.send((hop, None)).await;
                return;
            }
        }
    }
}

/// The session is also the secret that allows a push into it, so it comes from the system.
fn random_session() -> SessionId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    SessionId::new(u128::from_le_bytes(bytes))
}

fn random_bits() -> u64 {
    getrandom::u64().expect("the system has randomness")
}

/// One attempt at one route.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("{peer} cannot be reached: {source}")]
    Link { peer: PeerId, source: OpenLinkError },
    #[error(transparent)]
    Session(SessionFailure),
}

impl AttemptError {
    const fn peer(&self) -> PeerId {
        match self {
            Self::Link { peer, .. } => *peer,
            Self::Session(failure) => failure.hop.peer,
        }
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
    /// Some blocks are served by nobody.
    #[error(transparent)]
    NoRoute(NoRoute),
    /// A server that is needed cannot be reached.
    #[error("server {peer} cannot be reached, and no other serves its blocks")]
    Link {
        /// Which one.
        peer: PeerId,
        /// Why.
        source: OpenLinkError,
    },
    /// A server that is needed refused the session.
    #[error(transparent)]
    Session(SessionFailure),
}

impl OpenChainError {
    /// The blocks of a hop that stood in the way, if it was one.
    #[must_use]
    pub fn blocks(&self) -> Option<Span> {
        match self {
            Self::Session(failure) => Some(failure.hop.blocks),
            Self::NotServed { .. } | Self::NoRoute(_) | Self::Link { .. } => None,
        }
    }
}
