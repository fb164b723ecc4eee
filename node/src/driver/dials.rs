//! Dials to the next hops that clients name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use umbel_client::swarm::exchange::multiaddrs;
use umbel_net::{Link, LinkProtocol, Network};
use umbel_protocol::PeerId;
use umbel_protocol::error::in_one_line;
use umbel_protocol::inference::NextHop;

/// Dials at once to where clients say: half of the handshakes that the network has under way at most, so
/// that they do not keep others from being reached.
const DIALS_MAX: usize = 64;

/// Those of one client: a gateway whose sessions go on from here to as many servers, none of which is
/// connected yet.
const DIALS_OF_CLIENT_MAX: usize = 16;

/// Who is dialled for whom, and where, and how many sessions wait for that; those are one dial.
type UnderWay = BTreeMap<(PeerId, PeerId, Vec<String>), usize>;

/// The dials that are under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Dials(Arc<Mutex<UnderWay>>);

/// One of them, while somebody waits for it.
#[derive(Debug)]
struct Dial {
    dials: Dials,
    what: (PeerId, PeerId, Vec<String>),
}

impl Dials {
    /// Opens a link by which to push to the next hop that a client has named.
    pub(super) async fn open_push(
        &self,
        network: &Network,
        client: PeerId,
        next: &NextHop,
    ) -> Result<Link, String> {
        let is_connected = network.is_relayed(next.peer).await.is_some();
        let dial = if is_connected { None } else { Some(self.begin(client, next)?) };
        let (network, next) = (network.clone(), next.clone());
        // A dial goes on when nobody wants it any more, and counts as long as it does.
        let opening = tokio::spawn(async move {
            let addresses = multiaddrs(&next.addresses);
            let link = network.open_link(next.peer, &addresses, LinkProtocol::Push).await;
            drop(dial);
            link
        });
        // It ends before that only with the process.
        let link = opening.await.map_err(|error| in_one_line(&error))?;
        link.map_err(|error| in_one_line(&error))
    }

    fn begin(&self, client: PeerId, next: &NextHop) -> Result<Dial, String> {
        let what = (client, next.peer, next.addresses.clone());
        let mut under_way = self.under_way();
        let of_client = under_way.keys().filter(|(of, ..)| *of == client).count();
        let is_too_much = of_client >= DIALS_OF_CLIENT_MAX || under_way.len() >= DIALS_MAX;
        if is_too_much && !under_way.contains_key(&what) {
            return Err("too many servers are dialled already".to_owned());
        }
        *under_way.entry(what.clone()).or_default() += 1;
        drop(under_way);
        Ok(Dial { dials: self.clone(), what })
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let mut under_way = self.dials.under_way();
        if let Some(waiting) = under_way.get_mut(&self.what) {
            *waiting -= 1;
            if *waiting == 0 {
                under_way.remove(&self.what);
            }
        }
    }
}
