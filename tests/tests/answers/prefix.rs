//! A session that begins with what servers have kept of an earlier one of its client answers as one
//! that shares nothing, whatever happens to the servers; and nobody else's does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use umbel_client::{
    Chain, ClientModel, Device, Generate, Generation, LocalModel, Opening, RemoteChain, Sampling,
    SessionOptions, Speculate, Swarm,
};
use umbel_protocol::DType;
use umbel_tests::swarm::{Server, checkpoint, serve};
use umbel_tests::workload::{client_model, finish, join};

const ROOM: u32 = 200;

const TOKENS: u32 = 40;

/// How often a session is opened before it is wrong to begin otherwise than expected.
const TRIES: usize = 100;

/// Pages have 16 tokens, and the last token of a prompt is always computed.
const PROMPT_TOKENS: u32 = 70;
const KEPT_TOKENS: usize = 64;

/// Text that says everything twice, so that there is something to guess.
fn prompt() -> Vec<u32> {
    (0..PROMPT_TOKENS).map(|token| 3 + token % 35 * 7).collect()
}

fn requests() -> Vec<Generate> {
    let sampled = Sampling { top_p: 0.9, ..Sampling::with_temperature(0.8, 5) };
    let guessing = Speculate::Prompt;
    [
        (Sampling::greedy(), Speculate::Off),
        (Sampling::greedy(), guessing.clone()),
        (sampled, guessing),
    ]
    .map(|(sampling, speculate)| Generate {
        sampling,
        speculate,
        max_tokens: TOKENS,
        ignore_eos: true,
        prefill_chunk: 32,
        ..Generate::new(prompt())
    })
    .into()
}

/// What one process answers.
async fn alone(model: &Arc<ClientModel>, request: &Generate, cache: DType) -> Vec<u32> {
    let local = LocalModel::load(model.shard(), 512, Device::shared()).unwrap();
    let chain = Chain::Local(Arc::new(local).open_as(cache, ROOM).unwrap());
    let mut generation = request.clone().start(Arc::clone(model), chain).unwrap();
    generation.finish().await.unwrap().to_vec()
}

async fn open(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    prompt: &[u32],
    options: SessionOptions,
) -> Chain {
    let opening = Opening { tokens_max: ROOM, prompt, options, adapter: None };
    let chain = RemoteChain::open_with(Arc::clone(swarm), model, opening).await.unwrap();
    Chain::Remote(Box::new(chain))
}

/// Opens sessions until one begins with so many tokens: what the last one left may come to a server
/// behind the opening of the next, on another stream.
async fn open_holding(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    prompt: &[u32],
    (options, tokens): (SessionOptions, usize),
) -> Chain {
    let mut held = 0;
    for _ in 0..TRIES {
        let chain = open(swarm, model, prompt, options).await;
        held = chain.held().len();
        if held == tokens {
            return chain;
        }
        chain.close().await;
    }
    panic!("servers hold {held} of {tokens} tokens");
}

async fn begin_holding(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    request: &Generate,
    tokens: usize,
) -> Generation {
    let wanted = (SessionOptions::default(), tokens);
    let chain = open_holding(swarm, model, &request.prompt, wanted).await;
    request.clone().start(Arc::clone(model), chain).unwrap()
}

async fn begin(swarm: &Arc<Swarm>, model: &Arc<ClientModel>, request: &Generate) -> Generation {
    let chain = open(swarm, model, &request.prompt, SessionOptions::default()).await;
    request.clone().start(Arc::clone(model), chain).unwrap()
}

/// Servers of two halves.
fn halves(folder: &str, extra: &[&str]) -> [Server; 2] {
    let first = serve(&[&[folder, "--blocks", "0..2"], extra].concat());
    let second = [folder, "--blocks", "2..4", "--join", first.address()];
    let second = serve(&[&second[..], extra].concat());
    [first, second]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_computes_only_what_is_new_and_answers_the_same() {
    let folder = checkpoint("llama");
    let servers = halves(&folder, &[]);
    let model = client_model(&folder).unwrap();
    let swarm = join(&servers[1]).await.unwrap();
    for (number, request) in requests().into_iter().enumerate() {
        let expected = alone(&model, &request, DType::F32).await;
        let held = if number == 0 { 0 } else { KEPT_TOKENS };
        let generation = begin_holding(&swarm, &model, &request, held).await;
        assert_eq!(finish(generation).await.unwrap(), expected, "request {number}");

        // The next question of a conversation: the prompt, the answer, and more.
        let further = [&expected[..], &[9, 8, 7]].concat();
        let request = Generate { prompt: further, max_tokens: 10, ..request };
        let expected = alone(&model, &request, DType::F32).await;
        // The last token of an answer is in no cache, and the same was asked before with guesses.
        let held = if number == 1 { 112 } else { (PROMPT_TOKENS + TOKENS - 1) as usize / 16 * 16 };
        let generation = begin_holding(&swarm, &model, &request, held).await;
        assert_eq!(finish(generation).await.unwrap(), expected, "request {number}");
    }
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_shown_what_is_kept_and_who_shares_nothing_leaves_nothing() {
    let folder = checkpoint("llama");
    let servers = halves(&folder, &[]);
    let model = client_model(&folder).unwrap();
    let request = &requests()[0];
    let [owner, stranger] = [join(&servers[0]).await.unwrap(), join(&servers[0]).await.unwrap()];
    let apart = SessionOptions { share: false, ..SessionOptions::default() };
    let held = |chain: &Chain| chain.held().len();
    let chain = open(&owner, &model, &request.prompt, apart).await;
    finish(request.clone().start(Arc::clone(&model), chain).unwrap()).await.unwrap();
    let generation = begin(&owner, &model, request).await;
    assert_eq!(held(generation.chain()), 0, "nothing was left");
    finish(generation).await.unwrap();
    let options = SessionOptions::default();
    open_holding(&owner, &model, &request.prompt, (options, KEPT_TOKENS)).await;
    assert_eq!(held(&open(&stranger, &model, &request.prompt, options).await), 0);
    assert_eq!(held(&open(&owner, &model, &request.prompt, apart).await), 0);
    let narrow = SessionOptions { cache: DType::BF16, ..options };
    assert_eq!(held(&open(&owner, &model, &request.prompt, narrow).await), 0);
    let rounded = SessionOptions { wire: DType::BF16, ..options };
    assert_eq!(held(&open(&owner, &model, &request.prompt, rounded).await), 0);

    let servers = halves(&folder, &["--no-share"]);
    let swarm = join(&servers[0]).await.unwrap();
    for _ in 0..2 {
        let generation = begin(&swarm, &model, request).await;
        assert_eq!(held(generation.chain()), 0);
        finish(generation).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn narrow_caches_are_shared_by_sessions_that_keep_them_alike() {
    let folder = checkpoint("llama");
    let servers = halves(&folder, &[]);
    let model = client_model(&folder).unwrap();
    let swarm = join(&servers[0]).await.unwrap();
    let request = requests().pop().unwrap();
    for cache in [DType::BF16, DType::Q8] {
        let expected = alone(&model, &request, cache).await;
        for held in [0, KEPT_TOKENS] {
            let options = SessionOptions { cache, ..SessionOptions::default() };
            let chain = open_holding(&swarm, &model, &request.prompt, (options, held)).await;
            let generation = request.clone().start(Arc::clone(&model), chain).unwrap();
            assert_eq!(finish(generation).await.unwrap(), expected, "{cache}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_over_links_that_round_share_along_the_same_route() {
    let folder = checkpoint("llama");
    let servers = halves(&folder, &[]);
    let model = client_model(&folder).unwrap();
    let swarm = join(&servers[0]).await.unwrap();
    let request = &requests()[0];
    let mut answers = Vec::new();
    for held in [0, KEPT_TOKENS] {
        let options = SessionOptions { wire: DType::Q8, ..SessionOptions::default() };
        let chain = open_holding(&swarm, &model, &request.prompt, (options, held)).await;
        answers
            .push(finish(request.clone().start(Arc::clone(&model), chain).unwrap()).await.unwrap());
    }
    assert_eq!(answers[0], answers[1]);
}

/// Servers of two halves, and a session along them that holds its prompt from an earlier one.
struct Warm {
    folder: String,
    model: Arc<ClientModel>,
    swarm: Arc<Swarm>,
    /// One that serves nothing that the session uses, so that the swarm can be joined by it.
    anchor: Server,
    servers: Vec<Server>,
}

impl Warm {
    async fn start(request: &Generate) -> (Self, Generation) {
        let folder = checkpoint("llama");
        let anchor = serve(&[&folder, "--blocks", "3..4"]);
        let (model, swarm) = (client_model(&folder).unwrap(), join(&anchor).await.unwrap());
        let mut warm = Self { folder, model, swarm, anchor, servers: Vec::new() };
        warm.add_servers();
        // A client that has never been there chooses by guesswork, and the next time by what it knows.
        let unshared = SessionOptions { share: false, ..SessionOptions::default() };
        open(&warm.swarm, &warm.model, &[], unshared).await.close().await;
        let first = begin(&warm.swarm, &warm.model, request).await;
        let route = first.chain().route();
        finish(first).await.unwrap();
        let generation = begin_holding(&warm.swarm, &warm.model, request, KEPT_TOKENS).await;
        assert_eq!(generation.chain().route(), route);
        // Those that come now hold nothing.
        warm.add_servers();
        (warm, generation)
    }

    fn add_servers(&mut self) {
        for blocks in ["0..2", "2..4"] {
            let address = self.anchor.address();
            self.servers.push(serve(&[&self.folder, "--blocks", blocks, "--join", address]));
        }
    }

    /// Takes out the server of a hop.
    fn remove(&mut self, chain: &Chain, hop: usize) -> Server {
        let (peer, _) = chain.route()[hop];
        let peer = peer.unwrap().to_string();
        let of_hop = |server: &Server| server.address().ends_with(&peer);
        self.servers.remove(self.servers.iter().position(of_hop).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_held_the_prefix_is_killed_and_no_token_differs() {
    for (number, request) in requests().into_iter().enumerate() {
        for hop in 0..2 {
            let (mut warm, mut generation) = Warm::start(&request).await;
            let expected = alone(&warm.model, &request, DType::F32).await;
            for _ in 0..9 * number {
                generation.next().await.unwrap().unwrap();
            }
            warm.remove(generation.chain(), hop).kill();
            assert_eq!(finish(generation).await.unwrap(), expected, "request {number}, hop {hop}");
            // What the replacement holds by now is taken over as well.
            let generation = begin(&warm.swarm, &warm.model, &request).await;
            assert_eq!(finish(generation).await.unwrap(), expected, "request {number}, again");
            warm.servers.iter().for_each(|server| server.assert_no_errors());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_held_the_prefix_leaves_in_peace_and_no_token_differs() {
    let request = Generate { max_tokens: 100, ..requests()[0].clone() };
    for hop in 0..2 {
        let (mut warm, mut generation) = Warm::start(&request).await;
        let expected = alone(&warm.model, &request, DType::F32).await;
        for _ in 0..5 {
            generation.next().await.unwrap().unwrap();
        }
        let leaving = warm.remove(generation.chain(), hop);
        let mut gone = tokio::task::spawn_blocking(move || leaving.terminate());
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        // The session is open until the server has gone: it does not wait for the end of it.
        let output = loop {
            tokio::select! {
                output = &mut gone => break output.unwrap(),
                _ = pace.tick() => {
                    if generation.tokens().len() + 10 < expected.len() {
                        generation.next().await.unwrap().unwrap();
                    }
                }
            }
        };
        assert!(output.status.success(), "{}", output.stderr);
        let in_time = !output.stderr.contains("sessions were still open");
        assert!(in_time, "{}", output.stderr);
        assert_eq!(finish(generation).await.unwrap(), expected, "hop {hop}");
    }
}
