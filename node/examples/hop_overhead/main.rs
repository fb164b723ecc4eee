//! What a hop adds to a step of decode besides arithmetic, on loopback, and where that goes:
//! `cargo run --release -p umbel-node --example hop_overhead`.
//!
//! Servers whose engine gives back at once what it is given, each a process of its own. As short
//! passes are in production, they are computed by the thread that has the links. The cost of a hop is what a ring of several takes more than a ring of
//! one, for each hop more. A step has one token of 2,048 hidden values.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

mod peer;

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::runtime::Builder;
use umbel_coordinator::server::{Server, ServerConfig};
use umbel_net::{Identity, LinkProtocol, LinkReceiver, LinkSender, Network, NetworkConfig, Role};
use umbel_node::compute::{Command, Compute, Computed, Engine};
use umbel_node::driver::{Driver, Events};
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{
    AnswerRows, ClientMessage, Destination, HopTiming, NextHop, OpenSession, PushMessage,
    ServerMessage, Step,
};
use umbel_protocol::{DType, ModelId, SessionId, Span, StepId, Tensor};

use peer::{Peer, Spent};

const MODEL: ModelId = ModelId::from_bytes([1; 32]);
const HIDDEN_SIZE: u32 = 2_048;
const TOKENS_MAX: u32 = 4_096;

/// Steps that are measured; the middle one counts.
const STEPS: u32 = 2_000;
const STEPS_UNCOUNTED: u32 = 200;

/// Servers of the longer ring.
const HOPS: u32 = 5;

/// Frames that are written and read to time the codec.
const FRAMES: u32 = 10_000;

/// The arguments by which this program is a server of a block, and one that sends frames back.
const SERVE: &str = "serve";
const ECHO: &str = "echo";

/// Whether links take the way of the network, or that within the machine.
const NETWORK: &str = "network";
const LOCAL: &str = "local";

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // As `umbel` does: servers have one thread for their links.
    let mut runtime = match arguments.as_slice() {
        [] => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    runtime.enable_all().build()?.block_on(async {
        match arguments.as_slice() {
            // Apart from the thread that waits here, as a session is driven.
            [] => tokio::spawn(measure()).await?,
            [SERVE, block, links] => serve(block.parse()?, links).await,
            [ECHO, address, links] => echo(address, links).await,
            _ => bail!("it takes no arguments"),
        }
    })
}

async fn measure() -> anyhow::Result<()> {
    println!("over the network (QUIC)");
    measure_links(NETWORK).await?;
    println!("  for comparison");
    println!(
        "    the same frame over TCP                  {:>6.1} us",
        us(way(TCP, NETWORK).await?)
    );
    println!("    over a plain UDP socket, two threads     {:>6.1} us", us(plain_way()?));
    println!("within the machine (a Unix socket)");
    measure_links(LOCAL).await
}

async fn measure_links(links: &str) -> anyhow::Result<()> {
    let one = Ring::open(1, links).await?.run().await?;
    let many = Ring::open(HOPS, links).await?.run().await?;
    let hop = us(many.round.saturating_sub(one.round)) / f64::from(HOPS - 1);
    let (encode, decode) = coding()?;
    let way = us(way(QUIC, links).await?);
    let engine = us(many.in_servers) / f64::from(HOPS);
    let (one, round) = (us(one.round), us(many.round));
    println!("  a step round a ring of 1 server {one:.0} us, of {HOPS} {round:.0} us");
    println!("  a hop {hop:.1} us, of which");
    println!("    encode                                   {encode:>6.1} us");
    println!(
        "    send, and wake the process that receives {way:>6.1} us (half a round trip of such frames)"
    );
    println!("    decode                                   {decode:>6.1} us");
    println!(
        "    from arrival to departure in a server    {engine:>6.1} us (what servers say of themselves)"
    );
    let rest = hop - encode - way - decode - engine;
    println!("    wake the server's own tasks              {rest:>6.1} us (the rest)");
    if let Some(Spent { processor_us, wakes }) = many.spent {
        println!(
            "  a server spends {processor_us:.1} us of processor time on a step, and wakes {wakes:.1} times"
        );
    }
    Ok(())
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A session through so many servers.
struct Ring {
    peers: Vec<Peer>,
    _client: Network,
    links: Vec<(LinkSender, LinkReceiver)>,
}

/// What the middle step took.
struct Measured {
    round: Duration,
    /// In all servers, from arrival to departure, by their own clocks.
    in_servers: Duration,
    /// Of one server and one step, in the mean.
    spent: Option<Spent>,
}

impl Ring {
    async fn open(hops: u32, links: &str) -> anyhow::Result<Self> {
        let start = |block: u32| Peer::start([SERVE, &block.to_string(), links]);
        let peers: Vec<Peer> = (0..hops).map(start).collect::<Result<_, _>>()?;
        let client = client(links).await?;
        let mut links = Vec::new();
        // From the last to the first: each finds the next one open.
        for (block, peer) in (0..hops).zip(&peers).rev() {
            let index = block as usize;
            let next = peers.get(index + 1).map_or(Destination::Client, |next| {
                let addresses = vec![next.address.to_string()];
                let session = SessionId::new(u128::from(block) + 1);
                Destination::Server(NextHop { peer: next.id, addresses, session })
            });
            let open = OpenSession {
                session: SessionId::new(u128::from(block)),
                model: MODEL,
                blocks: Span::new(block, block + 1)?,
                tokens_max: TOKENS_MAX,
                previous: index.checked_sub(1).map(|before| peers[before].id),
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
            };
            let (mut sender, mut receiver) = peer.dial(&client).await?.split();
            sender.send(ClientMessage::Open(open).encode()).await?;
            let answer = receiver.receive().await?.context("a server closed the link")?;
            let answer = ServerMessage::decode(answer)?;
            if !matches!(answer, ServerMessage::Opened { .. }) {
                bail!("a server refuses the session: {answer:?}");
            }
            links.push((sender, receiver));
        }
        links.reverse();
        Ok(Self { peers, _client: client, links })
    }

    async fn run(mut self) -> anyhow::Result<Measured> {
        let (mut rounds, mut in_servers) = (Vec::new(), Vec::new());
        let last_server = self.peers.last().map_or(0, |peer| peer.child.id());
        let mut before = None;
        for position in 0..STEPS_UNCOUNTED + STEPS {
            if position == STEPS_UNCOUNTED {
                before = Spent::so_far(last_server);
            }
            let began = Instant::now();
            self.links[0].0.send(ClientMessage::Step(step(position)?).encode()).await?;
            let (_, last) = self.links.last_mut().context("a ring has a hop")?;
            let answer = last.receive().await?.context("a server closed the link")?;
            let ServerMessage::Output(answer) = ServerMessage::decode(answer)? else {
                bail!("a server answers with something else than a result");
            };
            if position >= STEPS_UNCOUNTED {
                rounds.push(began.elapsed());
                in_servers.push(answer.trace.iter().map(|hop| hop.hop).sum());
            }
        }
        let spent = before.zip(Spent::so_far(last_server)).map(|(before, after)| Spent {
            processor_us: (after.processor_us - before.processor_us) / f64::from(STEPS),
            wakes: (after.wakes - before.wakes) / f64::from(STEPS),
        });
        Ok(Measured { round: middle(rounds), in_servers: middle(in_servers), spent })
    }
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A server whose engine gives back what it is given.
async fn serve(block: u32, links: &str) -> anyhow::Result<()> {
    let network = listen(QUIC, links).await?;
    let server = Server::new(ServerConfig {
        peer: network.peer_id(),
        model: MODEL,
        span: Span::new(block, block + 1)?,
        block_count: HOPS,
        vocabulary_size: None,
        hidden_size: HIDDEN_SIZE,
        head_size: 32,
        context_tokens: TOKENS_MAX,
        kv_tokens_max: TOKENS_MAX,
        cache: None,
        journal_bytes_max: 64 << 20,
        keeps_pages: true,
        adapters: None,
    });
    let events = Events::new();
    let completion = events.completion();
    let compute = Compute::start(Echo, move |done| completion.done(done));
    let (driver, _drained) = Driver::new(server, network, compute, events);
    tokio::select! {
        result = tokio::spawn(driver.run()) => Ok(result??),
        () = parent_ends() => Ok(()),
    }
}

/// An engine that gives back what it is given.
struct Echo;

impl Engine for Echo {
    fn run(&mut self, command: Command) -> Option<Computed> {
        let Command::Pass(batch) = command else {
            return None;
        };
        let results = batch.jobs.into_iter().map(|job| Ok(job.hidden)).collect();
        Some(Computed { job: batch.id, results, compute: Duration::ZERO })
    }
}

/// Sends frames back as they come.
async fn echo(address: &str, links: &str) -> anyhow::Result<()> {
    let network = listen(address, links).await?;
    let mut incoming = network.accept(LinkProtocol::Session)?;
    let work = async {
        while let Some((_, link)) = incoming.next().await {
            tokio::spawn(async move {
                let (mut sender, mut receiver) = link.split();
                while let Ok(Some(frame)) = receiver.receive().await {
                    if sender.send(frame).await.is_err() {
                        break;
                    }
                }
            });
        }
    };
    tokio::select! {
        () = work => {}
        () = parent_ends() => {}
    }
    Ok(())
}

async fn client(links: &str) -> anyhow::Result<Network> {
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    Ok(Network::start(NetworkConfig { local_links: links == LOCAL, ..config }).await?)
}

/// Listens, and tells the process that started this one where.
async fn listen(address: &str, links: &str) -> anyhow::Result<Network> {
    let (listen, local_links) = (vec![address.parse()?], links == LOCAL);
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let network = Network::start(NetworkConfig { listen, local_links, ..config }).await?;
    let address = network.listen_addresses().into_iter().next().context("it listens")?;
    println!("{} {address}", network.peer_id());
    Ok(network)
}

/// Waits until the process that started this one is gone, or has closed our stdin.
async fn parent_ends() {
    let read = || std::io::stdin().read_to_end(&mut Vec::new());
    let _closed = tokio::task::spawn_blocking(read).await;
}

fn step(position: u32) -> anyhow::Result<Step> {
    Ok(Step {
        session: SessionId::new(0),
        step: StepId(position.into()),
        position,
        hidden: Tensor::from_f32(vec![1, HIDDEN_SIZE], &[0.5; HIDDEN_SIZE as usize])?,
        trace: Vec::new(),
        replay: false,
        answer_rows: AnswerRows::Last,
        goes_on: false,
    })
}

/// Writing a push and reading it, with the trace of half the ring.
fn coding() -> anyhow::Result<(f64, f64)> {
    let timing = HopTiming {
        peer: Identity::ephemeral().peer_id(),
        span: Span::new(0, 1)?,
        queue: Duration::from_micros(3),
        compute: Duration::from_millis(7),
        hop: Duration::from_millis(8),
        link_round_trip: Some(Duration::from_micros(180)),
    };
    let push = PushMessage::Step(Step { trace: vec![timing; HOPS as usize / 2], ..step(0)? });
    let began = Instant::now();
    let mut frame = Frame::default();
    for _ in 0..FRAMES {
        frame = push.clone().encode();
    }
    let encode = us(began.elapsed()) / f64::from(FRAMES);
    let began = Instant::now();
    for _ in 0..FRAMES {
        PushMessage::decode(frame.clone())?;
    }
    Ok((encode, us(began.elapsed()) / f64::from(FRAMES)))
}

/// Half the round trip of the frame of a step to another process.
async fn way(address: &str, links: &str) -> anyhow::Result<Duration> {
    let peer = Peer::start([ECHO, address, links])?;
    let client = client(links).await?;
    let (mut sender, mut receiver) = peer.dial(&client).await?.split();
    let frame = ClientMessage::Step(step(0)?).encode();
    let mut times = Vec::new();
    for round in 0..STEPS_UNCOUNTED + STEPS {
        let began = Instant::now();
        sender.send(frame.clone()).await?;
        receiver.receive().await?.context("the link closed")?;
        if round >= STEPS_UNCOUNTED {
            times.push(began.elapsed() / 2);
        }
    }
    Ok(middle(times))
}

/// The same as one datagram between two threads that do nothing else: what the system takes.
fn plain_way() -> anyhow::Result<Duration> {
    use std::net::UdpSocket;
    let (here, there) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    here.connect(there.local_addr()?)?;
    there.connect(here.local_addr()?)?;
    // A datagram that is lost, which does not happen on loopback, ends the program.
    here.set_read_timeout(Some(Duration::from_secs(5)))?;
    there.set_read_timeout(Some(Duration::from_secs(5)))?;
    let bytes = vec![0; 4 * HIDDEN_SIZE as usize];
    let back = std::thread::spawn({
        let mut bytes = bytes.clone();
        move || {
            (0..STEPS).try_for_each(|_| {
                there.recv(&mut bytes)?;
                there.send(&bytes).map(drop)
            })
        }
    });
    let (mut times, mut answer) = (Vec::new(), bytes.clone());
    for _ in 0..STEPS {
        let began = Instant::now();
        here.send(&bytes)?;
        here.recv(&mut answer)?;
        times.push(began.elapsed() / 2);
    }
    back.join().map_err(|_| anyhow::anyhow!("the other thread panicked"))??;
    Ok(middle(times))
}
