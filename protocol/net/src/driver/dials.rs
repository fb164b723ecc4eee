//! Connections that are wanted, and who waits for them.

use std::collections::HashMap;

use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};

use super::ConnectReply;
use crate::address::failures;
use crate::behaviour::Behaviour;

/// Attempts to connect that are under way. The handshakes that libp2p allows at once bound them.
#[derive(Default)]
pub(super) struct Dials(HashMap<ConnectionId, Dial>);

struct Dial {
    peer: Option<libp2p::PeerId>,
    addresses: Vec<Multiaddr>,
    waiting: Vec<ConnectReply>,
}

impl Dials {
    /// Answers at once where there is a connection, and else dials all addresses, QUIC first.
    /// An attempt that tries these addresses already is joined.
    pub(super) fn connect(
        &mut self,
        swarm: &mut libp2p::Swarm<Behaviour>,
        peer: Option<libp2p::PeerId>,
        addresses: Vec<Multiaddr>,
        reply: ConnectReply,
    ) {
        if let Some(peer) = peer.filter(|peer| swarm.is_connected(peer)) {
            let _unwanted = reply.send(Ok(peer));
            return;
        }
        let same = |dial: &&mut Dial| {
            dial.peer == peer && addresses.iter().all(|address| dial.addresses.contains(address))
        };
        if let Some(dial) = self.0.values_mut().find(same) {
            dial.waiting.push(reply);
            return;
        }
        let options = match (peer, addresses.first()) {
            (Some(peer), _) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(addresses.clone())
                .extend_addresses_through_behaviour()
                .build(),
            (None, Some(address)) => DialOpts::unknown_peer_id().address(address.clone()).build(),
            (None, None) => {
                let _unwanted = reply.send(Err(failures(&DialError::NoAddresses)));
                return;
            }
        };
        let connection = options.connection_id();
        match swarm.dial(options) {
            Ok(()) => {
                self.0.insert(connection, Dial { peer, addresses, waiting: vec![reply] });
            }
            Err(error) => {
                let _unwanted = reply.send(Err(failures(&error)));
            }
        }
    }

    /// Connects to a peer where the hash table knows right now that it is; whoever asks for it meanwhile
    /// waits for that.
    pub(super) fn meet(&mut self, swarm: &mut libp2p::Swarm<Behaviour>, peer: libp2p::PeerId) {
        let options =
            DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        let connection = options.connection_id();
        match swarm.dial(options) {
            Ok(()) => {
                let dial = Dial { peer: Some(peer), addresses: Vec::new(), waiting: Vec::new() };
                self.0.insert(connection, dial);
            }
            Err(error) => tracing::debug!(%peer, %error, "a provider is not dialled"),
        }
    }

    /// A connection is there, whoever made it.
    pub(super) fn established(&mut self, connection: ConnectionId, peer: libp2p::PeerId) {
        let done =
            |id: &ConnectionId, dial: &mut Dial| *id == connection || dial.peer == Some(peer);
        for (_, dial) in self.0.extract_if(done) {
            dial.waiting.into_iter().for_each(|reply| {
                let _unwanted = reply.send(Ok(peer));
            });
        }
    }

    /// An attempt has failed on all of its addresses.
    pub(super) fn failed(&mut self, connection: ConnectionId, error: &DialError) {
        let Some(dial) = self.0.remove(&connection) else {
            return;
        };
        let failures = failures(error);
        tracing::debug!(peer = ?dial.peer, ?failures, "a peer cannot be reached");
        for reply in dial.waiting {
            let _unwanted = reply.send(Err(failures.clone()));
        }
    }
}
