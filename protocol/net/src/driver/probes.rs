//! Which connections over QUIC have lost the process at their other end.

use std::collections::HashMap;
use std::net::SocketAddr;

use libp2p::swarm::ConnectionId;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::probe::{Asking, probe};

/// Connections of whose end it is still to be heard. Each is reported once.
const REFUSED_WAITING_MAX: usize = 64;

/// The sockets that ask, one for each connection that was ever asked about.
pub(super) struct Probes {
    sockets: HashMap<ConnectionId, Probe>,
    tell: mpsc::Sender<ConnectionId>,
    refused: mpsc::Receiver<ConnectionId>,
}

struct Probe {
    asking: Asking,
    listening: AbortHandle,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Probes {
    pub(super) fn new() -> Self {
        let (tell, refused) = mpsc::channel(REFUSED_WAITING_MAX);
        Self { sockets: HashMap::new(), tell, refused }
    }

    /// Asks whether anybody holds the port at the other end of a connection.
    pub(super) fn send(&mut self, connection: ConnectionId, to: SocketAddr) {
        if !self.sockets.contains_key(&connection) {
            match probe(to) {
                Ok((asking, listening)) => {
                    let tell = self.tell.clone();
                    let task = tokio::spawn(async move {
                        listening.refused().await;
                        let _ended = tell.send(connection).await;
                    });
                    let listening = task.abort_handle();
                    self.sockets.insert(connection, Probe { asking, listening });
                }
                Err(error) => {
                    tracing::debug!(%to, %error, "a peer cannot be probed");
                    return;
                }
            }
        }
        if self.sockets.get(&connection).is_some_and(|probe| probe.asking.ask()) {
            let _said_already = self.tell.try_send(connection);
        }
    }

    /// A connection has closed.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.sockets.remove(&connection);
    }

    /// The next connection whose other end is gone.
    pub(super) async fn refused(&mut self) -> ConnectionId {
        self.refused.recv().await.expect("the probes themselves hold a sender")
    }
}
