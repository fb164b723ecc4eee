//! Whose turn it is: clients one after another, and of each client its sessions.

use std::collections::BTreeMap;

use umbel_protocol::{PeerId, SessionId};

use super::{DECODE_TOKENS_MAX, Queue};
use crate::time::Time;

/// What a session wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A token or a few: it comes first.
    Decode,
    /// Many tokens: it fills what is left.
    Prefill,
}

/// The first step of a session that waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) session: SessionId,
    pub(super) kind: Kind,
    /// Tokens that are still to be computed.
    pub(super) tokens: u32,
    pub(super) blocks: u32,
    client: PeerId,
    session_turn: u64,
    received: Time,
}

/// The pass that last took something of each client, decoding and prefill apart. A client that comes
/// anew stands behind those that wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    clients: BTreeMap<PeerId, ClientTurns>,
}

#[derive(Debug, Clone, Copy)]
struct ClientTurns {
    decode: u64,
    prefill: u64,
}

impl Turns {
    /// A client has a step that waits; `pass` is the last one that has begun.
    pub(super) fn join(&mut self, client: PeerId, pass: u64) {
        self.clients.entry(client).or_insert(ClientTurns { decode: pass, prefill: pass });
    }

    /// A client has no step any more.
    pub(super) fn leave(&mut self, client: PeerId) {
        self.clients.remove(&client);
    }

    /// A pass takes something of a candidate.
    pub(super) fn taken(&mut self, candidate: &Candidate, pass: u64) {
        let turns = self.clients.get_mut(&candidate.client).expect("a client whose step waits");
        match candidate.kind {
            Kind::Decode => turns.decode = pass,
            Kind::Prefill => turns.prefill = pass,
        }
    }

    /// Who decodes before who does not; then the first session of every client before the second
    /// of any; and who has waited longest before the others.
    pub(super) fn order(&self, queues: &BTreeMap<SessionId, Queue>) -> Vec<Candidate> {
        let mut candidates: Vec<_> =
            queues.iter().filter_map(|(&session, queue)| candidate(session, queue)).collect();
        candidates.sort_by_key(|of| (of.kind, of.client, of.session_turn, of.received, of.session));
        let mut ranked = Vec::with_capacity(candidates.len());
        let (mut rank, mut before) = (0, None);
        for candidate in candidates {
            let place = Some((candidate.kind, candidate.client));
            rank = if place == before { rank + 1 } else { 0 };
            before = place;
            ranked.push((rank, candidate));
        }
        ranked.sort_by_key(|(rank, of)| {
            (of.kind, *rank, self.turn(of.client, of.kind), of.received, of.session)
        });
        ranked.into_iter().map(|(_, candidate)| candidate).collect()
    }

    fn turn(&self, client: PeerId, kind: Kind) -> u64 {
        let turns = self.clients[&client];
        match kind {
            Kind::Decode => turns.decode,
            Kind::Prefill => turns.prefill,
        }
    }
}

fn candidate(session: SessionId, queue: &Queue) -> Option<Candidate> {
    let queued = queue.steps.front()?;
    let tokens = queued.step.token_count() - queued.done;
    Some(Candidate {
        session,
        kind: if tokens <= DECODE_TOKENS_MAX { Kind::Decode } else { Kind::Prefill },
        tokens,
        blocks: queue.blocks.block_count(),
        client: queue.client,
        session_turn: queue.turn,
        received: queued.received,
    })
}
