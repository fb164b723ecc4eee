//! What happens on sockets and connections.

use std::collections::BTreeMap;

use libp2p::core::transport::ListenerId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{FromSwarm, NetworkBehaviour as _, NewExternalAddrCandidate, SwarmEvent};
use libp2p::{Multiaddr, identify, kad, mdns, ping, relay};
use libp2p_autonat::v2 as autonat;

use super::peers::{Identified, own_name};
use super::{Driver, discovery};
use crate::address::{
    ADDRESSES_MAX, is_concrete, is_loopback, is_relayed, quic_socket, tcp_socket, to_keep,
};
use crate::behaviour::{BehaviourEvent, IDENTIFY_PROTOCOL, KAD_PROTOCOL};
use crate::reachability::Reachability;

impl Driver {
    #[allow(clippy::wildcard_enum_match_arm, reason = "an open enum of libp2p")]
    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.on_listening(listener_id, address);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.on_listening_no_more(&address);
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                tracing::debug!(peer = %peer_id, ?endpoint, "connected");
                self.peers.connected(peer_id, connection_id, &endpoint);
                self.on_way(peer_id, endpoint.is_relayed());
                self.dials.established(connection_id, peer_id);
                self.shared.connected.send_replace(());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "disconnected");
                self.probes.forget(connection_id);
                if self.peers.disconnected(peer_id, connection_id) {
                    if let Some(peer) = own_name(&peer_id) {
                        self.shared.round_trips().remove(peer);
                    }
                    for request in self.direct.left(peer_id) {
                        self.open_stream_now(peer_id, request);
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.dials.failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                tracing::debug!(%error, "a peer did not come in");
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listening socket has trouble");
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                if self.on_place_lost(listener_id) {
                    return;
                }
                if let Err(error) = reason {
                    tracing::warn!(?addresses, %error, "a listening socket has closed");
                }
                addresses.iter().for_each(|address| self.on_listening_no_more(address));
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(kad::Event::InboundRequest { request }) => {
                discovery::on_request(&mut self.swarm.behaviour_mut().kad, request);
            }
            BehaviourEvent::Kad(event) => {
                for peer in self.discovery.on_event(event) {
                    self.dials.meet(&mut self.swarm, peer);
                }
            }
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::AskBack(event) => self.on_dialled_back(event),
            BehaviourEvent::DialBack(event) => {
                tracing::debug!(client = %event.client, address = %event.tested_addr, "dialled back");
            }
            BehaviourEvent::Relay(event) => {
                tracing::debug!(?event, "passing on for others");
                self.on_passing(&event);
            }
            BehaviourEvent::Relayed(event) => tracing::debug!(?event, "reached by a relay"),
            BehaviourEvent::Punching(event) => {
                tracing::debug!(?event, "a direct connection was tried");
                if event.result.is_err() {
                    self.on_no_direct_way(event.remote_peer_id);
                }
            }
            BehaviourEvent::Limits(never) | BehaviourEvent::Links(never) => match never {},
        }
    }

    fn on_listening(&mut self, listener: ListenerId, address: Multiaddr) {
        tracing::info!(%address, "listening");
        if is_relayed(&address) {
            return self.on_place(listener, address);
        }
        // The hash table tells others only addresses that count as external. Where a peer
        // listens is the best guess there is until somebody outside has confirmed one.
        let guess = self.shared.announce.is_empty();
        if guess && self.tells && (self.loopback_only || !is_loopback(&address)) {
            self.swarm.add_external_address(address.clone());
        }
        if !self.sockets.contains(&address) {
            self.sockets.push(address);
            self.publish();
        }
    }

    fn on_listening_no_more(&mut self, address: &Multiaddr) {
        self.sockets.retain(|known| known != address);
        self.publish();
        // What its operator has named stays what others are told, whatever this machine's interfaces do.
        if !self.shared.announce.contains(address) {
            self.swarm.remove_external_address(address);
        }
    }

    /// Servers become part of the hash table by saying that they are, and where they listen.
    fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, connection_id } = event else {
            return;
        };
        // libp2p takes what others were told for what is known, and would not have it tried.
        let told = self.swarm.external_addresses().any(|told| *told == info.observed_addr);
        if told {
            let candidate = NewExternalAddrCandidate { addr: &info.observed_addr };
            let ask_back = &mut self.swarm.behaviour_mut().ask_back;
            ask_back.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
        let local = self.peers.is_local(peer_id);
        let reachable =
            |address: &Multiaddr| is_concrete(address) && (local || !is_loopback(address));
        let addresses = to_keep(info.listen_addrs.into_iter().filter(reachable));
        let umbel = info.protocol_version == IDENTIFY_PROTOCOL;
        let server = umbel && info.protocols.contains(&KAD_PROTOCOL);
        if server {
            let before = self.peers.addresses(peer_id);
            let dialled = self.peers.dialled(peer_id);
            let kad = &mut self.swarm.behaviour_mut().kad;
            discovery::set_addresses(kad, peer_id, (&addresses, dialled), before);
        }
        // Nobody passes on what comes by a relay, and so nobody says there that it would.
        let tells = !self.peers.leads_by_relay(peer_id, connection_id);
        let relays = tells.then(|| umbel && info.protocols.contains(&relay::HOP_PROTOCOL_NAME));
        self.peers.identified(peer_id, Identified { umbel, server, addresses, relays });
        self.met_somebody();
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(round_trip) => {
                // That of the connection on which links are opened.
                let best = self.peers.best_connection(event.peer);
                let peer = own_name(&event.peer).filter(|_| best == Some(event.connection));
                if let Some(peer) = peer {
                    self.direct.is_away(event.peer, round_trip);
                    self.shared.round_trips().add(peer, event.connection, round_trip);
                }
            }
            Err(ping::Failure::Timeout) => {
                tracing::info!(peer = %event.peer, "a peer does not answer any more");
                self.swarm.close_connection(event.connection);
            }
            // Either the connection breaks, which is its own event, or the peer knows no ping.
            Err(ping::Failure::Unsupported | ping::Failure::Other { .. }) => {}
        }
    }

    fn on_dialled_back(&mut self, event: autonat::client::Event) {
        let Some(by) = own_name(&event.server) else {
            return;
        };
        let failure = event.result.err().map(|error| error.to_string());
        // By a relay others see no socket, and none can be tried.
        if tcp_socket(&event.tested_addr).or(quic_socket(&event.tested_addr)).is_none() {
            return;
        }
        let now = tokio::time::Instant::now();
        self.judge.heard(&event.tested_addr, failure.is_none(), now);
        self.settle(now);
        self.shared.reachability.send_modify(|known| {
            if known.len() < ADDRESSES_MAX {
                known.push(Reachability { address: event.tested_addr, by, failure });
            }
        });
    }

    /// Peers on the local network are connected to at once; limits on connections bound them.
    fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else {
            return;
        };
        let mut peers: BTreeMap<libp2p::PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for (peer, address) in found {
            peers.entry(peer).or_default().push(address);
        }
        for (peer, mut addresses) in peers {
            addresses.truncate(ADDRESSES_MAX);
            tracing::debug!(%peer, ?addresses, "found on the local network");
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(addresses)
                .build();
            if let Err(error) = self.swarm.dial(options) {
                tracing::debug!(%peer, %error, "not dialled");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;
    use crate::behaviour;
    use crate::config::{NetworkConfig, Role};
    use crate::driver::Shared;
    use crate::identity::Identity;
    use crate::rates::RateLimits;

    #[tokio::test]
    async fn an_address_that_is_announced_outlives_its_interface() {
        let [named, other]: [Multiaddr; 2] =
            ["/ip4/203.0.113.7/tcp/4001", "/ip4/203.0.113.8/tcp/4001"]
                .map(|text| text.parse().unwrap());
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let shared = Arc::new(Shared::new(vec![named.clone()], RateLimits::default()));
        let swarm = behaviour::build(&config, &shared).unwrap();
        let (_commands, receiver) = mpsc::channel(1);
        let mut driver = Driver::new(swarm, receiver, shared, &config);
        driver.listen(&[]).await.unwrap();
        driver.swarm.add_external_address(other.clone());
        for address in [&named, &other] {
            driver.on_listening_no_more(address);
        }
        assert_eq!(driver.swarm.external_addresses().collect::<Vec<_>>(), [&named]);
    }
}
