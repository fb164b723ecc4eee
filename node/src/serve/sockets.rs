//! What the process of a server listens on besides the swarm's links.

use tokio::net::TcpListener;
use tokio::sync::watch;
use umbel_client::SwarmConfig;
use umbel_net::Network;
use umbel_protocol::PeerId;
use umbel_shard::ModelSource;

use super::attached::Attached;
use crate::announce::Offer;
use crate::args::ServeArguments;
use crate::config::Config;
use crate::driver::Driver;
use crate::gateway::Front;
use crate::metrics;

/// What else the process listens on.
pub(super) struct Sockets {
    front: Option<Front>,
    metrics: Option<TcpListener>,
}

impl Sockets {
    /// Before anything is fetched or loaded: a port that is taken is found out at once.
    pub(super) async fn bind(arguments: &ServeArguments) -> anyhow::Result<Self> {
        let front = match arguments.gateway {
            Some(listen) => Some(Front::bind(listen, &arguments.front).await?),
            None => None,
        };
        let metrics = match arguments.metrics {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        Ok(Self { front, metrics })
    }

    /// Lets Prometheus ask, if it may.
    pub(super) fn measure(
        &mut self,
        driver: &Driver,
        offer: &watch::Sender<Offer>,
        (waits, network): (&metrics::server::Waits, &Network),
    ) {
        let Some(listener) = self.metrics.take() else {
            return;
        };
        let mut registry = metrics::registry();
        driver.counters().register(&mut registry);
        waits.register(&mut registry);
        let state = metrics::server::State { load: driver.load(), offer: offer.subscribe() };
        registry.register_collector(Box::new(state));
        registry.register_collector(Box::new(metrics::links::Links(network.clone())));
        if let Some(front) = &self.front {
            front.counters().register(&mut registry);
        }
        tokio::spawn(metrics::serve(listener, registry));
    }

    /// Begins to answer over HTTP by the swarm, if that was asked for; this process is that server.
    pub(super) fn attach(
        self,
        source: ModelSource,
        way: (PeerId, SwarmConfig),
        config: &Config,
    ) -> Option<Attached> {
        self.front.map(|front| Attached::start(front, source, way, config.clone()))
    }
}
