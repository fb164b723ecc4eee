//! What servers say of themselves, and what clients therefore know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::route::RouteRequest;
use umbel_coordinator::route::cost::Costs;
use umbel_coordinator::session::RouteWanted;
use umbel_protocol::announcement::{Announcement, Throughput, UnixTime};

use super::{Event, Planner, World};
use crate::host::Condition;

/// How often a server announces itself.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(10);

/// How long an announcement holds.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long an announcement takes to be known everywhere.
const SPREAD: Duration = Duration::from_millis(200);

/// The newest announcement of each server, by its number.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    newest: BTreeMap<usize, Announcement>,
}

impl Announcements {
    /// Those that hold: their servers may be gone all the same.
    pub(super) fn known(&self, now: Time) -> impl Iterator<Item = &Announcement> {
        let now = unix(now);
        self.newest.values().filter(move |said| said.expires > now)
    }
}

impl World {
    /// From its start on, a server announces itself.
    pub(super) fn begin_announcing(&mut self, server: usize) {
        if self.settings.planner == Planner::Announced {
            let life = self.hosts[server].life;
            self.queue.plan(self.now + SPREAD, Event::Announce { server, life });
        }
    }

    pub(super) fn announce(&mut self, server: usize, life: u32) {
        let host = &self.hosts[server];
        if host.life != life || host.condition == Condition::Down || self.busy_clients == 0 {
            return;
        }
        let rate = |tokens: u32| {
            let step = (host.speed.step(1, 0, tokens) * host.slower).as_secs_f32().max(1e-9);
            f32::from(u16::try_from(tokens).expect("a small number")) / step
        };
        let announcement = Announcement {
            peer: host.peer,
            model: self.settings.model,
            model_name: String::new(),
            span: host.config.span,
            block_count: self.settings.block_count,
            addresses: Vec::new(),
            version: String::new(),
            throughput: Throughput {
                decode_tokens_per_second: rate(1),
                prefill_tokens_per_second: rate(512),
                ..Throughput::default()
            },
            kv_tokens_free: host.server.kv_tokens_free(),
            queue_depth: u32::try_from(host.server.queue_depth()).expect("it is bounded"),
            draining: host.leaving,
            issued: unix(self.now),
            expires: unix(self.now + LIFETIME),
            next_hops: Vec::new(),
            adapters: Vec::new(),
            moving_to: None,
            held_blocks_max: 0,
            proposal: None,
            joined: None,
            holds_ends: true,
        };
        self.announcements.newest.insert(server, announcement);
        self.queue.plan(self.now + ANNOUNCE_INTERVAL, Event::Announce { server, life });
    }

    /// What a client asks of its planner. It has measured the way to every server.
    pub(super) fn route_request(
        &self,
        client: usize,
        wanted: &RouteWanted,
        forgiving: bool,
    ) -> RouteRequest {
        let of = &self.clients[client];
        let group = of.group;
        let round_trip = |host: &crate::host::Host<Event>| {
            (host.peer, self.links.class(group, host.group).delay * 2)
        };
        RouteRequest {
            before: wanted.before.map(|hop| hop.peer),
            after: wanted.after.map(|hop| hop.peer),
            excluded: if forgiving { BTreeSet::new() } else { wanted.avoided.clone() },
            token_bytes: u32::try_from(self.settings.token_bytes).unwrap_or(u32::MAX),
            costs: Costs {
                round_trips: self.hosts.iter().map(round_trip).collect(),
                ..Costs::new()
            },
            ..RouteRequest::new(wanted.blocks, of.tokens_max())
        }
    }
}

/// The world's clock as the wall clock of those in it.
const fn unix(now: Time) -> UnixTime {
    UnixTime::after_epoch(now.elapsed())
}
