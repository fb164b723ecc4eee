//! Connections: how many, how long one may take to say what it wants, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at once; who comes then waits to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to send the head of a request, also of the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long answers under way may still take when the gateway stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits after an `accept` that failed, as it does where the process has no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, and then for as long as answers are under way, but not long.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let under_way = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepting = async {
            let place = Arc::clone(&connections).acquire_owned().await;
            (place.expect("nobody closes it"), listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepting => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it each token would wait for the acknowledgement of the one before.
        let _best_effort = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = under_way.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    tokio::select! {
        () = under_way.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {
            tracing::warn!("stopped in the middle of answers");
        }
    }
}
