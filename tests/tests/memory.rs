//! What a server takes of a machine's memory: its weights once, the keys and values that are in use,
//! and little else.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures are shown where they are asked for")]

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbel_client::{Chain, ClientModel, Entering, Opening, RemoteChain, Swarm, SwarmConfig};
use umbel_engine::{HiddenStates, PAGE_TOKENS};
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{ModelConfig, WeightType};
use umbel_tests::swarm::{Server, serve};
use umbel_tests::workload::client_model;

/// What a server may take besides weights, keys and values.
const OTHER_BYTES_MAX: u64 = 150 << 20;

/// By how much more than its pages sessions may let a server grow: buffers of their links, and what
/// an allocator cannot give back.
const IDLE_BYTES_MAX: u64 = 16 << 20;

/// How long freed memory may take to go back, on a machine that runs many tests at once.
const GIVEN_BACK_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a server's memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

const SESSIONS: usize = 20;

/// Room that each session asks for.
const SESSION_TOKENS: u32 = 8_000;

/// Room of all sessions.
const KV_TOKENS: u32 = 200_000;

/// What a session that idles has read.
const IDLE_TOKENS: usize = 40;

/// What one more reads.
const LONG_TOKENS: usize = 2_000;

/// Blocks as wide as those of a model of a billion parameters, and a small vocabulary, so that the
/// client's ends do not matter.
fn config(block_count: u32) -> ModelConfig {
    ModelConfig {
        hidden_size: 2048,
        intermediate_size: 5632,
        head_count: 32,
        kv_head_count: 8,
        head_size: 64,
        vocabulary_size: 256,
        context_tokens: 8_192,
        ..ModelConfig::llama(block_count)
    }
}

/// So many tokens, the same ones each time.
fn text(tokens: usize) -> Vec<u32> {
    (0..tokens).map(|token| u32::try_from(token % 251).unwrap()).collect()
}

/// A server of a model of its own.
struct Watched {
    server: Server,
    swarm: Arc<Swarm>,
    model: Arc<ClientModel>,
    /// Of all blocks, as they are in the file.
    weights: u64,
}

impl Watched {
    async fn start(folder: &Path, kind: WeightType, block_count: u32) -> Self {
        let path = folder.join(format!("{kind}.gguf"));
        let file = GgufWriter::random_model(&config(block_count), kind, 1).unwrap();
        file.write(&mut BufWriter::new(File::create(&path).unwrap())).unwrap();
        let name = path.to_str().unwrap();
        let blocks = format!("0..{block_count}");
        let kv_tokens = KV_TOKENS.to_string();
        let server = serve(&[name, "--blocks", &blocks, "--kv-tokens", &kv_tokens]);
        let model = client_model(name).unwrap();
        let join = vec![server.address().parse().unwrap()];
        let swarm = Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await.unwrap();
        let weights = model.shard().manifest().blocks_bytes().iter().sum();
        Self { server, swarm: Arc::new(swarm), model, weights }
    }

    /// A session that has read so many tokens.
    async fn read(&self, tokens: usize) -> Chain {
        let swarm = Arc::clone(&self.swarm);
        let chain = RemoteChain::open(swarm, &self.model, SESSION_TOKENS).await.unwrap();
        let mut chain = Chain::Remote(Box::new(chain));
        let mut position = 0;
        for ids in text(tokens).chunks(512) {
            let entering: HiddenStates = self.model.ends().embed(ids).unwrap();
            let _leaving = chain.step(position, entering).await.unwrap();
            position += u32::try_from(ids.len()).unwrap();
        }
        chain
    }

    /// A session for a prompt of so many tokens, which is told token by token; how many the server
    /// held already.
    async fn read_known(&self, tokens: usize) -> (Chain, usize) {
        let ids = text(tokens);
        let opening = Opening { tokens_max: SESSION_TOKENS, prompt: &ids, ..Opening::default() };
        let chain = RemoteChain::open_with(Arc::clone(&self.swarm), &self.model, opening);
        let mut chain = Chain::Remote(Box::new(chain.await.unwrap()));
        let held = chain.held().len();
        let mut position = u32::try_from(held).unwrap();
        for ids in ids[held..].chunks(512) {
            let hidden = self.model.ends().embed(ids).unwrap();
            let entering = Entering { hidden, ids: ids.to_vec() };
            let _leaving = chain.step(position, entering).await.unwrap();
            position += u32::try_from(ids.len()).unwrap();
        }
        (chain, held)
    }

    fn resident(&self) -> u64 {
        self.server.resident_bytes().unwrap()
    }

    /// Of the pages that a session of so many tokens fills.
    fn pages(&self, tokens: usize) -> u64 {
        let config = self.model.config();
        let tokens = tokens.next_multiple_of(PAGE_TOKENS) as u64;
        config.kv_token_bytes_per_block() * u64::from(config.block_count) * tokens
    }

    /// Fails if the server holds more than it may beside so many bytes of keys and values, and goes
    /// on doing so: what was freed goes back to the system some time later.
    async fn check(&self, when: &str, kv: u64, other_max: u64) -> u64 {
        let allowed = self.weights + kv + other_max;
        let deadline = Instant::now() + GIVEN_BACK_TIMEOUT;
        // Nobody says so, and nothing else tells.
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut resident = self.resident();
        while resident > allowed && Instant::now() < deadline {
            looks.tick().await;
            resident = self.resident();
        }
        let mb = |bytes: u64| bytes >> 20;
        println!(
            "{when}: {} MB, of which weights {} MB, keys and values {} MB",
            mb(resident),
            mb(self.weights),
            mb(kv)
        );
        assert!(resident <= allowed, "{when}: {} MB too much", mb(resident - allowed));
        resident
    }
}

async fn holds_weights_once_and_pages_in_use(kind: WeightType, block_count: u32) {
    let folder = tempfile::tempdir().unwrap();
    let watched = Watched::start(folder.path(), kind, block_count).await;
    // Were weights held twice, the file's pages beside the packed ones, this test could see it.
    assert!(watched.weights > OTHER_BYTES_MAX, "{} bytes of weights", watched.weights);
    let other = OTHER_BYTES_MAX;
    watched.check("at first", 0, other).await;

    let mut idle = vec![watched.read(IDLE_TOKENS).await];
    let before = watched.check("one session", watched.pages(IDLE_TOKENS), other).await;
    while idle.len() < SESSIONS {
        idle.push(watched.read(IDLE_TOKENS).await);
    }
    let used = watched.pages(IDLE_TOKENS) * SESSIONS as u64;
    let other_before = before - watched.weights;
    watched.check("idle sessions", used, other_before + IDLE_BYTES_MAX).await;

    let long = watched.read(LONG_TOKENS).await;
    watched.check("a long session", used + watched.pages(LONG_TOKENS), other).await;
    long.close().await;
    for chain in idle {
        chain.close().await;
    }
    // Neither the buffers of a long prompt nor the pages of sessions that have ended stay.
    watched.check("at last", 0, other_before + IDLE_BYTES_MAX).await;
    watched.server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_quantized_weights_holds_them_once_and_the_pages_in_use() {
    holds_weights_once_and_pages_in_use(WeightType::Q8_0, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_bfloat16_holds_weights_once_and_the_pages_in_use() {
    holds_weights_once_and_pages_in_use(WeightType::BF16, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_prompt_takes_its_memory_once_and_goes_when_the_room_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let watched = Watched::start(folder.path(), WeightType::Q8_0, 5).await;
    let first = watched.check("at first", 0, OTHER_BYTES_MAX).await;
    let other = first - watched.weights + IDLE_BYTES_MAX;
    let (chain, held) = watched.read_known(LONG_TOKENS).await;
    assert_eq!(held, 0);
    chain.close().await;
    let kept = watched.pages(LONG_TOKENS);
    // Twice as much, or none, could not be told from it otherwise.
    assert!(kept > 2 * IDLE_BYTES_MAX, "{kept} bytes of pages");
    watched.check("a prompt was read", kept, other).await;

    let mut chains = Vec::new();
    for _ in 0..4 {
        let (chain, held) = watched.read_known(LONG_TOKENS).await;
        assert_eq!(held, (LONG_TOKENS - 1) / PAGE_TOKENS * PAGE_TOKENS);
        chains.push(chain);
    }
    watched.check("four more have read it", kept + 4 * watched.pages(PAGE_TOKENS), other).await;
    for chain in chains {
        chain.close().await;
    }

    // All the room is reserved now, and what is kept lies in no session's.
    let mut wanted = Vec::new();
    for _ in 0..KV_TOKENS / SESSION_TOKENS {
        wanted.push(watched.read(1).await);
    }
    let used = watched.pages(1) * wanted.len() as u64;
    watched.check("others want the room", used, other).await;
    wanted.pop().unwrap().close().await;
    let (_chain, held) = watched.read_known(IDLE_TOKENS).await;
    assert_eq!(held, 0, "it is gone");
    watched.server.assert_no_errors();
}
