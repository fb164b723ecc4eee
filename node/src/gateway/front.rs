//! Where a gateway listens, and who may ask there: found out before anything else is begun.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::http::HeaderValue;
use tokio::net::TcpListener;
use umbel_client::Speculate;

use super::{Gateway, Keys, Limits, Tuning};
use crate::args::FrontArguments;
use crate::commands::session::Opened;
use crate::metrics::gateway::Counters;

/// A socket on which requests wait already.
pub(crate) struct Front {
    listener: TcpListener,
    address: SocketAddr,
    keys: Option<Keys>,
    /// Whose pages may ask besides its own.
    origins: Vec<HeaderValue>,
    limits: Limits,
    counters: Counters,
    tuning: Option<Arc<Tuning>>,
    /// Without keys, for those on this machine.
    guarded: bool,
}

impl Front {
    /// Reads the keys and listens.
    pub(crate) async fn bind(
        listen: SocketAddr,
        arguments: &FrontArguments,
    ) -> anyhow::Result<Self> {
        let keys = arguments.keys.as_deref().map(Keys::read).transpose()?;
        if !listen.ip().is_loopback() && keys.is_none() && !arguments.allow_anyone {
            bail!(
                "{listen} can be reached from other machines, and whoever reaches it may ask: name \
                 who may with --keys FILE, or say --allow-anyone"
            );
        }
        if let (None, Some(origin)) = (&keys, arguments.allow_origin.first()) {
            let origin = origin.to_str().unwrap_or_default();
            bail!(
                "without keys the pages of {origin} would ask in the name of whoever looks at them: \
                 --allow-origin needs --keys FILE"
            );
        }
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| {
            format!("cannot listen on {listen}: name another port, or 0 for any")
        })?;
        let address = listener.local_addr().context("the system does not say where it listens")?;
        let limits = Limits {
            answers: usize::from(arguments.answers),
            waiting: usize::from(arguments.waiting),
            // More at once would be no faster, and each holds what it reads.
            encoding: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let counters = Counters::default();
        let guarded = keys.is_none() && !arguments.allow_anyone && listen.ip().is_loopback();
        let origins = arguments.allow_origin.clone();
        Ok(Self { listener, address, keys, origins, limits, counters, tuning: None, guarded })
    }

    /// The same, where adapters are learned as well.
    pub(crate) fn with_tuning(self, tuning: Option<Arc<Tuning>>) -> Self {
        Self { tuning, ..self }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Answers until `stop`; gives back what it was made of, to be left in good order. Adapters that are
    /// fetched come into the cache.
    pub(crate) async fn serve(
        self,
        opened: Opened,
        speculate: Speculate,
        cache: &Path,
        stop: impl Future<Output = ()>,
    ) -> Option<Opened> {
        let Self { listener, keys, origins, limits, counters, tuning, guarded, .. } = self;
        let gateway = Gateway::new(opened, speculate, (limits, keys), counters, cache);
        let gateway = gateway.open_to(origins).with_tuning(tuning).guarded(guarded);
        gateway.serve(listener, stop).await
    }
}
