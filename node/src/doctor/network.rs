//! Sockets of this machine, and its ways to peers and back.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_client::swarm::exchange::{lookup, multiaddrs};
use umbel_client::swarm::unix_time;
use umbel_net::{Identity, Multiaddr, Network, NetworkConfig, Reachability, Role, Way};
use umbel_protocol::announcement::{Announcement, AnnouncementError};
use umbel_protocol::error::in_one_line;
use umbel_protocol::version::SOFTWARE;

use super::reach::Seen;
use super::{Finding, clock, reach};

/// How long peers may take to dial back: they are asked five seconds after a connection is there, and
/// a dial that is dropped on the way takes ten.
const DIAL_BACK_TIMEOUT: Duration = Duration::from_secs(18);

/// Peers that are asked to dial back.
const PEERS_MAX: usize = 4;

/// The transports: what an address of it contains, and where to listen without a wish.
const TRANSPORTS: [(&str, &str, &str); 2] =
    [("QUIC", "/quic-v1", "/ip4/0.0.0.0/udp/0/quic-v1"), ("TCP", "/tcp/", "/ip4/0.0.0.0/tcp/0")];

/// Whether this machine can listen, and a connection to itself is made.
pub(super) async fn sockets(wished: &[Multiaddr]) -> Vec<Finding> {
    let mut findings: Vec<_> = wished.iter().filter_map(of_no_transport).collect();
    for (transport, part, anywhere) in TRANSPORTS {
        let listen = listen(wished, part, anywhere);
        if !listen.is_empty() {
            findings.push(socket(transport, listen).await);
        }
    }
    findings
}

/// What is wrong with an address on which no server can listen.
fn of_no_transport(wished: &Multiaddr) -> Option<Finding> {
    let address = wished.to_string();
    if TRANSPORTS.iter().any(|(_, part, _)| address.contains(part)) {
        return None;
    }
    let what =
        format!("{address} is an address of neither QUIC nor TCP: no server can listen on it");
    let advice = "write it as /ip4/0.0.0.0/udp/4001/quic-v1 or /ip4/0.0.0.0/tcp/4001";
    Some(Finding::bad("ports", what, advice))
}

async fn socket(transport: &'static str, listen: Vec<Multiaddr>) -> Finding {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let server = match Network::start(NetworkConfig { listen, ..config }).await {
        Ok(server) => server,
        Err(error) => {
            let advice = "end the program that has the port, or name another with --listen";
            return Finding::bad("ports", in_one_line(&error), advice);
        }
    };
    let client = Network::start(NetworkConfig::new(Identity::ephemeral(), Role::Client)).await;
    let reached = match &client {
        Ok(client) => client.reach(server.peer_id(), &server.listen_addresses()).await,
        Err(error) => return Finding::bad("ports", in_one_line(error), "see what the error says"),
    };
    let finding = match reached {
        Ok(()) => {
            let addresses: Vec<_> =
                server.listen_addresses().iter().map(ToString::to_string).collect();
            Finding::good("ports", format!("{transport} works at {}", addresses.join(", ")))
        }
        Err(error) => {
            let advice = "a firewall of this machine drops it: let it through";
            Finding::bad(
                "ports",
                format!("{transport} does not reach itself: {}", in_one_line(&error)),
                advice,
            )
        }
    };
    if let Ok(client) = client {
        client.shutdown().await;
    }
    server.shutdown().await;
    finding
}

fn listen(wished: &[Multiaddr], part: &str, anywhere: &str) -> Vec<Multiaddr> {
    if wished.is_empty() {
        return vec![anywhere.parse().expect("a multiaddress")];
    }
    wished.iter().filter(|address| address.to_string().contains(part)).cloned().collect()
}

/// What peers say: who they are, what time it is there, and whether they come in here.
pub(super) async fn swarm(way: &Way, wished: &[Multiaddr]) -> Vec<Finding> {
    let network = Network::start(client(way)).await;
    let network = match network {
        Ok(network) => network,
        Err(error) => {
            return vec![Finding::bad("swarm", in_one_line(&error), "see what the error says")];
        }
    };
    let joined = match network.join(&way.addresses).await {
        Ok(joined) => joined,
        Err(error) => {
            let advice = "compare the address with the `ready` line of a server that runs now, and \
                          let its port through the firewall there";
            return vec![Finding::bad("swarm", in_one_line(&error), advice)];
        }
    };
    let (mut known, mut refused) = (Vec::new(), Vec::new());
    let mut silent = None;
    for peer in &joined {
        match lookup(&network, *peer, &[], None).await {
            Ok(found) => {
                for signed in found {
                    match signed.verify(unix_time()) {
                        Ok(announcement) => known.push(announcement),
                        Err(error) => refused.push(error),
                    }
                }
            }
            Err(error) => silent = Some(in_one_line(&error)),
        }
    }
    let relays = network.find_relays().await.len();
    network.shutdown().await;
    let mut findings = vec![peers(&known, silent.as_deref())];
    findings.extend(versions(&known));
    findings.extend(judge_clock(&known, &refused));
    let mut seen = Vec::new();
    for (transport, part, anywhere) in TRANSPORTS {
        let addresses = by_transport(&known, part);
        let listen = listen(wished, part, anywhere);
        if !addresses.is_empty() && !listen.is_empty() {
            let config = NetworkConfig { listen, asks_reachability: true, ..client(way) };
            seen.push(dial_back(transport, config, addresses).await);
        }
    }
    findings.extend(reach::judge(&seen, relays));
    findings
}

/// A peer that asks and serves nothing.
fn client(way: &Way) -> NetworkConfig {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    NetworkConfig { swarm_key: way.swarm_key.clone(), ..config }
}

fn judge_clock(known: &[Announcement], refused: &[AnnouncementError]) -> Option<Finding> {
    let issued: Vec<_> = known.iter().map(|server| server.issued).collect();
    clock::judge(unix_time(), &issued, refused)
}

fn peers(known: &[Announcement], silent: Option<&str>) -> Finding {
    match (known.len(), silent) {
        (0, Some(why)) => {
            let advice = "is it a server of Umbel, and of this version?";
            Finding::bad("swarm", format!("the peer does not say whom it knows: {why}"), advice)
        }
        (0, None) => {
            let advice = "start one with `umbel serve --join`";
            Finding::note("swarm", "it has no server that serves anything", advice)
        }
        (1, _) => Finding::good("swarm", "1 server is known"),
        (count, _) => Finding::good("swarm", format!("{count} servers are known")),
    }
}

/// Whose software is of another version than this one.
fn versions(known: &[Announcement]) -> Option<Finding> {
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for server in known.iter().filter(|server| server.version != SOFTWARE) {
        *others.entry(server.version.as_str()).or_default() += 1;
    }
    if known.is_empty() {
        return None;
    }
    if others.is_empty() {
        return Some(Finding::good("versions", format!("all are {SOFTWARE}, as this one")));
    }
    let list: Vec<_> =
        others.iter().map(|(version, count)| format!("{count} of {version:?}")).collect();
    let what =
        format!("this is {SOFTWARE}; of {} servers {} are others", known.len(), list.join(", "));
    Some(Finding::note("versions", what, "use one version where something does not work"))
}

/// Addresses of some servers over one transport.
fn by_transport(
    known: &[Announcement],
    part: &str,
) -> Vec<(umbel_protocol::PeerId, Vec<Multiaddr>)> {
    let of = |server: &Announcement| {
        let addresses: Vec<_> =
            server.addresses.iter().filter(|address| address.contains(part)).cloned().collect();
        (server.peer, multiaddrs(&addresses))
    };
    let with_some = known.iter().map(of).filter(|(_, addresses)| !addresses.is_empty());
    with_some.take(PEERS_MAX).collect()
}

async fn dial_back(
    transport: &'static str,
    config: NetworkConfig,
    peers: Vec<(umbel_protocol::PeerId, Vec<Multiaddr>)>,
) -> Seen {
    let network = match Network::start(config).await {
        Ok(network) => network,
        Err(error) => {
            let no_way_out = Some(in_one_line(&error));
            return Seen { transport, no_way_out, ..Seen::default() };
        }
    };
    let reaching = peers.iter().map(|(peer, addresses)| network.reach(*peer, addresses));
    let mut failures = Vec::new();
    let mut reached = false;
    for result in futures::future::join_all(reaching).await {
        match result {
            Ok(()) => reached = true,
            Err(error) => failures.push(in_one_line(&error)),
        }
    }
    let no_way_out = (!reached).then(|| failures.join("; "));
    let mut dialled = Vec::new();
    if reached {
        let mut known = network.reachability();
        let open = |known: &Vec<Reachability>| known.iter().any(|one| one.failure.is_none());
        let waited = tokio::time::timeout(DIAL_BACK_TIMEOUT, known.wait_for(open)).await;
        drop(waited);
        dialled.clone_from(&known.borrow());
    }
    let listened = network.listen_addresses();
    network.shutdown().await;
    Seen { transport, listened, no_way_out, dialled }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[tokio::test]
    async fn an_address_that_no_server_can_listen_on_is_bad() {
        let wished = ["/ip4/127.0.0.1/udp/0", "/ip4/127.0.0.1/tcp/0"];
        let findings = sockets(&wished.map(|address| address.parse().unwrap())).await;
        let grades: Vec<_> = findings.iter().map(|finding| finding.grade).collect();
        assert_eq!(grades, [Grade::Bad, Grade::Good], "{findings:#?}");
        assert!(findings[0].what.contains(wished[0]), "{findings:#?}");
    }
}
