//! What must hold at each step, and when everything has come to rest; and what is counted.

use std::time::Duration;

use umbel_coordinator::server::STEPS_QUEUED_PER_SESSION_MAX;
use umbel_protocol::inference::Step;
use umbel_protocol::{SessionId, Span};

use super::World;
use crate::host::Condition;

/// Most broken invariants that are kept in words.
const BROKEN_MAX: usize = 16;

/// What was counted in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Everything that happened.
    pub events: u64,
    /// Bytes on all links, as the modelled network has them.
    pub bytes_sent: u64,
    /// Tokens that were sent once more, to hops that took the place of others.
    pub tokens_replayed: u64,
    /// Messages that were replays.
    pub replays: u64,
    /// Servers that went down, at the end of a leave too.
    pub crashes: u64,
    /// Servers that were asked to leave.
    pub leaves: u64,
    /// Servers that began to lie.
    pub lies: u64,
    /// Messages that were refused as violations of the protocol.
    pub violations: u64,
    /// Hops that clients gave up.
    pub blames: u64,
    /// Tokens that sessions took over and did not have computed.
    pub tokens_shared: u64,
    /// Checks of invariants.
    pub checks: u64,
    /// Invariants that did not hold.
    pub broken_count: u64,
    /// The first of them, in words.
    pub broken: Vec<String>,
}

impl World {
    /// Takes note of an invariant that does not hold.
    pub(super) fn broken(&mut self, what: String) {
        self.totals.broken_count += 1;
        if self.totals.broken.len() < BROKEN_MAX {
            self.totals.broken.push(format!("{:?}: {what}", self.now));
        }
    }

    /// Counts a step that is on its way to a hop.
    pub(super) fn note_step(&mut self, step: &Step) {
        if step.replay {
            self.totals.replays += 1;
            self.totals.tokens_replayed += u64::from(step.token_count());
        }
    }

    /// Takes note of the room that a server has given to a session.
    pub(super) fn reserve(&mut self, server: usize, session: SessionId, blocks: Span, tokens: u32) {
        let room = u64::from(blocks.block_count()) * u64::from(tokens);
        self.hosts[server].reserved.insert(session, (room, tokens));
        let host = &self.hosts[server];
        let (used, budget) = (host.used(), host.budget());
        if used > budget {
            self.broken(format!("server {server} promises {used} of {budget} token-blocks"));
        }
    }

    /// Checks that a step fits the room of its session.
    pub(super) fn check_room(&mut self, server: usize, session: SessionId, end: u32) {
        let room = self.hosts[server].reserved.get(&session).map(|(_, tokens)| *tokens);
        if room.is_none_or(|tokens| end > tokens) {
            self.broken(format!("server {server} computes to {end}, with room for {room:?}"));
        }
    }

    /// Checks a server after anything has happened to it.
    pub(super) fn check_server(&mut self, server: usize) {
        self.totals.checks += 1;
        let host = &self.hosts[server];
        let (machine, sessions) = (&host.server, host.server.session_count());
        let journals = machine.journal_bytes() <= host.config.journal_bytes_max;
        let queue = machine.queue_depth() <= sessions * STEPS_QUEUED_PER_SESSION_MAX + 1;
        let caches = host.oracle.session_count() == sessions && host.reserved.len() == sessions;
        let room =
            machine.kv_tokens_free() <= host.config.kv_tokens_max && host.used() <= host.budget();
        // Orders may wait for a pass that runs.
        let pages = host.computing.is_some() || host.oracle.page_count() == machine.pages_kept();
        if !(journals && queue && caches && room && pages) {
            let what = format!(
                "server {server}: journals {journals}, queue {queue}, caches {caches}, \
                 room {room}, pages {pages}"
            );
            self.broken(what);
        }
    }

    /// The longest that a client has waited for an answer since something last failed, or ceased to.
    #[must_use]
    pub fn longest_calm(&self) -> Duration {
        let answers = self.clients.iter().flat_map(|client| &client.answers);
        let waited = answers.map(|answer| answer.took.min(answer.at.since(self.last_fault)));
        waited.max().unwrap_or_default()
    }

    /// What does not hold now that nothing more happens. (Sessions of which servers were not told that
    /// they had ended are over by then: their leases have run out, each of which is a broken invariant.)
    #[must_use]
    pub fn unsettled(&self) -> Vec<String> {
        let mut unsettled = Vec::new();
        if self.busy_clients > 0 {
            unsettled.push(format!("{} clients have not come to their end", self.busy_clients));
        }
        for (number, host) in self.hosts.iter().enumerate() {
            let machine = &host.server;
            let held = (machine.session_count(), machine.queue_depth(), machine.journal_bytes());
            let caches = host.oracle.session_count() + host.reserved.len();
            let runs = host.condition != Condition::Down;
            if runs && (held != (0, 0, 0) || caches > 0) {
                unsettled.push(format!(
                    "server {number} holds (sessions, steps, journal bytes) {held:?}, {caches} caches"
                ));
            }
        }
        unsettled
    }
}
