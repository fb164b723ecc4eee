//! How others come in: by dials back, by places at relays, and by direct ways to those met there.

use std::sync::atomic::Ordering;

use libp2p::core::transport::ListenerId;
use libp2p::kad::Mode;
use libp2p::{Multiaddr, relay};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use super::peers::own_name;
use crate::address::{is_relayed, preference};
use crate::behaviour::RELAYS_KEY;
use crate::config::{Reach, Role};
use crate::reachability::{Standing, Verdict};

impl Driver {
    /// Seeks places from the start where nothing else is told, and says that this peer gives some.
    pub(super) fn begin_places(&mut self) {
        if self.reach == Reach::Relayed {
            self.hide();
        }
        if self.relays && self.reach != Reach::Relayed {
            self.discovery.provide(&mut self.swarm.behaviour_mut().kad, RELAYS_KEY);
        }
    }

    pub(super) fn places_wake_at(&self) -> Option<Instant> {
        let settles_at = self.judge.settles_at().filter(|_| self.verdict() == Verdict::Unknown);
        self.places.look_at().into_iter().chain(settles_at).min()
    }

    fn verdict(&self) -> Verdict {
        self.shared.standing.borrow().verdict
    }

    /// Asks for what places are wanted, of whoever may be asked now.
    pub(super) fn look_for_places(&mut self) {
        let now = Instant::now();
        self.settle(now);
        for address in self.places.wanting(self.peers.relays(), now) {
            match self.swarm.listen_on(address.clone()) {
                Ok(listener) => self.places.asked(listener, address),
                Err(_) => self.places.failed(&address, now),
            }
        }
        if self.places.looked(now) {
            // Those that it names are connected to, and say by that what they do.
            let (nobody, _) = oneshot::channel();
            let kad = &mut self.swarm.behaviour_mut().kad;
            self.discovery.find_providers(kad, (RELAYS_KEY, true), nobody);
        }
    }

    /// Takes note of what the dials back say by now.
    pub(super) fn settle(&mut self, now: Instant) {
        let verdict = self.judge.verdict(now);
        if verdict == self.verdict() {
            return;
        }
        self.shared.standing.send_modify(|standing| standing.verdict = verdict);
        if self.reach == Reach::Auto {
            match verdict {
                Verdict::Shut => self.hide(),
                // A slow dial came in after all; what places there are do no harm.
                Verdict::Open => self.show(),
                Verdict::Unknown => {}
            }
        }
    }

    /// Has others come in by relays. The hash table does not count on this peer any more, which would have
    /// everybody's questions take up circuits, and it gives no places itself, where nobody would find it.
    fn hide(&mut self) {
        self.places.seek(Instant::now());
        let behaviour = self.swarm.behaviour_mut();
        behaviour.kad.set_mode(Some(Mode::Client));
        if let Some(relay) = behaviour.relay.as_mut() {
            relay.set_status(Some(relay::Status::Disable));
            tracing::warn!("this peer passes on for nobody: others do not come in here themselves");
            self.discovery.stop_providing(&mut behaviour.kad, RELAYS_KEY);
        }
    }

    /// Takes that back.
    fn show(&mut self) {
        self.places.seek_no_more();
        if self.role == Role::Server {
            self.swarm.behaviour_mut().kad.set_mode(Some(Mode::Server));
        }
        let behaviour = self.swarm.behaviour_mut();
        if let Some(relay) = behaviour.relay.as_mut() {
            relay.set_status(None);
            self.discovery.provide(&mut behaviour.kad, RELAYS_KEY);
        }
    }

    /// A place may be wanted, and somebody may give it.
    pub(super) fn met_somebody(&mut self) {
        if self.places.lacks() {
            self.look_for_places();
        }
    }

    /// A relay has given a place.
    pub(super) fn on_place(&mut self, listener: ListenerId, address: Multiaddr) {
        if self.places.granted(listener, &address) {
            self.swarm.add_external_address(address);
        }
        self.publish();
    }

    /// Whether the listener was that of a place, which is sought again.
    pub(super) fn on_place_lost(&mut self, listener: ListenerId) -> bool {
        let Some(addresses) = self.places.closed(listener, Instant::now()) else {
            return false;
        };
        tracing::warn!(address = %addresses[0], "a relay does not pass on any more; it is asked again");
        let lost: Vec<_> = self.swarm.external_addresses().cloned().collect();
        for external in lost {
            let is_of_it =
                |address: &Multiaddr| external.to_string().starts_with(&address.to_string());
            if is_relayed(&external) && addresses.iter().any(is_of_it) {
                self.swarm.remove_external_address(&external);
            }
        }
        self.publish();
        // Another one may do.
        self.met_somebody();
        true
    }

    /// Shows where this peer listens, and by whom.
    pub(super) fn publish(&mut self) {
        let mut listen: Vec<_> =
            self.sockets.iter().chain(self.places.addresses()).cloned().collect();
        listen.sort_by_key(preference);
        let changed = |known: &mut Vec<Multiaddr>| {
            let changed = *known != listen;
            *known = listen;
            changed
        };
        self.shared.listen.send_if_modified(changed);
        let relays: Vec<_> = self.places.relays().filter_map(|relay| own_name(&relay)).collect();
        self.shared.standing.send_if_modified(|standing: &mut Standing| {
            let changed = standing.relays != relays;
            standing.relays = relays;
            changed
        });
    }

    /// A connection is there: by a relay, which others may follow, or a direct one, for which links wait.
    pub(super) fn on_way(&mut self, peer: libp2p::PeerId, relayed: bool) {
        if self.peers.is_relayed(peer) {
            self.direct.met(peer, Instant::now());
            return;
        }
        for request in self.direct.found(peer) {
            self.open_stream_now(peer, request);
        }
        if !relayed && self.peers.is_relayed_too(peer) {
            tracing::info!(%peer, "a direct connection to a peer that was met by a relay");
        }
    }

    /// No direct connection is made.
    pub(super) fn on_no_direct_way(&mut self, peer: libp2p::PeerId) {
        if !self.peers.is_relayed(peer) {
            return;
        }
        tracing::debug!(%peer, "no direct connection to a peer that was met by a relay");
        for request in self.direct.failed(peer, Instant::now()) {
            self.open_stream_now(peer, request);
        }
    }

    pub(super) fn wait_for_direct_no_more(&mut self) {
        while let Some(peer) = self.direct.overdue(Instant::now()) {
            tracing::debug!(%peer, "no direct connection in time: links go by the relay");
            for request in self.direct.failed(peer, Instant::now()) {
                self.open_stream_now(peer, request);
            }
        }
    }

    /// Counts what this peer passes on.
    #[expect(clippy::wildcard_enum_match_arm, reason = "an open enum of libp2p")]
    pub(super) fn on_passing(&mut self, event: &relay::Event) {
        match event {
            relay::Event::CircuitReqAccepted { src_peer_id, dst_peer_id } => {
                *self.passed.entry((*src_peer_id, *dst_peer_id)).or_default() += 1;
            }
            relay::Event::CircuitClosed { src_peer_id, dst_peer_id, .. } => {
                let pair = (*src_peer_id, *dst_peer_id);
                let left = self.passed.get_mut(&pair).map(|count| {
                    *count -= 1;
                    *count
                });
                if left == Some(0) {
                    self.passed.remove(&pair);
                }
            }
            _ => {}
        }
        self.shared.circuits.store(self.passed.values().sum(), Ordering::Relaxed);
    }
}
