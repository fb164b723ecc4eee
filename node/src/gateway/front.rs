//! Where a gateway listens, and who may ask there: found out before anything else is begun.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::http::HeaderValue;
use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use umbel_client::Speculate;

use super::{Gateway, Keys, Limits, Tuning};
use crate::args::FrontArguments;
use crate::commands::session::Opened;
use crate::metrics::gateway::Counters;
use crate::shutdown::{Shutdown, StopSignal};

/// A socket on which requests wait already.
pub(crate) struct Front {
    listener: TcpListener,
    address: SocketAddr,
    terms: Terms,
}

/// Who may ask for what, and how much at once.
pub(super) struct Terms {
    /// `None` where anybody may ask who reaches it.
    pub(super) keys: Option<Keys>,
    /// Whose pages may ask besides its own.
    pub(super) origins: Vec<HeaderValue>,
    /// Nothing but that it is reached from this machine alone keeps others away.
    pub(super) guarded: bool,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    /// Where it learns adapters, if it does.
    pub(super) tuning: Option<Arc<Tuning>>,
}

/// How a gateway has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With its last answer.
    InOrder,
    /// Before it.
    AtOnce,
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
            answers: usize::from(arguments.answers()),
            waiting: usize::from(arguments.waiting()),
            // More at once would be no faster, and each holds what it reads.
            encoding: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let terms = Terms {
            guarded: keys.is_none() && !arguments.allow_anyone && listen.ip().is_loopback(),
            keys,
            origins: arguments.allow_origin.clone(),
            limits,
            counters: Counters::default(),
            tuning: None,
        };
        Ok(Self { listener, address, terms })
    }

    /// The same, where adapters are learned as well.
    pub(crate) fn with_tuning(mut self, tuning: Option<Arc<Tuning>>) -> Self {
        self.terms.tuning = tuning;
        self
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> Counters {
        self.terms.counters.clone()
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
        let gateway = Gateway::new(opened, speculate, self.terms, cache);
        gateway.serve(self.listener, stop).await
    }

    /// Answers until a signal, which `stopping` is told, and what is under way then until the next one.
    pub(crate) async fn serve_until_stopped(
        self,
        opened: Opened,
        speculate: Speculate,
        cache: &Path,
        stop: &mut Shutdown,
        stopping: impl FnOnce(StopSignal),
    ) -> End {
        let (tell, told) = oneshot::channel::<()>();
        // Whether it is said or who would say it is gone: both are the end.
        let mut serving = std::pin::pin!(self.serve(opened, speculate, cache, told.map(drop)));
        tokio::select! {
            _ = &mut serving => return End::InOrder,
            signal = stop.requested() => {
                stopping(signal);
                drop(tell);
            }
        }
        tokio::select! {
            opened = serving => if let Some(opened) = opened {
                opened.leave().await;
            },
            _ = stop.requested() => return End::AtOnce,
        }
        End::InOrder
    }
}
