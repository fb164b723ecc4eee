//! What the driver hands to the machine, and what it no longer does.

use std::net::UdpSocket;

use umbel_coordinator::server::{AdapterRoom, ServerConfig};
use umbel_net::{Identity, LinkProtocol, NetworkConfig, Role};
use umbel_protocol::inference::{
    AdapterPart, Adopt, AnswerRows, Destination, OpenSession, PushMessage, Redirect, SessionAdapter,
};
use umbel_protocol::training::{AdapterSettings, TargetModule};
use umbel_protocol::{AdapterId, DType, ModelId, StepId, Tensor};

use super::links::FRAMES_WAITING_MAX;
use super::*;
use crate::compute::tests::llama;
use crate::compute::{Engine, OpenAdapter};
use crate::training::module_shapes;

const MODEL: ModelId = ModelId::from_bytes([3; 32]);
const CLIENT: PeerId = PeerId::from_public_key([1; 32]);
const LINK: LinkId = LinkId(0);
const TOKENS: u32 = 512;

/// It computes nothing.
struct Idle;

impl Engine for Idle {
    fn run(&mut self, _command: Command) -> Option<Computed> {
        None
    }
}

async fn listening() -> Network {
    let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("it is an address")];
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let network = Network::start(NetworkConfig { listen, ..config }).await;
    network.expect("loopback has a free port")
}

async fn client() -> Network {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    Network::start(config).await.expect("it listens nowhere")
}

async fn driver() -> Driver {
    driver_of(Idle, None).await
}

async fn driver_of(engine: impl Engine, adapters: Option<AdapterRoom>) -> Driver {
    let network = listening().await;
    let server = Server::new(ServerConfig {
        peer: network.peer_id(),
        model: MODEL,
        span: Span::new(0, 4).expect("it has blocks"),
        block_count: 4,
        vocabulary_size: None,
        hidden_size: 2,
        head_size: 32,
        context_tokens: TOKENS,
        kv_tokens_max: TOKENS,
        cache: None,
        journal_bytes_max: 1 << 20,
        keeps_pages: false,
        adapters,
    });
    let compute = Compute::start(engine, |_| {});
    Driver::new(server, network, compute, Events::new()).0
}

impl Driver {
    /// Opens a link as a client does, which leaves its answers unread.
    fn accept(&mut self, link: LinkId, peer: PeerId) -> Unread {
        let (answers, unread) = mpsc::channel(FRAMES_WAITING_MAX);
        let (close, closed) = watch::channel(false);
        self.handle(Event::Accepted { link, open: OpenLink { peer, answers, close } });
        (unread, closed)
    }

    fn hear(&mut self, link: LinkId, from: PeerId, message: ClientMessage) {
        self.handle(Event::Received { link, from, message });
        self.drain();
    }
}

type Unread = (mpsc::Receiver<ServerMessage>, watch::Receiver<bool>);

fn opening(session: u128, tokens_max: u32, next: Destination) -> ClientMessage {
    ClientMessage::Open(OpenSession {
        session: SessionId::new(session),
        model: MODEL,
        blocks: Span::new(0, 4).expect("it has blocks"),
        tokens_max,
        previous: None,
        next,
        next_position: 0,
        next_step: StepId(0),
        results: DType::F32,
        compress: false,
        cache: DType::F32,
        prefix: Vec::new(),
        thin: false,
        drawer: None,
        adapter: None,
    })
}

#[tokio::test]
async fn what_waits_behind_a_violation_opens_no_session() {
    let mut driver = driver().await;
    let free = driver.server.kv_tokens_free();
    let (_unread, closed) = driver.accept(LINK, CLIENT);
    let mut hear = |session, tokens_max| {
        let message = opening(session, tokens_max, Destination::Client);
        driver.handle(Event::Received { link: LINK, from: CLIENT, message });
        driver.server.kv_tokens_free()
    };
    assert!(hear(1, 16) < free);
    // The second has the name of the first, and the third waits behind it.
    hear(1, 16);
    hear(2, TOKENS);
    assert!(*closed.borrow(), "the link closes");
    driver.handle(Event::LinkClosed { link: LINK });
    driver.drain();
    assert_eq!((driver.server.session_count(), driver.server.kv_tokens_free()), (0, free));
}

#[tokio::test]
async fn dials_that_one_client_wants_leave_room_to_others() {
    let (mut driver, next) = (driver().await, listening().await);
    let mut pushes = next.accept(LinkProtocol::Push).expect("nobody does so yet");
    // Somebody who never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = silent.local_addr().expect("it is bound").port();

    let _one = driver.accept(LINK, CLIENT);
    driver.hear(LINK, CLIENT, opening(1, 16, Destination::Client));
    for number in 0..200 {
        let name = SessionId::new(1000 + number);
        let peer = Identity::ephemeral().peer_id();
        let addresses = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1")];
        let next = Destination::Server(NextHop { peer, addresses, session: name });
        let redirect = Redirect {
            session: SessionId::new(1),
            next,
            next_position: 0,
            next_step: StepId(0),
            settled: 0,
            mirror: false,
        };
        driver.hear(LINK, CLIENT, ClientMessage::Redirect(redirect));
        // The dial has begun before the next redirection gives it up.
        for _ in 0..4 {
            driver.network.connected_peers().await;
        }
    }

    let (link, other) = (LinkId(1), PeerId::from_public_key([2; 32]));
    let _other = driver.accept(link, other);
    let session = SessionId::new(3);
    let addresses = next.listen_addresses().iter().map(ToString::to_string).collect();
    let hop = NextHop { peer: next.peer_id(), addresses, session };
    driver.hear(link, other, opening(2, 16, Destination::Server(hop)));
    let failed = async {
        loop {
            let event = driver.events.recv().await.expect("the driver holds a sender");
            if let Event::PushFailed { to, detail, .. } = event
                && to == session
            {
                break detail;
            }
        }
    };
    tokio::select! {
        pushed = pushes.next() => {
            assert_eq!(pushed.expect("the network runs").0, driver.network.peer_id());
        }
        detail = failed => panic!("{detail}"),
    }
}

#[tokio::test]
async fn no_more_waits_for_a_next_hop_than_twice_the_tokens_of_the_session() {
    let mut driver = driver().await;
    // Somebody who never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = silent.local_addr().expect("it is bound").port();
    let addresses = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1")];
    let (session, to) = (SessionId::new(1), SessionId::new(9));
    let next = NextHop { peer: Identity::ephemeral().peer_id(), addresses, session: to };
    let (mut answers, _closed) = driver.accept(LINK, CLIENT);
    driver.hear(LINK, CLIENT, opening(1, 16, Destination::Server(next)));
    let mut push = || {
        driver.push(session, to, Step { hidden: Tensor::of_ids(&[1; 8]), ..step() });
        driver.drain();
        driver.pushes.contains_key(&(session, to))
    };
    assert!((0..4).all(|_| push()), "as many tokens as may wait");
    assert!(!push());
    let mut told = std::iter::from_fn(|| answers.try_recv().ok());
    assert!(told.any(|message| matches!(message, ServerMessage::Trouble(_))), "to the client");
}

#[tokio::test]
async fn silent_links_of_one_peer_leave_room_to_others() {
    let driver = driver().await;
    let (server, addresses) = (driver.network.peer_id(), driver.network.listen_addresses());
    let terms = Terms { links_max: 6, links_of_peer_max: 4, ..Terms::new() };
    let _acceptors = links::accept(&driver.network, &driver.tell, &terms);
    let mut events = driver.events;
    let (stranger, friend) = (client().await, client().await);
    for protocol in [LinkProtocol::Session, LinkProtocol::Push] {
        let open = async |peer: &Network| {
            let link = peer.open_link(server, &addresses, protocol).await;
            link.expect("it is refused only once it is there").split()
        };
        let (mut silent, mut accepted) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            silent.push(open(&stranger).await);
        }
        let (mut sender, mut closed) = open(&friend).await;
        let message = if protocol == LinkProtocol::Push {
            PushMessage::Step(step()).encode()
        } else {
            ClientMessage::Step(step()).encode()
        };
        let _refused = sender.send(message).await;
        loop {
            let event = tokio::select! {
                event = events.recv() => event.expect("the driver holds a sender"),
                _ = closed.receive() => panic!("{protocol}: the friend is refused"),
            };
            // A link ends with the last who could answer on it.
            if let Event::Accepted { open, .. } = event {
                accepted.push(open);
            } else if let Event::Received { from, .. } | Event::Pushed { from, .. } = event {
                assert_eq!(from, friend.peer_id());
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_frame_that_no_step_of_the_model_needs_closes_its_link() {
    let mut driver = driver().await;
    let (server, addresses) = (driver.network.peer_id(), driver.network.listen_addresses());
    let terms = Terms { payload_bytes_max: 100, ..Terms::new() };
    let _acceptors = links::accept(&driver.network, &driver.tell, &terms);
    let stranger = client().await;
    let link = stranger.open_link(server, &addresses, LinkProtocol::Session).await;
    let (mut sender, _answers) = link.expect("links are accepted").split();
    let hidden = Tensor::of_ids(&[1; 26]);
    let message = ClientMessage::Step(Step { hidden, ..step() });
    let _refused = sender.send(message.encode()).await;
    // A link ends with the last who could answer on it.
    let accepted = driver.events.recv().await;
    assert!(matches!(accepted, Some(Event::Accepted { .. })));
    let closed = driver.events.recv().await;
    assert!(matches!(closed, Some(Event::LinkClosed { .. })));
}

/// It hands on the adapters with which sessions open, and computes nothing.
struct Preparing(mpsc::UnboundedSender<OpenAdapter>);

impl Engine for Preparing {
    fn run(&mut self, command: Command) -> Option<Computed> {
        if let Command::Open { adapter: Some(adapter), .. } = command {
            self.0.send(adapter).expect("the test listens");
        }
        None
    }
}

/// A session with magnitudes (DoRA).
fn opening_with_magnitudes(session: u128) -> ClientMessage {
    let ClientMessage::Open(open) = opening(session, 16, Destination::Client) else {
        panic!("it opens a session")
    };
    let settings = AdapterSettings {
        rank: 1,
        alpha: 1.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: vec![TargetModule::Key],
        block_prompt_tokens: 0,
        weight_decomposed: true,
    };
    let adapter = Some(SessionAdapter { id: AdapterId::from_bytes([5; 32]), settings });
    ClientMessage::Open(OpenSession { adapter, ..open })
}

/// A session whose adapter has come and is being prepared, and what its client hears.
async fn preparing() -> (Driver, Unread, OpenAdapter) {
    let (model, _) = llama();
    let config = model.config().clone();
    let room = AdapterRoom {
        bytes_max: 1 << 20,
        module_shapes: module_shapes(&config),
        hidden_size: config.hidden_size as u64,
    };
    let (open, mut opened) = mpsc::unbounded_channel();
    let mut driver = driver_of(Preparing(open), Some(room)).await.adapting(config);
    let mut unread = driver.accept(LINK, CLIENT);
    driver.hear(LINK, CLIENT, opening_with_magnitudes(1));
    assert_eq!(unread.0.try_recv(), Ok(wanted(Some(0))));
    // 32 rows and as many magnitudes, 64 columns, four blocks.
    let count = 4 * (2 * 32 + 64);
    let values = Tensor::from_f32(vec![count], &vec![0.5; count as usize]);
    let values = values.expect("it has as many");
    let part = AdapterPart { session: SessionId::new(1), offset: 0, values };
    driver.hear(LINK, CLIENT, ClientMessage::Adapter(part));
    let adapter = opened.recv().await.expect("the engine opens it");
    (driver, unread, adapter)
}

fn wanted(offset: Option<u64>) -> ServerMessage {
    ServerMessage::AdapterWanted { session: SessionId::new(1), offset }
}

#[tokio::test]
async fn a_client_hears_that_its_session_is_open_when_its_adapter_is_prepared() {
    let (mut driver, (mut heard, _closed), adapter) = preparing().await;
    assert_eq!(heard.try_recv(), Ok(wanted(None)), "it waits");
    driver.handle(Event::Preparing { session: SessionId::new(1) });
    assert_eq!(heard.try_recv(), Ok(wanted(None)), "it waits on");
    assert!(heard.try_recv().is_err());

    drop(adapter);
    let event = driver.events.recv().await.expect("the driver holds a sender");
    assert!(matches!(event, Event::Prepared { .. }));
    driver.handle(event);
    let opened = heard.try_recv();
    assert!(matches!(opened, Ok(ServerMessage::Opened { adapter: true, .. })), "{opened:?}");
    driver.handle(Event::Preparing { session: SessionId::new(1) });
    assert!(heard.try_recv().is_err(), "it has heard all");
}

#[tokio::test]
async fn a_step_of_a_session_whose_adapter_is_being_prepared_is_not_computed() {
    let (mut driver, (_heard, closed), adapter) = preparing().await;
    let before = PeerId::from_public_key([2; 32]);
    let adopt = |previous| {
        let session = SessionId::new(1);
        ClientMessage::Adopt(Adopt { session, previous, empty: true, drawer: None })
    };
    let hidden = Tensor::from_f32(vec![1, 2], &[0.5; 2]).expect("it has as many");
    let step = Step { hidden, ..step() };
    driver.hear(LINK, CLIENT, adopt(Some(before)));
    let (close, push_closed) = watch::channel(false);
    driver.handle(Event::Pushed { from: before, step: step.clone(), close });
    assert!(*push_closed.borrow(), "it is too early");
    assert!(!*closed.borrow(), "the client is not at fault");
    assert_eq!(driver.server.queue_depth(), 0);

    driver.hear(LINK, CLIENT, adopt(None));
    driver.hear(LINK, CLIENT, ClientMessage::Step(step));
    assert!(*closed.borrow());
    assert_eq!((driver.server.queue_depth(), driver.server.session_count()), (0, 0));
    drop(adapter);
}

#[tokio::test]
async fn nothing_is_prepared_for_a_session_that_has_ended() {
    let (mut driver, _unread, adapter) = preparing().await;
    let mut prepared = adapter.prepared.expect("it is to be prepared");
    assert!(!prepared.is_closed());
    driver.hear(LINK, CLIENT, ClientMessage::Close { session: SessionId::new(1) });
    prepared.closed().await;
}

fn step() -> Step {
    Step {
        session: SessionId::new(1),
        step: StepId(0),
        position: 0,
        hidden: Tensor::of_ids(&[1]),
        trace: Vec::new(),
        replay: false,
        answer_rows: AnswerRows::Last,
        goes_on: false,
    }
}
