//! How a route is mended while its session lasts.

use crate::{ErrorCode, PeerId, SessionId, StepId};

/// A server, where it can be reached, and what the session is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// Its name.
    pub peer: PeerId,
    /// Multiaddresses, the best first: at most 16 of at most 256 bytes each; what is beyond that
    /// is not sent.
    pub addresses: Vec<String>,
    /// The session's name there.
    pub session: SessionId,
}

/// Where the results of a server go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the client, from the last server of the route.
    Client,
    /// To the next server.
    Server(NextHop),
    /// Nowhere for now: they are kept in the journal.
    Held,
}

/// Results go elsewhere from now on; what the journal holds of them is sent at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Which session.
    pub session: SessionId,
    /// Where they go.
    pub next: Destination,
    /// Tokens whose results the destination has already.
    pub next_position: u32,
    /// The first step whose results the destination lacks. What this server has of earlier ones
    /// may be older than a rollback that the destination has seen, so nothing of it goes there.
    pub next_step: StepId,
    /// Tokens that the client has had an answer for: their results are sent as a replay.
    pub settled: u32,
    /// Whether the destination takes results besides the one there is, not in its place; with
    /// [`Destination::Held`], that it does no longer.
    pub mirror: bool,
}

/// Pushes come from another server from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopt {
    /// Which session.
    pub session: SessionId,
    /// Who pushes. `None`: the client itself sends the steps.
    pub previous: Option<PeerId>,
    /// Whether cache and journal are of no use: both begin anew, and steps are dropped until one
    /// comes for position 0.
    pub empty: bool,
    /// Of a thin session on its first server: who draws tokens, and may push them.
    pub drawer: Option<PeerId>,
}

/// One of the two servers beside a server on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Neighbour {
    /// The one whose results enter.
    Previous,
    /// The one that takes the results.
    Next,
}

/// A session that stays open but cannot go on with a neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Which session.
    pub session: SessionId,
    /// Which neighbour.
    pub neighbour: Neighbour,
    /// What kind of trouble it is.
    pub code: ErrorCode,
    /// The server's own words, at most [`super::DETAIL_BYTES_MAX`] bytes.
    pub detail: String,
}
