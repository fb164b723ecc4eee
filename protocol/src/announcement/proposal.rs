//! Moves of several servers that raise the throughput of a swarm only together.

use crate::error::ProtocolViolation;
use crate::generated as v1;
use crate::{PeerId, Span, wire};

/// Most moves of a proposal. In trials with tight memory eight servers that change places found
/// what any number of them did; as many again may have to make room meanwhile. At some 55 bytes
/// each, a proposal is a fifth of the largest announcement.
pub const PROPOSED_MOVES_MAX: usize = 16;

/// Moves that a server asks others to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Who is to go where: at most [`PROPOSED_MOVES_MAX`], each of another server.
    pub moves: Vec<ProposedMove>,
    /// Whether all of them have announced that they will, so that the moves begin.
    pub agreed: bool,
}

/// What one server is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProposedMove {
    /// The server.
    pub peer: PeerId,
    /// More blocks than it serves now, and these among them, to serve in between: so that others
    /// can leave theirs before anybody else has come.
    pub via: Option<Span>,
    /// The blocks to serve in the end.
    pub to: Span,
}

impl Proposal {
    /// What this server is asked to do.
    #[must_use]
    pub fn of(&self, peer: PeerId) -> Option<&ProposedMove> {
        self.moves.iter().find(|of| of.peer == peer)
    }

    pub(super) fn to_wire(&self) -> v1::Proposal {
        let to_wire = |of: &ProposedMove| v1::ProposedMove {
            peer: wire::peer_bytes(of.peer),
            via: of.via.map(wire::span_to_wire),
            to: Some(wire::span_to_wire(of.to)),
        };
        v1::Proposal { moves: self.moves.iter().map(to_wire).collect(), agreed: self.agreed }
    }

    pub(super) fn from_wire(proposal: v1::Proposal) -> Result<Self, ProtocolViolation> {
        wire::at_most("proposed moves", PROPOSED_MOVES_MAX, proposal.moves.len())?;
        let from_wire = |of: v1::ProposedMove| {
            Ok(ProposedMove {
                peer: wire::peer_id(&of.peer)?,
                via: of.via.map(|span| wire::span(Some(span))).transpose()?,
                to: wire::span(of.to)?,
            })
        };
        let moves: Vec<_> =
            proposal.moves.into_iter().map(from_wire).collect::<Result<_, ProtocolViolation>>()?;
        Ok(Self { moves, agreed: proposal.agreed })
    }
}
