//! How long a frame takes there and back, and how many bytes pass in a second, on loopback.
//!
//! `cargo run --release -p umbel-net --example ping_pong`

use std::time::{Duration, Instant};

use umbel_net::{Identity, LinkProtocol, LinkReceiver, LinkSender, Network, NetworkConfig, Role};
use umbel_protocol::frame::Frame;

const ROUNDS: usize = 5_000;
const ROUNDS_UNCOUNTED: usize = 500;
const BULK_FRAMES: u32 = 32;
const BULK_BYTES: u32 = 8 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"] {
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let server =
            Network::start(NetworkConfig { listen: vec![listen.parse()?], ..config }).await?;
        let client =
            Network::start(NetworkConfig::new(Identity::ephemeral(), Role::Client)).await?;
        let mut incoming = server.accept(LinkProtocol::Session)?;
        let addresses = server.listen_addresses();
        let link = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await?;
        let (_, accepted) = incoming.next().await.ok_or("no link")?;
        let (back, there) = accepted.split();
        let echo = tokio::spawn(echo(back, there));
        let (mut sender, mut receiver) = link.split();
        eprintln!("{listen}");
        for payload_bytes in [0, 2_304, 16 << 10, 64 << 10] {
            let mut times = round_trips(&mut sender, &mut receiver, payload_bytes).await?;
            times.sort();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
            eprintln!(
                "{payload_bytes:>8} B  p50 {} us  p90 {} us  p99 {} us",
                at(50),
                at(90),
                at(99)
            );
        }
        let rate = bulk(&mut sender, &mut receiver).await?;
        eprintln!("{:>8} MiB frames  {rate:.0} MB/s", BULK_BYTES >> 20);
        drop((sender, receiver));
        echo.await?;
    }
    Ok(())
}

/// Sends every frame back; of large ones only the header.
async fn echo(mut sender: LinkSender, mut receiver: LinkReceiver) {
    while let Ok(Some(mut frame)) = receiver.receive().await {
        if frame.payload.len() == BULK_BYTES as usize {
            frame.payload.clear();
        }
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

async fn round_trips(
    sender: &mut LinkSender,
    receiver: &mut LinkReceiver,
    payload_bytes: usize,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let frame = Frame { header: vec![1; 150].into(), payload: vec![2; payload_bytes].into() };
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS_UNCOUNTED + ROUNDS {
        let started = Instant::now();
        sender.send(frame.clone()).await?;
        receiver.receive().await?.ok_or("the link has closed")?;
        if round >= ROUNDS_UNCOUNTED {
            times.push(started.elapsed());
        }
    }
    Ok(times)
}

/// Bytes that pass in a second, in millions.
async fn bulk(
    sender: &mut LinkSender,
    receiver: &mut LinkReceiver,
) -> Result<f64, Box<dyn std::error::Error>> {
    let frame = Frame { header: vec![1; 150].into(), payload: vec![2; BULK_BYTES as usize].into() };
    let started = Instant::now();
    let send = async {
        for _ in 0..BULK_FRAMES {
            sender.send(frame.clone()).await?;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let receive = async {
        for _ in 0..BULK_FRAMES {
            receiver.receive().await?.ok_or("the link has closed")?;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    tokio::try_join!(send, receive)?;
    Ok(f64::from(BULK_FRAMES) * f64::from(BULK_BYTES) / 1e6 / started.elapsed().as_secs_f64())
}
