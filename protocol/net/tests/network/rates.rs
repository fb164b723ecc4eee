//! Links that take no more of a connection than they may.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use umbel_net::{Identity, Link, LinkProtocol, Network, NetworkConfig, RateLimits, Role};

use crate::{QUIC, client, frame};

/// A server and a client between which the server's links take so many bytes a second.
async fn limited(rate_limits: RateLimits) -> (Network, Link, Link) {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let listen = vec![QUIC.parse().unwrap()];
    let server = Network::start(NetworkConfig { listen, rate_limits, ..config }).await.unwrap();
    let client = client().await;
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let addresses = server.listen_addresses();
    let opened = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await;
    let (_, accepted) = incoming.next().await.unwrap();
    // The client's end of the network lives as long as its link's.
    tokio::spawn(async move {
        let _kept = client;
        std::future::pending::<()>().await
    });
    (server, accepted, opened.unwrap())
}

/// Bytes a second, and what both tests send: some pieces, and more than the bucket holds.
const RATE: u64 = 400_000;
const PAYLOAD: usize = 100_000;
const FRAMES: usize = 4;

/// The least time that so many bytes take: all but a tenth of a second's worth, and the last piece.
fn least(bytes: u64) -> Duration {
    Duration::from_secs_f64((bytes as f64 - 17_000.0) / RATE as f64 - 0.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_takes_as_long_as_the_limit_says() {
    let upload = NonZeroU64::new(RATE);
    let (server, accepted, opened) = limited(RateLimits { upload, download: None }).await;
    let (mut sender, _receiver) = accepted.split();
    let (_, mut receiver) = opened.split();
    let started = Instant::now();
    let send = async {
        for number in 0..FRAMES {
            sender.send(frame(number, PAYLOAD)).await.unwrap();
        }
    };
    let receive = async {
        for number in 0..FRAMES {
            assert_eq!(receiver.receive().await.unwrap().unwrap(), frame(number, PAYLOAD));
        }
    };
    tokio::join!(send, receive);
    let sent = server.traffic().sent;
    assert!(sent >= (FRAMES * PAYLOAD) as u64, "{sent}");
    assert!(started.elapsed() >= least(sent), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_is_read_as_fast_as_the_limit_says() {
    let download = NonZeroU64::new(RATE);
    let (server, accepted, opened) = limited(RateLimits { upload: None, download }).await;
    let (_, mut receiver) = accepted.split();
    let (mut sender, _receiver) = opened.split();
    let started = Instant::now();
    let send = async {
        for number in 0..FRAMES {
            sender.send(frame(number, PAYLOAD)).await.unwrap();
        }
        // It is read when all before it was paid for.
        sender.send(frame(FRAMES, 0)).await.unwrap();
    };
    let receive = async {
        for number in 0..FRAMES {
            assert_eq!(receiver.receive().await.unwrap().unwrap(), frame(number, PAYLOAD));
        }
        assert_eq!(receiver.receive().await.unwrap().unwrap(), frame(FRAMES, 0));
    };
    tokio::join!(send, receive);
    let received = server.traffic().received;
    assert!(received >= (FRAMES * PAYLOAD) as u64, "{received}");
    assert!(started.elapsed() >= least(received), "{:?}", started.elapsed());
}
