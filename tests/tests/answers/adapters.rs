//! Sessions with adapters over a swarm: each has the answers of its own adapter, whoever else asks and
//! whichever server dies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use umbel_client::chain::remote::OpenChainError;
use umbel_client::{
    Chain, ClientModel, Generate, Generation, NamedAdapter, Opening, RemoteChain, SessionOptions,
    Speculate, Swarm, SwarmConfig,
};
use umbel_engine::train::{Adapter, AdapterConfig, TargetModule};
use umbel_protocol::Span;
use umbel_tests::adapted::{scattered, uncached};
use umbel_tests::swarm::{Server, checkpoint, report, serve, umbel};
use umbel_tests::training::join_all;
use umbel_tests::workload::{client_model, finish};

const ROOM: u32 = 120;

const TOKENS: u32 = 24;

/// How often a session is opened before it is wrong to begin otherwise than expected: what the last one
/// left may come to a server behind the opening of the next.
const TRIES: usize = 100;

fn request() -> Generate {
    let prompt = (0..37).map(|place| 3 + place * 13 % 200).collect();
    Generate { max_tokens: TOKENS, ignore_eos: true, prefill_chunk: 16, ..Generate::new(prompt) }
}

fn model() -> Arc<ClientModel> {
    client_model(&checkpoint("llama")).unwrap()
}

/// An adapter of all matrices, which changes what is answered.
fn adapter(model: &ClientModel, rank: usize, seed: u32) -> NamedAdapter {
    adapter_of(model, AdapterConfig { rank, ..AdapterConfig::default() }, seed)
}

/// The same with magnitudes of its rows, some of which turn them round.
fn decomposed(model: &ClientModel, rank: usize, seed: u32) -> NamedAdapter {
    let config = AdapterConfig { rank, weight_decomposed: true, ..AdapterConfig::default() };
    adapter_of(model, config, seed)
}

fn adapter_of(model: &ClientModel, config: AdapterConfig, seed: u32) -> NamedAdapter {
    let config = AdapterConfig {
        alpha: 4.0,
        rank_stabilized: true,
        dropout: 0.1,
        target_modules: TargetModule::ALL.to_vec(),
        ..config
    };
    let all = Span::new(0, model.config().block_count).unwrap();
    let mut adapter = Adapter::blank(config, model.config(), all).unwrap();
    let values = scattered(adapter.parameters().value_count(), seed, 0.3);
    adapter.write(0, &values).unwrap();
    NamedAdapter::new(&adapter.to_peft(), model.config()).unwrap()
}

async fn open(
    swarm: &Arc<Swarm>,
    model: &ClientModel,
    adapter: Option<&NamedAdapter>,
    options: SessionOptions,
) -> Result<RemoteChain, OpenChainError> {
    let prompt = &request().prompt;
    let opening = Opening { tokens_max: ROOM, prompt, options, adapter: adapter.cloned() };
    RemoteChain::open_with(Arc::clone(swarm), model, opening).await
}

async fn begin(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    adapter: Option<&NamedAdapter>,
) -> Generation {
    let chain = open(swarm, model, adapter, SessionOptions::default()).await.unwrap();
    request().start(Arc::clone(model), Chain::Remote(Box::new(chain))).unwrap()
}

fn start(blocks: &str, first: Option<&Server>, more: &[&str]) -> Server {
    let folder = checkpoint("llama");
    let mut arguments = vec![folder.as_str(), "--blocks", blocks];
    arguments.extend(more);
    arguments.extend(first.iter().flat_map(|first| ["--join", first.address()]));
    serve(&arguments)
}

/// Ends the server of the hop at `index`.
fn kill_hop(chain: &Chain, index: usize, servers: &mut Vec<Server>) {
    let peer = chain.route()[index].0.unwrap().to_string();
    let doomed = servers.iter().position(|server| server.address().ends_with(&peer)).unwrap();
    servers.remove(doomed).kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_with_other_adapters_at_once_answer_as_each_alone_and_without_a_cache() {
    let first = start("0..1", None, &[]);
    let others = [start("1..3", Some(&first), &[]), start("3..4", Some(&first), &[])];
    let model = model();
    let (small, large) = (adapter(&model, 3, 1), adapter(&model, 200, 2));
    let scaled = decomposed(&model, 5, 4);
    let wanted = [None, Some(&small), Some(&large), Some(&scaled)];
    let mut expected = Vec::new();
    for adapter in wanted {
        expected.push(uncached(&model, adapter, &request()).await.unwrap());
    }
    assert!(expected[0] != expected[1] && expected[1] != expected[2], "{expected:?}");
    assert!(!expected[..3].contains(&expected[3]), "{expected:?}");
    let swarm = join_all(&[&first, &others[0], &others[1]]).await.unwrap();
    // The third is sent in several parts, and two sessions wait for the same one.
    let mut asking = JoinSet::new();
    for which in [0, 1, 2, 3, 2, 1, 3, 0] {
        let (swarm, model) = (Arc::clone(&swarm), Arc::clone(&model));
        let adapter = wanted[which].cloned();
        asking.spawn(async move {
            (which, finish(begin(&swarm, &model, adapter.as_ref()).await).await.unwrap())
        });
    }
    for (which, answer) in asking.join_all().await {
        assert_eq!(answer, expected[which], "{which}");
    }
    [first].iter().chain(&others).for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_replaced_by_one_that_is_sent_the_adapter() {
    let first = start("0..1", None, &[]);
    let mut servers = vec![first];
    servers.push(start("1..3", Some(&servers[0]), &[]));
    servers.push(start("3..4", Some(&servers[0]), &[]));
    servers.push(start("1..3", Some(&servers[0]), &[]));
    let model = model();
    let (plain, scaled) = (adapter(&model, 8, 3), decomposed(&model, 8, 3));
    let known: Vec<_> = servers.iter().collect();
    let swarm = join_all(&known).await.unwrap();
    for (standby, adapter) in [(false, &plain), (true, &plain), (false, &scaled)] {
        let expected = uncached(&model, Some(adapter), &request()).await.unwrap();
        let options = SessionOptions { standby, ..SessionOptions::default() };
        let chain = open(&swarm, &model, Some(adapter), options).await.unwrap();
        let chain = Chain::Remote(Box::new(chain));
        let request = Generate { speculate: Speculate::Prompt, ..request() };
        let mut generation = request.start(Arc::clone(&model), chain).unwrap();
        for _ in 0..7 {
            generation.next().await.unwrap().unwrap();
        }
        kill_hop(generation.chain(), 1, &mut servers);
        assert_eq!(finish(generation).await.unwrap(), expected, "{standby}");
        let next = start("1..3", Some(&servers[0]), &[]);
        servers.push(next);
        let known: Vec<_> = servers.iter().collect();
        join_all(&known).await.unwrap();
    }
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_with_an_adapter_is_taken_over_with_the_same_one_alone() {
    let server = start("0..4", None, &[]);
    let model = model();
    let (one, another) = (adapter(&model, 4, 1), adapter(&model, 4, 2));
    let swarm = join_all(&[&server]).await.unwrap();
    finish(begin(&swarm, &model, Some(&one)).await).await.unwrap();
    finish(begin(&swarm, &model, None).await).await.unwrap();
    let held = |generation: &Generation| generation.chain().held().len();
    let other = begin(&swarm, &model, Some(&another)).await;
    assert_eq!(held(&other), 0, "neither another's nor the model's own");
    assert_eq!(
        finish(other).await.unwrap(),
        uncached(&model, Some(&another), &request()).await.unwrap()
    );
    for _ in 0..TRIES {
        let same = begin(&swarm, &model, Some(&one)).await;
        let tokens = held(&same);
        assert_eq!(
            finish(same).await.unwrap(),
            uncached(&model, Some(&one), &request()).await.unwrap()
        );
        if tokens == 32 {
            return server.assert_no_errors();
        }
    }
    panic!("nothing was taken over");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_draw_tokens_themselves_add_adapters_too() {
    let first = start("0..2", None, &[]);
    let second = start("2..4", Some(&first), &[]);
    let model = model();
    let adapter = adapter(&model, 4, 5);
    let swarm = join_all(&[&first, &second]).await.unwrap();
    let options = SessionOptions { thin: true, ..SessionOptions::default() };
    let chain = open(&swarm, &model, Some(&adapter), options).await.unwrap();
    let chain = Chain::Remote(Box::new(chain));
    let generation = request().start(Arc::clone(&model), chain).unwrap();
    assert_eq!(
        finish(generation).await.unwrap(),
        uncached(&model, Some(&adapter), &request()).await.unwrap()
    );
    [first, second].iter().for_each(|server| server.assert_no_errors());
}

/// One that is too large for a server goes to another that has room for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_for_which_no_server_has_room_is_refused_with_both_sizes() {
    let little = start("0..4", None, &["--memory-bytes", "64000000"]);
    let model = model();
    // 3.9 MB; a sixteenth of the server's memory is for all, and half of that for one.
    let large = adapter(&model, 250, 1);
    let join = vec![little.address().parse().unwrap()];
    let config = SwarmConfig { join, patience: Duration::from_secs(1), ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(config).await.unwrap());
    let refused = open(&swarm, &model, Some(&large), SessionOptions::default()).await;
    let Err(OpenChainError::Session(failure)) = refused else { panic!("it has room for that") };
    let text = failure.to_string();
    assert!(text.contains("takes 3904000 bytes, and may take "), "{text}");
    // It still answers.
    let small = adapter(&model, 4, 2);
    let expected = uncached(&model, Some(&small), &request()).await.unwrap();
    assert_eq!(finish(begin(&swarm, &model, Some(&small)).await).await.unwrap(), expected);
    let roomy = start("0..4", Some(&little), &[]);
    let swarm = join_all(&[&roomy, &little]).await.unwrap();
    let expected = uncached(&model, Some(&large), &request()).await.unwrap();
    assert_eq!(finish(begin(&swarm, &model, Some(&large)).await).await.unwrap(), expected);
    [little, roomy].iter().for_each(|server| server.assert_no_errors());
}

#[test]
fn an_adapter_for_another_model_is_refused_before_a_server_is_asked() {
    let server = start("0..4", None, &[]);
    let llama = checkpoint("llama");
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("adapter");
    let other = client_model(&checkpoint("llama-tied-mha")).unwrap();
    adapter(&other, 2, 1).adapter().to_peft().write(&folder).unwrap();
    let ask = |adapter: &PathBuf, command: &[&str]| {
        let adapter = adapter.to_str().unwrap();
        let fixed = ["--model", &llama, "--join", server.address(), "--adapter", adapter];
        umbel(&[command, &fixed].concat())
    };
    let generate = ["generate", "--prompt-ids", "1,2,3", "--max-tokens", "2", "--json"];
    for command in [&generate[..], &["chat"]] {
        let refused = ask(&folder, command);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("--adapter"), "{}", refused.stderr);
    }
    let sound = report(&ask(&PathBuf::from(&llama).join("lora"), &generate));
    assert_eq!(sound["token_ids"].as_array().unwrap().len(), 2);
    server.assert_no_errors();
}
