//! The messages that mend a route.

use super::super::{Adopt, DETAIL_BYTES_MAX, Destination, Neighbour, NextHop, Redirect, Trouble};
use crate::error::{ErrorCode, ProtocolViolation};
use crate::generated as v1;
use crate::{SessionId, StepId, wire};

/// A destination as `next` and `held`, in a session that is called `here` here.
pub(super) fn destination_to_wire(
    destination: Destination,
    here: SessionId,
) -> (Option<v1::NextHop>, bool) {
    match destination {
        Destination::Client => (None, false),
        Destination::Held => (None, true),
        Destination::Server(next) => (Some(hop_to_wire(next, here)), false),
    }
}

/// A server, of a session that is called `here` here.
pub(super) fn hop_to_wire(next: NextHop, here: SessionId) -> v1::NextHop {
    v1::NextHop {
        peer: wire::peer_bytes(next.peer),
        addresses: wire::addresses_to_wire(next.addresses),
        session: (next.session != here).then(|| wire::session_bytes(next.session)),
    }
}

/// The server, of a session that is called `here` here.
pub(super) fn hop_from_wire(
    next: v1::NextHop,
    here: SessionId,
) -> Result<NextHop, ProtocolViolation> {
    Ok(NextHop {
        peer: wire::peer_id(&next.peer)?,
        addresses: wire::addresses(next.addresses)?,
        session: next.session.map_or(Ok(here), |session| wire::session_id(&session))?,
    })
}

/// The destination that `next` and `held` name, in a session that is called `here` here.
pub(super) fn destination(
    next: Option<v1::NextHop>,
    held: bool,
    here: SessionId,
) -> Result<Destination, ProtocolViolation> {
    Ok(match next {
        None if held => Destination::Held,
        None => Destination::Client,
        Some(_) if held => {
            return Err(ProtocolViolation::Unexpected { message: "a next hop for held results" });
        }
        Some(next) => Destination::Server(hop_from_wire(next, here)?),
    })
}

impl From<Redirect> for v1::Redirect {
    fn from(redirect: Redirect) -> Self {
        let (next, held) = destination_to_wire(redirect.next, redirect.session);
        Self {
            session: wire::session_bytes(redirect.session),
            next,
            held,
            next_position: redirect.next_position,
            settled: redirect.settled,
            mirror: redirect.mirror,
            next_step: redirect.next_step.0,
        }
    }
}

impl TryFrom<v1::Redirect> for Redirect {
    type Error = ProtocolViolation;

    fn try_from(redirect: v1::Redirect) -> Result<Self, ProtocolViolation> {
        let session = wire::session_id(&redirect.session)?;
        Ok(Self {
            session,
            next: destination(redirect.next, redirect.held, session)?,
            next_position: redirect.next_position,
            next_step: StepId(redirect.next_step),
            settled: redirect.settled,
            mirror: redirect.mirror,
        })
    }
}

impl From<Adopt> for v1::Adopt {
    fn from(adopt: Adopt) -> Self {
        Self {
            session: wire::session_bytes(adopt.session),
            previous: adopt.previous.map(wire::peer_bytes),
            empty: adopt.empty,
            drawer: adopt.drawer.map(wire::peer_bytes),
        }
    }
}

impl TryFrom<v1::Adopt> for Adopt {
    type Error = ProtocolViolation;

    fn try_from(adopt: v1::Adopt) -> Result<Self, ProtocolViolation> {
        Ok(Self {
            session: wire::session_id(&adopt.session)?,
            previous: adopt.previous.map(|peer| wire::peer_id(&peer)).transpose()?,
            empty: adopt.empty,
            drawer: adopt.drawer.map(|peer| wire::peer_id(&peer)).transpose()?,
        })
    }
}

impl From<Trouble> for v1::Trouble {
    fn from(trouble: Trouble) -> Self {
        let neighbour = match trouble.neighbour {
            Neighbour::Previous => v1::Neighbour::Previous,
            Neighbour::Next => v1::Neighbour::Next,
        };
        Self {
            session: wire::session_bytes(trouble.session),
            neighbour: neighbour.into(),
            code: trouble.code.to_wire(),
            detail: wire::cut(trouble.detail, DETAIL_BYTES_MAX),
        }
    }
}

impl TryFrom<v1::Trouble> for Trouble {
    type Error = ProtocolViolation;

    fn try_from(trouble: v1::Trouble) -> Result<Self, ProtocolViolation> {
        let neighbour = match v1::Neighbour::try_from(trouble.neighbour) {
            Ok(v1::Neighbour::Previous) => Neighbour::Previous,
            Ok(v1::Neighbour::Next) => Neighbour::Next,
            Ok(v1::Neighbour::Unspecified) | Err(_) => {
                return Err(ProtocolViolation::Missing { field: "the neighbour" });
            }
        };
        Ok(Self {
            session: wire::session_id(&trouble.session)?,
            neighbour,
            code: ErrorCode::from_wire(trouble.code),
            detail: wire::own_words("a trouble's detail", DETAIL_BYTES_MAX, &trouble.detail)?,
        })
    }
}
