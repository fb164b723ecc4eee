//! Adapters that are published, and fetched by the name of their content from whoever has them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use umbel_client::Swarm;
use umbel_client::adapter::fetch::{FetchAdapterError, ProviderError, cached, cached_at, fetch};
use umbel_client::adapter::publish::{Publication, PublishSettings};
use umbel_engine::train::PeftFiles;
use umbel_net::{Identity, LinkProtocol, Network, NetworkConfig, Role};
use umbel_protocol::AdapterId;
use umbel_protocol::published::{AdapterAnswer, AdapterRequest};
use umbel_shard::ModelConfig;
use umbel_tests::gateway::Gateway;
use umbel_tests::process::{UmbelProcess, run_umbel};
use umbel_tests::swarm::{Server, checkpoint, report, serve};
use umbel_tests::training::join;
use umbel_tests::workload::client_model;

const LISTEN: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// How often the hash table is asked before it is wrong that it does not know somebody.
const TRIES: usize = 30;

/// How long it may take at most until it does, on a machine that runs many tests at once.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(60);

fn server() -> Server {
    serve(&[&checkpoint("llama"), "--blocks", "0..4"])
}

fn model() -> ModelConfig {
    client_model(&checkpoint("llama")).unwrap().config().clone()
}

fn files() -> PeftFiles {
    PeftFiles::read(&Path::new(&checkpoint("llama")).join("lora"), &model()).unwrap()
}

async fn publish(server: &Server, files: PeftFiles) -> Publication {
    let (listen, join) = (vec![LISTEN.parse().unwrap()], vec![server.address().parse().unwrap()]);
    Publication::start(files, PublishSettings { listen, join, swarm_key: None }).await.unwrap()
}

/// A provider that answers as it likes; how often it was asked.
async fn provider(
    server: &Server,
    id: AdapterId,
    answer: impl Fn(u64) -> AdapterAnswer + Send + 'static,
) -> (Network, Arc<AtomicUsize>) {
    let network = Network::start(NetworkConfig {
        listen: vec![LISTEN.parse().unwrap()],
        ..NetworkConfig::new(Identity::ephemeral(), Role::Server)
    });
    let network = network.await.unwrap();
    let mut incoming = network.accept(LinkProtocol::Adapter).unwrap();
    network.join(&[server.address().parse().unwrap()]).await.unwrap();
    network.provide(*id.as_bytes()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some((_, link)) = incoming.next().await {
            let (mut sender, mut receiver) = link.split();
            while let Ok(Some(frame)) = receiver.receive().await {
                count.fetch_add(1, Ordering::Relaxed);
                let request = AdapterRequest::decode(frame).unwrap();
                let AdapterRequest::Part { offset, .. } = request else { panic!("{request:?}") };
                if sender.send(answer(offset).encode()).await.is_err() {
                    break;
                }
            }
        }
    });
    (network, asked)
}

/// What comes of it once somebody is known to provide it.
async fn fetch_known(
    swarm: &Swarm,
    cache: &Path,
    id: AdapterId,
) -> Result<PeftFiles, FetchAdapterError> {
    for _ in 0..TRIES {
        match fetch(swarm, cache, id, &model()).await {
            Err(FetchAdapterError::NoProvider { .. }) => {}
            result => return result,
        }
    }
    panic!("the hash table knows of nobody");
}

/// The files, once the hash table knows of somebody honest who provides them.
async fn fetch_once(swarm: &Swarm, cache: &Path, id: AdapterId) -> PeftFiles {
    let begun = Instant::now();
    loop {
        match fetch(swarm, cache, id, &model()).await {
            Ok(files) => return files,
            Err(error) => assert!(begun.elapsed() < KNOWN_TIMEOUT, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_publishes_another_fetches_once() {
    let server = server();
    let publication = publish(&server, files()).await;
    let id = files().id();
    assert_eq!(publication.id(), id);
    let cache = tempfile::tempdir().unwrap();
    let swarm = join(&server).await.unwrap();
    assert!(fetch_known(&swarm, cache.path(), id).await.unwrap() == files());
    publication.end().await;
    // Nobody has it any more but this side's cache.
    assert!(fetch(&swarm, cache.path(), id, &model()).await.unwrap() == files());
    // What lies there is not taken at its word.
    let weights = cached_at(cache.path(), id).join("adapter_model.safetensors");
    let mut changed = std::fs::read(&weights).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, changed).unwrap();
    assert!(cached(cache.path(), id, &model()).is_none());
    let other = AdapterId::from_bytes([7; 32]);
    let nobody = fetch(&swarm, cache.path(), other, &model()).await.unwrap_err();
    assert!(matches!(nobody, FetchAdapterError::NoProvider { .. }), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_thrown_away_and_the_next_provider_is_asked() {
    let server = server();
    let id = files().id();
    let liar = |_| {
        let PeftFiles { config, mut weights } = files();
        *weights.last_mut().unwrap() ^= 1;
        let (config_bytes, weights_bytes) = (config.len() as u64, weights.len() as u64);
        let bytes = [config, weights].concat().into();
        AdapterAnswer::Part { config_bytes, weights_bytes, bytes }
    };
    let cache = tempfile::tempdir().unwrap();
    let swarm = join(&server).await.unwrap();
    let (_one, asked) = provider(&server, id, liar).await;
    let refused = fetch_known(&swarm, cache.path(), id).await.unwrap_err();
    let FetchAdapterError::Providers { source, .. } = &refused else { panic!("{refused}") };
    assert!(matches!(**source, ProviderError::OtherContent), "{source}");
    assert!(cached(cache.path(), id, &model()).is_none(), "nothing of it is kept");
    let publication = publish(&server, files()).await;
    let fetched = fetch_once(&swarm, cache.path(), id).await;
    assert!(fetched == files());
    assert!(asked.load(Ordering::Relaxed) > 0);
    publication.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_lie_of_sizes_cost_little() {
    let server = server();
    let swarm = join(&server).await.unwrap();
    let cache = tempfile::tempdir().unwrap();
    let config = files().config;
    let part = |config_bytes, weights_bytes, bytes: Vec<u8>| AdapterAnswer::Part {
        config_bytes,
        weights_bytes,
        bytes: bytes.into(),
    };
    let length = config.len() as u64;
    let mut padded = config.clone();
    padded.resize(1 << 20, 0);
    let answers = [
        // Weights as no adapter of this model has them.
        (part(length, 1 << 40, padded), "TooLarge"),
        (part(1 << 30, 5, vec![0; 1 << 20]), "TooLarge"),
        // More than was said, and less than a part.
        (part(length, 5, [config.clone(), vec![0; 50]].concat()), "Mismatch"),
        (part(length, 5_000, config.clone()), "Mismatch"),
        (part(length, 5_000, Vec::new()), "Mismatch"),
        (AdapterAnswer::Unknown, "Unknown"),
    ];
    // They stay until the end: whoever is asked after one that is gone waits a while for it.
    let mut providers = Vec::new();
    for (number, (answer, expected)) in (1..).zip(answers) {
        let id = AdapterId::from_bytes([number; 32]);
        let (provider, asked) = provider(&server, id, move |_| answer.clone()).await;
        let refused = fetch_known(&swarm, cache.path(), id).await.unwrap_err();
        let FetchAdapterError::Providers { source, .. } = &refused else { panic!("{refused}") };
        let found = format!("{source:?}");
        assert!(found.starts_with(expected), "{number}: {found}");
        assert!(asked.load(Ordering::Relaxed) <= 2, "{number}: it is not asked for more");
        providers.push(provider);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_are_gone_hold_up_nobody() {
    let server = server();
    let id = files().id();
    let cache = tempfile::tempdir().unwrap();
    let swarm = join(&server).await.unwrap();
    for _ in 0..2 {
        let (gone, _) = provider(&server, id, |_| AdapterAnswer::Unknown).await;
        fetch_known(&swarm, cache.path(), id).await.unwrap_err();
        gone.shutdown().await;
    }
    let publication = publish(&server, files()).await;
    assert!(fetch_once(&swarm, cache.path(), id).await == files());
    publication.end().await;
}

#[test]
fn a_published_adapter_is_asked_by_its_id() {
    let server = server();
    let (llama, scratch) = (checkpoint("llama"), tempfile::tempdir().unwrap());
    let cache = scratch.path().to_str().unwrap();
    let folder = format!("{llama}/lora");
    let arguments = ["adapter", "publish", &folder, "--join", server.address(), "--listen", LISTEN];
    let publisher = UmbelProcess::start(&arguments.map(str::to_owned)).unwrap();
    let ask = |adapter: &str, way: &[&str]| {
        let fixed = ["generate", "--model", &llama, "--prompt-ids", "5,6,7", "--max-tokens", "8"];
        let more = ["--json", "--cache-dir", cache, "--adapter", adapter];
        let all: Vec<_> = fixed.iter().chain(&more).chain(way).map(|&one| one.to_owned()).collect();
        run_umbel(&all).unwrap()
    };
    let swarm = ["--join", server.address()];
    let id = files().id().to_string();
    let unknown = ask(&id, &["--local"]);
    assert!(unknown.stderr.contains("was not fetched before"), "{}", unknown.stderr);
    let expected = report(&ask(&folder, &swarm))["token_ids"].clone();
    assert_eq!(report(&ask(&id, &swarm))["token_ids"], expected);
    assert!(publisher.terminate().unwrap().status.success());
    assert_eq!(report(&ask(&id, &["--local"]))["token_ids"], expected);
    let nobody = ask(&"ab".repeat(32), &swarm);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains("nobody in the swarm provides"), "{}", nobody.stderr);
    server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_finds_nobody_can_be_interrupted() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Identity::ephemeral().peer_id();
    let join = format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", silent.local_addr().unwrap().port());
    let folder = format!("{}/lora", checkpoint("llama"));
    let publish = ["adapter", "publish", &folder, "--join", &join, "--listen", LISTEN];
    let mut publisher = UmbelProcess::begin(&publish).unwrap();
    let (_dialled, _) = timeout(KNOWN_TIMEOUT, silent.accept()).await.unwrap().unwrap();
    publisher.interrupt();
    let ended = publisher.wait().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, "", "nothing was published");
}

/// Asks a gateway for a few tokens of a model: the status and what comes.
fn complete(url: &str, model: &str) -> (u16, Value) {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    // The model has no tokenizer, so that its answers differ in what their tokens are worth alone.
    let mut body = json!({ "model": model, "prompt": [5, 6, 7], "max_tokens": 8 });
    body["temperature"] = json!(0);
    body["logprobs"] = json!(0);
    let response = agent.post(format!("{url}/v1/completions")).send(body.to_string()).unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().read_to_string().unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

#[test]
fn a_published_adapter_is_a_model_of_a_gateway() {
    let server = server();
    let (llama, scratch) = (checkpoint("llama"), tempfile::tempdir().unwrap());
    let folder = format!("{llama}/lora");
    let publish = ["adapter", "publish", &folder, "--join", server.address(), "--listen", LISTEN];
    let publisher = UmbelProcess::start(&publish.map(str::to_owned)).unwrap();
    let cache = ["--cache-dir", scratch.path().to_str().unwrap()];
    let way = ["--model", &llama, "--join", server.address()];
    let gateway = Gateway::start(&[&way[..], &cache].concat());
    let (url, models) = (gateway.url(""), gateway.get("/v1/models").json);
    let plain = models["data"][0]["id"].as_str().unwrap().to_owned();
    // Who asks for what nobody has holds up none who asks for what is there.
    let nobody = format!("{plain}@{}", "ab".repeat(32));
    let (unknown, without) = std::thread::scope(|scope| {
        let unknown = scope.spawn(|| complete(&url, &nobody));
        let without = complete(&url, &plain).1["choices"].clone();
        (unknown.join().unwrap(), without)
    });
    assert_eq!((unknown.0, &unknown.1["error"]["code"]), (404, &json!("model_not_found")));
    let message = unknown.1["error"]["message"].as_str().unwrap();
    assert!(message.contains("nobody in the swarm provides the adapter abab"), "{message}");
    let named = format!("{plain}@{}", files().id());
    // At once, so that some wait for what another fetches.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| complete(&url, &named))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.0, &answer.1["model"]), (200, &json!(named)), "{}", answer.1);
        assert_eq!(answer.1["choices"], answers[0].1["choices"]);
    }
    assert!(answers[0].1["choices"][0]["logprobs"].is_object(), "{}", answers[0].1);
    assert_ne!(answers[0].1["choices"], without, "it is another model");
    assert_eq!(gateway.get(&format!("/v1/models/{named}")).json["id"], json!(named));
    for wrong in [format!("{plain}@12"), format!("other@{}", files().id()), format!("{plain}@")] {
        assert_eq!(complete(&url, &wrong).0, 404, "{wrong}");
    }
    assert!(publisher.terminate().unwrap().status.success());
    assert_eq!(complete(&url, &named).1["choices"], answers[0].1["choices"], "it is kept");
    // One that comes later has it from the cache, in a swarm or in none.
    let local = Gateway::start(&[&["--model", &llama, "--local"][..], &cache].concat());
    assert_eq!(complete(&local.url(""), &named).1["choices"], answers[0].1["choices"]);
    let unknown = complete(&local.url(""), &nobody);
    assert_eq!(unknown.0, 404);
    assert!(unknown.1["error"]["message"].as_str().unwrap().contains("was not fetched before"));
    server.assert_no_errors();
}
