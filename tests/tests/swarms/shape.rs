//! The links that tests shape are as they were asked for. Only the least delays are checked: a busy
//! machine adds to every one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use umbel_tests::shape::{Front, Shape, ShapedNetwork};

const DELAY: Duration = Duration::from_millis(20);

/// Something behind a front that answers with what it is sent.
async fn echo(network: &ShapedNetwork) -> Front {
    let front = network.front().await.unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    front.lead_to(udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        loop {
            let (count, from) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&buffer[..count], from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = tcp.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                // It ends when the other side does.
                let _ended = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    front
}

async fn socket(front: &Front) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(front.udp()).await.unwrap();
    socket
}

async fn round_trip(socket: &UdpSocket) -> Duration {
    let begun = Instant::now();
    socket.send(b"there and back").await.unwrap();
    let mut buffer = [0; 64];
    let count = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"there and back");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_take_their_time_each_way() {
    let front = echo(&ShapedNetwork::new(Shape::of_delay(DELAY), 1)).await;
    let socket = socket(&front).await;
    for _ in 0..5 {
        assert!(round_trip(&socket).await >= 2 * DELAY);
    }
    assert_eq!(front.lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_take_their_time_each_way_and_arrive_whole() {
    let shape = Shape { loss: 0.1, ..Shape::of_delay(DELAY) };
    let front = echo(&ShapedNetwork::new(shape, 2)).await;
    let begun = Instant::now();
    let (mut from, mut to) = TcpStream::connect(front.tcp()).await.unwrap().into_split();
    let sent: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let copy = sent.clone();
    tokio::spawn(async move {
        to.write_all(&copy).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    from.read_to_end(&mut received).await.unwrap();
    assert!(received == sent);
    assert!(begun.elapsed() >= 2 * DELAY);
    assert!(front.lost() > 0, "one piece of ten is late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_link_takes_as_long_as_its_bytes_and_drops_what_it_cannot_hold() {
    let shape = Shape { bytes_per_second: 100_000.0, buffer_bytes: 4_000, ..Shape::PLAIN };
    let front = echo(&ShapedNetwork::new(shape, 3)).await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(front.tcp()).await.unwrap();
    stream.write_all(&[7; 20_000]).await.unwrap();
    let mut back = vec![0; 20_000];
    stream.read_exact(&mut back).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));

    let socket = socket(&front).await;
    for _ in 0..100 {
        socket.send(&[7; 1_000]).await.unwrap();
    }
    let mut buffer = [0; 2_048];
    assert_eq!(socket.recv(&mut buffer).await.unwrap(), 1_000);
    while front.lost() == 0 {
        socket.send(&[7; 1_000]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_a_cut_and_everything_after_it() {
    let front = echo(&ShapedNetwork::new(Shape::PLAIN, 4)).await;
    let socket = socket(&front).await;
    let mut stream = TcpStream::connect(front.tcp()).await.unwrap();
    round_trip(&socket).await;
    front.cut();
    stream.write_all(b"held").await.unwrap();
    while front.lost() < 3 {
        socket.send(b"dropped").await.unwrap();
        tokio::task::yield_now().await;
    }
    front.heal();
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"held", "TCP sends it again");
    // Whatever was sent before the cut was known may still come; what was dropped does not.
    socket.send(b"passes").await.unwrap();
    let mut buffer = [0; 64];
    while &buffer[..6] != b"passes" {
        socket.recv(&mut buffer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_sends_from_its_own_port_is_cut_with_it() {
    let network = ShapedNetwork::new(Shape::PLAIN, 5);
    let (near, far) = (network.front().await.unwrap(), echo(&network).await);
    let host = socket(&far).await;
    near.lead_to(host.local_addr().unwrap(), near.tcp());
    round_trip(&host).await;
    near.cut();
    host.send(b"dropped").await.unwrap();
    while far.lost() == 0 {
        tokio::task::yield_now().await;
    }
    near.heal();
    round_trip(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_is_gone_when_it_is_dropped() {
    let front = echo(&ShapedNetwork::new(Shape::PLAIN, 6)).await;
    let address = front.tcp();
    TcpStream::connect(address).await.unwrap();
    drop(front);
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
