//! How others reach the server: where it listens, or by relays, and what it tells its operator of that.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use umbel_net::{
    Identity, Multiaddr, Network, NetworkConfig, RateLimits, Reach, RelayLimits, Role, Standing,
    SwarmKey, Verdict,
};

use crate::args::{ReachWish, RestArguments, ServeArguments};

/// How long a server that is reached by relays alone waits for the first place: those who meet just now
/// tell each other within seconds what they do.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn start_network(
    arguments: &ServeArguments,
    identity: Identity,
    swarm_key: Option<SwarmKey>,
) -> anyhow::Result<Network> {
    let anywhere = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
    // The peers of a private swarm speak TCP alone.
    let anywhere = if swarm_key.is_some() { &anywhere[..1] } else { &anywhere[..] };
    let listen = if arguments.listen.is_empty() {
        anywhere.iter().map(|text| text.parse().expect("a multiaddress")).collect()
    } else {
        arguments.listen.clone()
    };
    let announce = arguments.announce.clone();
    if !announce.is_empty() && arguments.reach.reach == ReachWish::Relayed {
        bail!("--reach relayed tells nobody where the server is itself: leave --announce out");
    }
    // Who listens on loopback alone is not to be found from elsewhere, nor needs to be reached from there.
    let near = listen.iter().all(on_loopback);
    let wish = arguments.reach.reach;
    let needs_nobody = wish == ReachWish::Auto && (near || !announce.is_empty());
    let reach = if needs_nobody { Reach::Direct } else { wish.into() };
    let mdns = !arguments.no_mdns && !near && reach != Reach::Relayed;
    let RestArguments { upload_limit: upload, download_limit: download, .. } = arguments.rest;
    let config = NetworkConfig {
        rate_limits: RateLimits { upload, download },
        relays: arguments.reach.relay.then(RelayLimits::default),
        relayed_by: arguments.reach.relayed_by.clone(),
        local_links: !arguments.no_local_links,
        reach,
        ..NetworkConfig::new(identity, Role::Server)
    };
    let network = Network::start(NetworkConfig { listen, announce, mdns, swarm_key, ..config });
    let network = network.await?;
    tokio::spawn(say(network.standing()));
    Ok(network)
}

/// Whether servers on the local network are found, as [`start_network`] has it.
pub(super) fn finds_neighbours(arguments: &ServeArguments, network: &Network) -> bool {
    let is_near = network.listen_addresses().iter().all(on_loopback);
    !arguments.no_mdns && !is_near && arguments.reach.reach != ReachWish::Relayed
}

fn on_loopback(address: &Multiaddr) -> bool {
    let text = address.to_string();
    text.starts_with("/ip4/127.") || text.starts_with("/ip6/::1/")
}

/// Waits until others can come in, where they do so by relays alone.
pub(super) async fn await_place(
    arguments: &ServeArguments,
    network: &Network,
) -> anyhow::Result<()> {
    if arguments.reach.reach != ReachWish::Relayed {
        return Ok(());
    }
    let mut standing = network.standing();
    let placed = standing.wait_for(|standing| !standing.relays.is_empty());
    let placed = tokio::time::timeout(PLACE_TIMEOUT, placed).await.with_context(|| {
        format!(
            "no relay has given this server a place within {} s: name one that runs with `umbel serve \
             --relay` by --relayed-by ADDR, or let it join a swarm with some",
            PLACE_TIMEOUT.as_secs()
        )
    })?;
    placed.context("the network has ended")?;
    Ok(())
}

/// Tells the operator how others come in, and what else could be done, as long as the network is there.
async fn say(mut standing: watch::Receiver<Standing>) {
    let mut told = Standing::default();
    while standing.changed().await.is_ok() {
        let now = standing.borrow_and_update().clone();
        if now.verdict != told.verdict {
            match now.verdict {
                Verdict::Unknown => {}
                Verdict::Open => tracing::info!("others come in where this server listens"),
                Verdict::Shut => tracing::warn!(
                    "others do not come in where this server listens, and are to come by relays. A port that \
                     the router forwards is faster: --listen with the port here, --announce with the address \
                     there"
                ),
            }
        }
        if now.relays != told.relays {
            let relays: Vec<_> = now.relays.iter().map(ToString::to_string).collect();
            if relays.is_empty() {
                tracing::warn!("no relay leads to this server any more; others are sought");
            } else {
                tracing::info!(relays = relays.join(", "), "others reach this server by relays");
            }
        }
        told = now;
    }
}
