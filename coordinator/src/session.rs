//! The client's role: one session along a route that may change under it.
//!
//! The machine asks its body for a route, opens the session on every hop, and sends steps to the
//! first; each hop pushes its result to the next, and the last one answers here. When
//! a hop fails, its blocks are routed anew while the others keep their caches: the hop before them
//! sends what its journal holds to the replacement, which computes it once more. The client is the
//! hop before the first, with a journal of its own. To open a session is to mend an empty route.

mod adapter;
mod contact;
mod failure;
mod flight;
mod inbox;
mod mend;
mod patience;
mod place;
mod prefix;
mod ring;
mod spare;
pub mod speculation;
mod watch;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::inference::{
    AnswerRows, ClientMessage, HopTiming, ServerMessage, SessionAdapter,
};
use umbel_protocol::{DType, ModelId, PeerId, SessionId, Span, StepId, Tensor};

use crate::journal::{Journal, Outlet};
use crate::route::{Hop, NoRoute};
use crate::time::Time;
use flight::InFlight;
use patience::{Patience, Suspect};
use place::Place;
use prefix::Text;
use ring::Ring;
use spare::Spare;

pub use contact::Contacts;
pub use failure::{FailureReason, HopFailure, SessionFailure};
pub use flight::STEPS_IN_FLIGHT_MAX;
pub use prefix::Sharing;
pub use ring::DrawWanted;

/// How long a hop may take to open a session where nobody knows how far away it is: it only counts
/// its KV cache, so this is a generous dial and round trip to the far side of the world.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The least that a hop has to open a session, however near it is.
pub const OPEN_TIMEOUT_MIN: Duration = Duration::from_millis(1_500);

/// Most replacements between two answers. Servers that refuse the session when they are first asked do
/// not count, nor do those that are waited for and are not back yet. Each excludes a server, so a session
/// that needs more is in a swarm that fails faster than it can be mended.
pub const MENDS_MAX: u32 = 32;

/// Most times in a row that a hop is filled anew because it lacks what it should hold. What it is sent
/// grows with the text, and a hop that still lacks it is no better than one that fails.
const REFILLS_MAX: u32 = 3;

/// How often a client asks for another server in the place of one that is about to leave.
const RELIEF_INTERVAL: Duration = Duration::from_secs(5);

/// What a session needs to know to begin.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Which model the hops must serve.
    pub model: ModelId,
    /// Blocks of the model.
    pub block_count: u32,
    /// Tokens for which each hop keeps room.
    pub tokens_max: u32,
    /// Bytes of the hidden state of a token on the wire.
    pub token_bytes: u32,
    /// How hops write their results.
    pub results: DType,
    /// How hops keep keys and values.
    pub cache: DType,
    /// Bytes of what was sent to the first hop that are kept for its failure. Beyond them the
    /// session fails with its first hop, and the caller begins a new one from its tokens.
    pub journal_bytes_max: usize,
    /// Whether each hop is to have a spare that computes along, so that its failure costs no
    /// replay. It doubles what the swarm computes for this session. Not for a thin session.
    pub standby: bool,
    /// What it shares with other sessions of the client, if it does.
    pub sharing: Option<Sharing>,
    /// Of a thin session, how many tokens the model knows: ids of tokens go in, and tokens that the
    /// last hop has drawn come back. `None`: hidden states do both.
    pub thin_vocabulary: Option<u32>,
    /// What hops add to the matrices of their blocks.
    pub adapter: Option<SessionAdapter>,
}

/// A hop of a route, where it can be reached, and what the session is to be called there.
#[derive(Debug, Clone)]
pub struct RouteHop {
    /// Who computes what.
    pub hop: Hop,
    /// Multiaddresses, the best first.
    pub addresses: Vec<String>,
    /// Drawn at random by the body: who knows it may push into the session.
    pub session: SessionId,
    /// The last round trip from here to there, if one was measured.
    pub round_trip: Option<Duration>,
}

/// One hop of one session. A server that takes a place twice has two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u32);

/// What happens to a session.
#[derive(Debug)]
pub enum Input {
    /// Hops for the blocks of [`Output::Route`], in order.
    Routed {
        /// Whether they were needed ([`RouteWanted::needed`]): a gap and a spare may be asked for at
        /// once.
        needed: bool,
        /// They tile those blocks, or those of neighbours as well.
        hops: Vec<RouteHop>,
    },
    /// Nobody serves all the blocks of [`Output::Route`], and waiting did not help.
    NoRoute {
        /// Whether they were needed.
        needed: bool,
        /// What is missing.
        no_route: NoRoute,
    },
    /// A hop said something.
    Received {
        /// Which one.
        hop: HopId,
        /// What it said.
        message: ServerMessage,
    },
    /// The link to a hop is gone, or could not be opened.
    LinkLost {
        /// Which one.
        hop: HopId,
        /// What the network said.
        detail: String,
    },
    /// The caller wants these tokens computed, after the cache is cut to `position`. It may say so
    /// where [`Session::accepts`] the position.
    Step {
        /// Where the first token goes.
        position: u32,
        /// `[tokens, hidden]`; of a thin session the ids, `[tokens, 1]`.
        hidden: Tensor,
        /// The tokens, where they are known; else nothing of them is kept for later sessions.
        ids: Vec<u32>,
        /// Which rows of the result are wanted.
        answer_rows: AnswerRows,
    },
    /// What enters the first block for the tokens that were taken over ([`Session::taken_over`]):
    /// before the first step, or the loss of a hop may end the session.
    Remember {
        /// `[tokens, hidden]`.
        hidden: Tensor,
    },
    /// The caller says, before the first step of each answer of a thin session, how its tokens are
    /// to be drawn. What was under way has no answer any more.
    Draw(DrawWanted),
    /// The caller has no more to ask.
    Close,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Output {
    /// Find hops for these blocks; the answer is [`Input::Routed`] or [`Input::NoRoute`].
    Route(RouteWanted),
    /// Open a link to a hop. What is sent before it stands waits for it.
    Connect {
        /// Its name from now on.
        hop: HopId,
        /// To whom.
        peer: PeerId,
        /// Where.
        addresses: Vec<String>,
    },
    /// Send this to a hop.
    Send {
        /// Which one.
        hop: HopId,
        /// What to say.
        message: ClientMessage,
    },
    /// Send a hop a part of the adapter: as many values as a message may have, or as are left.
    SendAdapter {
        /// Which one.
        hop: HopId,
        /// What the session is called there.
        session: SessionId,
        /// For these blocks.
        blocks: Span,
        /// From this value on.
        offset: u64,
    },
    /// Close the link to a hop once everything is sent.
    Disconnect {
        /// Which one.
        hop: HopId,
    },
    /// Every hop has opened the session: steps may come.
    Ready,
    /// A step went through the whole route: the first of those under way.
    Stepped {
        /// What leaves the last block, `[rows, hidden]`, as many rows as were wanted.
        hidden: Tensor,
        /// What each hop said of its time.
        trace: Vec<HopTiming>,
        /// From handing the step in to its answer.
        total: Duration,
    },
    /// The same of a thin session.
    Drawn {
        /// The token that was drawn; nothing where the step ended before the first that was to be.
        id: u32,
        /// Whether the next step is that token, and under way: then its answer comes by itself.
        goes_on: bool,
        /// What each hop said of its time.
        trace: Vec<HopTiming>,
        /// From handing the step in, or from the answer before, to this answer.
        total: Duration,
    },
    /// A hop failed, by a fault of its own or of the way to it.
    Blame(HopFailure),
    /// A hop has no room at the moment: others first.
    Full {
        /// Who.
        peer: PeerId,
    },
    /// The session is over; only a new one helps.
    Failed(SessionFailure),
}

/// What is asked of a route or of a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteWanted {
    /// The blocks to cover.
    pub blocks: Span,
    /// The hop whose results enter; `None`: the client. Hops for its blocks too take its place.
    pub before: Option<Hop>,
    /// The hop that takes the results; `None`: the client. Hops for its blocks too take its place.
    pub after: Option<Hop>,
    /// Servers that have failed this session lately, or are on its route already. Where there is nobody
    /// else they may be tried again: now and then, and until the patience of whoever looks is over.
    pub avoided: BTreeSet<PeerId>,
    /// Whether the session cannot go on without: then it is worth waiting for a server.
    pub needed: bool,
}

#[derive(Debug)]
enum State {
    /// The first route is not open yet.
    Opening,
    /// Steps may come.
    Open,
    Over,
}

/// One session of one client.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    /// The hops in the order of their blocks; there are gaps while the route is mended.
    places: Vec<Place>,
    next_hop: u32,
    state: State,
    /// What has not been answered, in order.
    flight: VecDeque<InFlight>,
    next_step: StepId,
    /// Tokens that have been answered.
    settled: u32,
    /// Tokens that all hops held when the session was opened.
    taken_over: u32,
    /// What is known of the tokens, where they are shared.
    text: Option<Text>,
    journal: Journal,
    outlet: Outlet,
    /// The hop that the outlet leads to.
    fed: Option<HopId>,
    /// Whether hops are being looked for where there are none.
    gap_asked: bool,
    /// Of which hop a spare is being looked for.
    spare_asked: Option<HopId>,
    spares: Vec<Spare>,
    /// The spare of the first hop, which this side feeds, and the session's name there.
    mirror: Option<(HopId, SessionId, Outlet)>,
    avoided: BTreeSet<PeerId>,
    mends: u32,
    /// When the route was last not whole.
    mended_at: Time,
    patience: Patience,
    suspects: Vec<Suspect>,
    last_failure: Option<HopFailure>,
    /// Of a thin session.
    ring: Option<Ring>,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session that asks for a route, and then every hop of it to open the session.
    #[must_use]
    pub fn open(mut config: SessionConfig, now: Time) -> Self {
        let ring = config.thin_vocabulary.map(Ring::new);
        let mut session = Self {
            text: config.sharing.take().map(Text::new),
            taken_over: 0,
            config,
            ring,
            places: Vec::new(),
            next_hop: 0,
            state: State::Opening,
            flight: VecDeque::new(),
            next_step: StepId::default(),
            settled: 0,
            journal: Journal::default(),
            outlet: Outlet::new(0, StepId::default()),
            fed: None,
            gap_asked: false,
            spare_asked: None,
            spares: Vec::new(),
            mirror: None,
            avoided: BTreeSet::new(),
            mends: 0,
            mended_at: now,
            patience: Patience::new(),
            suspects: Vec::new(),
            last_failure: None,
            outputs: VecDeque::new(),
        };
        session.mend(now);
        session
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where a hop said what it must not; it has lost its place by then.
    ///
    /// # Panics
    /// If the caller begins a step that the session does not accept ([`Session::accepts`]), or
    /// beyond the tokens before.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), ProtocolViolation> {
        if matches!(self.state, State::Over) {
            return Ok(());
        }
        let mut result = Ok(());
        match input {
            Input::Routed { needed, hops } => self.routed(needed, hops, now),
            Input::NoRoute { needed, no_route } => self.not_routed(needed, no_route, now),
            Input::Received { hop, message } => {
                if let Some(index) = self.index_of(hop) {
                    result = self.received(index, message, now);
                    if let (Err(violation), Some(index)) = (&result, self.index_of(hop)) {
                        self.drop_place(index, FailureReason::Violation(violation.clone()));
                    }
                } else if self.is_suspect(hop) {
                    self.acquit(hop, now);
                } else {
                    self.spare_received(hop, message, now);
                }
            }
            Input::LinkLost { hop, detail } => {
                let reason = FailureReason::LinkLost { detail };
                match self.index_of(hop) {
                    Some(index) => self.drop_place(index, reason),
                    None if self.convict(hop) => {}
                    None => self.drop_spare(hop, &reason, now),
                }
            }
            Input::Step { position, hidden, ids, answer_rows } => {
                self.step(position, (hidden, &ids), answer_rows, now);
            }
            Input::Remember { hidden } => self.remember(hidden),
            Input::Draw(wanted) => self.draw(wanted),
            Input::Close => self.close(),
        }
        self.mend(now);
        result
    }

    /// When [`Session::handle_timeout`] is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.next_deadline()
    }

    /// Asks those who have been silent to all sessions of the process, of which `contacts` are, and
    /// gives up those who stay so.
    pub fn handle_timeout(&mut self, contacts: &mut Contacts, now: Time) {
        if matches!(self.state, State::Over) {
            return;
        }
        self.watch(contacts, now);
        self.mend(now);
    }

    /// What to do next; drain it before waiting.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The hops, in the order of their blocks; some are missing while the route is mended.
    #[must_use]
    pub fn hops(&self) -> Vec<Hop> {
        self.places.iter().map(|place| place.hop).collect()
    }

    /// Tokens for which the hops keep room.
    #[must_use]
    pub const fn tokens_max(&self) -> u32 {
        self.config.tokens_max
    }

    /// How many hops have lost their place since the last answer, those left out that never had it.
    #[must_use]
    pub const fn mends(&self) -> u32 {
        self.mends
    }

    fn close(&mut self) {
        self.tell_pages(self.settled, true);
        self.state = State::Over;
        let spares = std::mem::take(&mut self.spares).into_iter().map(|spare| spare.place);
        for place in std::mem::take(&mut self.places).into_iter().chain(spares) {
            self.leave(&place);
        }
        for Suspect { hop, .. } in std::mem::take(&mut self.suspects) {
            self.outputs.push_back(Output::Disconnect { hop });
        }
    }

    fn fail(&mut self, failure: SessionFailure) {
        tracing::debug!(%failure, "session failed");
        self.close();
        self.outputs.push_back(Output::Failed(failure));
    }

    /// Says farewell to a hop.
    fn leave(&mut self, place: &Place) {
        let hop = place.id;
        let message = ClientMessage::Close { session: place.session };
        self.outputs.push_back(Output::Send { hop, message });
        if !self.is_suspect(hop) {
            self.outputs.push_back(Output::Disconnect { hop });
        }
    }

    fn index_of(&self, hop: HopId) -> Option<usize> {
        self.places.iter().position(|place| place.id == hop)
    }
}

#[cfg(test)]
mod tests;
