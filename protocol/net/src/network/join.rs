//! Coming into a swarm by the address of any of its peers.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use libp2p::Multiaddr;
use umbel_protocol::PeerId;

use super::{Network, foreign_name};
use crate::address::{OWN, is_quic, split_peer};
use crate::driver::Command;
use crate::error::{AddressFailure, JoinError};

/// How long each address is given.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What is said of an address of QUIC in a private swarm.
const QUIC_IN_PRIVATE: &str = "the peers of a private swarm speak TCP alone: give a TCP address";

/// How long the other addresses are given once one has answered.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(500);

impl Network {
    /// Connects to the peers at `addresses`, with or without `/p2p/` and a name at their end, and
    /// thereby to the hash table. Returns soon after the first has answered.
    ///
    /// # Errors
    /// [`JoinError`] where none answers within 10 s.
    pub async fn join(&self, addresses: &[Multiaddr]) -> Result<Vec<PeerId>, JoinError> {
        let mut peers = Vec::new();
        for (_, peer) in self.join_each(addresses).await? {
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        Ok(peers)
    }

    /// The same, with the addresses at which they have answered.
    ///
    /// # Errors
    /// As [`Network::join`].
    pub async fn join_each(
        &self,
        addresses: &[Multiaddr],
    ) -> Result<Vec<(Multiaddr, PeerId)>, JoinError> {
        if addresses.is_empty() {
            return Err(JoinError::NoAddress);
        }
        let join = |address: &Multiaddr| {
            let address = address.clone();
            async move { self.join_by(&address).await.map(|peer| (address, peer)) }
        };
        let mut joining: FuturesUnordered<_> = addresses.iter().map(join).collect();
        let (mut joined, mut failures) = (Vec::new(), Vec::new());
        while let Some(result) = joining.next().await {
            match result {
                Ok(peer) => {
                    joined.push(peer);
                    break;
                }
                Err(JoinError::Unreachable { failures: more }) => failures.extend(more),
                Err(error) => return Err(error),
            }
        }
        if joined.is_empty() {
            return Err(JoinError::Unreachable { failures });
        }
        let others = async {
            while let Some(result) = joining.next().await {
                joined.extend(result.ok());
            }
        };
        let _late = tokio::time::timeout(OTHERS_TIMEOUT, others).await;
        Ok(joined)
    }

    async fn join_by(&self, address: &Multiaddr) -> Result<PeerId, JoinError> {
        let failed_for = |reason: String, lasts: bool, is_own: bool| {
            let failure = AddressFailure { address: Some(address.clone()), reason, lasts, is_own };
            JoinError::Unreachable { failures: vec![failure] }
        };
        let failed = |reason: String| failed_for(reason, false, false);
        if self.0.is_private && is_quic(address) {
            // Whoever listens there, or will: no socket of this peer leads there.
            return Err(failed_for(QUIC_IN_PRIVATE.to_owned(), true, false));
        }
        let join = async {
            let (bare, peer) = split_peer(address.clone());
            if peer == Some(foreign_name(self.peer_id())) {
                return Err(failed_for(OWN.to_owned(), false, true));
            }
            let connected = self.connect_at(peer, vec![bare]).await;
            let peer = connected.map_err(|_| JoinError::ShutDown)?.map_err(|failures| {
                let lasts = failures.iter().any(|failure| failure.lasts);
                let is_own = failures.iter().any(|failure| failure.is_own);
                let reasons: Vec<_> = failures.into_iter().map(|failure| failure.reason).collect();
                failed_for(reasons.join(", "), lasts, is_own)
            })?;
            // Only now is the peer part of this one's hash table.
            match self.ask(|reply| Command::Identify { peer, reply }).await {
                Some(true) => {}
                Some(false) => return Err(failed("no peer of Umbel".to_owned())),
                None => return Err(failed("it closed the connection".to_owned())),
            }
            PeerId::from_multihash(&peer.to_bytes()).map_err(|error| failed(error.to_string()))
        };
        let timed_out = || failed(format!("no answer within {} s", JOIN_TIMEOUT.as_secs()));
        tokio::time::timeout(JOIN_TIMEOUT, join).await.unwrap_or_else(|_| Err(timed_out()))
    }
}
