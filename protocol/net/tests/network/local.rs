//! Links between processes of one machine.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use umbel_net::{Identity, Link, LinkProtocol, Network, NetworkConfig, OpenLinkError, Role};
use umbel_protocol::frame::{Frame, FrameDecoder, encode_prefix};
use umbel_protocol::local::{LocalAnswer, LocalRequest};
use umbel_protocol::version::Side;

use crate::limits::raw_stream;
use crate::{Pair, QUIC, TCP, address, frame, linked, local_pair};

async fn start(role: Role, listen: &[&str]) -> Network {
    let listen = listen.iter().copied().map(address).collect();
    let config = NetworkConfig::new(Identity::ephemeral(), role);
    Network::start(NetworkConfig { listen, local_links: true, ..config }).await.unwrap()
}

/// A server that would have links within the machine.
pub(crate) async fn server(listen: &str) -> Network {
    start(Role::Server, &[listen]).await
}

/// A client that would too.
pub(crate) async fn client() -> Network {
    start(Role::Client, &[]).await
}

async fn a_frame_passes(from: Link, to: Link) {
    let ((mut sender, _up), (_down, mut receiver)) = (from.split(), to.split());
    sender.send(frame(7, 4_096)).await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), Some(frame(7, 4_096)));
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_of_a_connection_opens_them_whatever_it_goes_over() {
    for listen in [QUIC, TCP, "/ip4/0.0.0.0/tcp/0"] {
        let Pair { server, client, accepted, opened } =
            linked(server(listen).await, client().await).await;
        assert!(opened.is_local() && accepted.is_local(), "{listen}");
        a_frame_passes(opened, accepted).await;
        let mut incoming = client.accept(LinkProtocol::Push).unwrap();
        let back = server.open_link(client.peer_id(), &[], LinkProtocol::Push).await.unwrap();
        let (_, accepted) = incoming.next().await.unwrap();
        assert!(back.is_local() && accepted.is_local(), "{listen}");
        a_frame_passes(back, accepted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_want_them_has_links_over_the_network() {
    for (server, client) in
        [(server(QUIC).await, crate::client().await), (crate::server(QUIC).await, client().await)]
    {
        let Pair { server: _server, client: _client, accepted, opened } =
            linked(server, client).await;
        assert!(!opened.is_local() && !accepted.is_local());
        a_frame_passes(opened, accepted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_over_soon_are_asked_over_the_connection() {
    let (server, client) = (server(QUIC).await, client().await);
    let mut incoming = server.accept(LinkProtocol::Directory).unwrap();
    let addresses = server.listen_addresses();
    let opened = client.open_link(server.peer_id(), &addresses, LinkProtocol::Directory).await;
    let (_, accepted) = incoming.next().await.unwrap();
    assert!(!opened.unwrap().is_local() && !accepted.is_local());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purpose_that_is_not_accepted_is_refused_as_on_any_link() {
    let (server, client) = (server(QUIC).await, client().await);
    let addresses = server.listen_addresses();
    let error = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await;
    assert!(matches!(error.unwrap_err(), OpenLinkError::Unsupported { .. }));
}

/// A port that leads to another, as that of a router or of a proxy does.
async fn port_that_leads_to(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _closed = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_between_two_peers_sees_what_passes() {
    let (server, client) = (server(TCP).await, client().await);
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let port = server.listen_addresses()[0].to_string();
    let port = port_that_leads_to(port.rsplit('/').next().unwrap().parse().unwrap()).await;
    let addresses = [address(&format!("/ip4/127.0.0.1/tcp/{port}"))];
    let opened = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await;
    let (opened, (_, accepted)) = (opened.unwrap(), incoming.next().await.unwrap());
    assert!(!opened.is_local() && !accepted.is_local());
    a_frame_passes(opened, accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_ends_with_its_connection() {
    let Pair { server, client: _client, accepted, opened } = local_pair().await;
    let ((_up, mut from_server), (mut down, _from_client)) = (opened.split(), accepted.split());
    down.send(frame(1, 100)).await.unwrap();
    // Both ends of the socket are still held.
    server.shutdown().await;
    assert_eq!(from_server.receive().await.unwrap(), Some(frame(1, 100)), "it came before");
    assert!(from_server.receive().await.is_err());
}

/// The bytes of a frame on the way.
fn bytes(frame: &Frame) -> Vec<u8> {
    let limits = LinkProtocol::Local.limits(Side::Opener);
    [&encode_prefix(frame, limits).unwrap()[..], &frame.header].concat()
}

/// What a server answers who asks for a link within the machine.
async fn answered(stream: &mut libp2p::Stream, request: LocalRequest) -> LocalAnswer {
    stream.write_all(&bytes(&request.encode())).await.unwrap();
    stream.flush().await.unwrap();
    let mut decoder = FrameDecoder::new(LinkProtocol::Local.limits(Side::Acceptor));
    loop {
        let mut piece = [0; 1];
        stream.read_exact(&mut piece).await.unwrap();
        if let Some(frame) = decoder.push(&piece).unwrap().pop() {
            return LocalAnswer::decode(frame).unwrap();
        }
    }
}

fn port_of(server: &Network) -> u16 {
    let text = server.listen_addresses()[0].to_string();
    text.split('/').nth(4).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_knows_the_secret_gets_a_link() {
    let server = server(QUIC).await;
    let mut incoming = server.accept(LinkProtocol::Session).unwrap();
    let request = LocalRequest { protocol: LinkProtocol::Session, port: port_of(&server) };
    let mut stream = raw_stream(&server, LinkProtocol::Local).await;
    let LocalAnswer::Waiting { socket, secret: (first, second) } =
        answered(&mut stream, request).await
    else {
        panic!("it accepts such links");
    };
    let name = format!("\0umbel-link-{:032x}", u128::from_be_bytes(socket));
    let come = async |says: [u8; 16]| {
        let mut socket = UnixStream::connect(OsString::from_vec(name.clone().into())).await?;
        socket.write_all(&says).await?;
        let mut answer = [0; 16];
        socket.read_exact(&mut answer).await?;
        std::io::Result::Ok((socket, answer))
    };
    assert!(come([0; 16]).await.is_err(), "it is told nothing");
    assert!(come(second).await.is_err(), "what is to be answered is not what is to be said");
    let (_socket, answer) = come(first).await.unwrap();
    assert_eq!(answer, second);
    let (_, link) = incoming.next().await.unwrap();
    assert!(link.is_local());
    assert!(come(first).await.is_err(), "the socket waits for one link");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_ports_and_purposes_are_declined_and_nonsense_ends_nothing_else() {
    let server = server(QUIC).await;
    let _incoming = server.accept(LinkProtocol::Session).unwrap();
    let port = port_of(&server);
    for (protocol, port) in [
        (LinkProtocol::Session, port ^ 1),
        (LinkProtocol::Push, port),
        (LinkProtocol::Directory, port),
        (LinkProtocol::Local, port),
    ] {
        let mut stream = raw_stream(&server, LinkProtocol::Local).await;
        let answer = answered(&mut stream, LocalRequest { protocol, port }).await;
        assert_eq!(answer, LocalAnswer::Declined, "{protocol} at {port}");
    }
    let mut stream = raw_stream(&server, LinkProtocol::Local).await;
    let nonsense = Frame { header: b"nonsense".to_vec().into(), ..Frame::default() };
    stream.write_all(&bytes(&nonsense)).await.unwrap();
    stream.flush().await.unwrap();
    assert!(stream.read_exact(&mut [0]).await.is_err());
    let request = LocalRequest { protocol: LinkProtocol::Session, port };
    let mut stream = raw_stream(&server, LinkProtocol::Local).await;
    assert_ne!(answered(&mut stream, request).await, LocalAnswer::Declined);
}
