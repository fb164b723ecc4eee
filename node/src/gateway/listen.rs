//! Connections: how many, how long one may take to say what it wants or to read what it is told, and how
//! they end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::{self, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// Connections at once; who comes then waits to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to send the head of a request, also of the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may read nothing of what waits for it: as long as of an answer's tokens.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);

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
        let connection = under_way.watch(connection(stream, router.clone()));
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

/// A stream that fails where its other end reads nothing.
type Timed<S> = TokioIo<Pin<Box<TimeoutStream<S>>>>;

/// What is said on a stream, to its end.
fn connection<S: AsyncRead + AsyncWrite>(
    stream: S,
    router: Router,
) -> Connection<Timed<S>, TowerToHyperService<Router>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD_TIMEOUT));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, advance, timeout};

    use super::*;

    /// What is answered, in bytes: more than the stream between the two holds.
    const ANSWER_BYTES: usize = 64 << 10;

    /// A client that has asked, and how long its connection lasts.
    async fn asked() -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
        let router = Router::new().route("/", get(|| async { "a".repeat(ANSWER_BYTES) }));
        let (mut client, stream) = duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let connection = tokio::spawn(async move {
            let begun = Instant::now();
            let _failed = connection(stream, router).await;
            begun.elapsed()
        });
        (client, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_loses_the_connection() {
        let (_client, connection) = asked().await;
        let lasted = timeout(2 * UNREAD_TIMEOUT, connection).await.expect("it ends").unwrap();
        assert!(lasted >= UNREAD_TIMEOUT && lasted < UNREAD_TIMEOUT + HEAD_TIMEOUT, "{lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_reads_to_the_end() {
        let (mut client, connection) = asked().await;
        let (mut answer, mut buffer) = (0, [0; 4096]);
        while answer < ANSWER_BYTES {
            advance(UNREAD_TIMEOUT / 2).await;
            answer += client.read(&mut buffer).await.unwrap();
        }
        assert!(connection.await.unwrap() > 2 * UNREAD_TIMEOUT);
    }
}
