//! Thin sessions over real processes: servers embed and draw, and the text is that of one process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use umbel_client::{
    Chain, ClientModel, Device, Generate, GenerateError, LocalModel, Opening, RemoteChain,
    Sampling, SessionOptions, Swarm,
};
use umbel_shard::{Cache, ModelSource, Silent};
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, cache, checkpoint, report, serve, umbel};
use umbel_tests::workload::{client_model, join};

const THIN: SessionOptions = SessionOptions {
    standby: false,
    wire: umbel_protocol::DType::F32,
    cache: umbel_protocol::DType::F32,
    share: true,
    thin: true,
};

/// Seeded, with everything that a draw can depend on.
fn sampled() -> Sampling {
    Sampling {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.3,
        seed: 7,
    }
}

fn request(tokens: u32, sampling: Sampling) -> Generate {
    let prompt = vec![5, 17, 99, 140, 3];
    Generate { max_tokens: tokens, ignore_eos: true, sampling, ..Generate::new(prompt) }
}

/// What a thin client has of a model: no weights.
fn thin_model(name: &str) -> Arc<ClientModel> {
    let source = ModelSource::parse(name).unwrap();
    let model = ClientModel::open_thin(&source, &Cache::new(cache()), &Silent).unwrap();
    assert!(!model.has_weights());
    Arc::new(model)
}

async fn of_one_process(name: &str, request: Generate) -> Vec<u32> {
    let model = client_model(name).unwrap();
    let local = Arc::new(LocalModel::load(model.shard(), 256, Device::shared()).unwrap());
    let chain = Chain::Local(local.open(200).unwrap());
    let mut generation = request.start(model, chain).unwrap();
    generation.finish().await.unwrap().to_vec()
}

async fn open(swarm: Arc<Swarm>, model: &ClientModel, tokens_max: u32) -> Chain {
    let opening = Opening { tokens_max, options: THIN, ..Opening::default() };
    let chain = RemoteChain::open_with(swarm, model, opening).await.unwrap();
    Chain::Remote(Box::new(chain))
}

/// Servers of these blocks, all of which know each other.
fn swarm_of(name: &str, spans: &[&str]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for span in spans {
        let mut arguments = vec![name, "--blocks", span, "--kv-tokens", "4096"];
        arguments.extend(servers.iter().flat_map(|server| ["--join", server.address()]));
        servers.push(serve(&arguments));
    }
    servers
}

fn token_ids(output: &Output) -> serde_json::Value {
    report(output)["token_ids"].clone()
}

#[test]
fn the_text_is_that_of_one_process_and_of_a_client_that_draws_itself() {
    for name in ["llama", "llama-tied-mha"] {
        let folder = checkpoint(name);
        for spans in [&["0..1", "1..3", "3..4"][..], &["0..4"]] {
            let servers = swarm_of(&folder, spans);
            let ask = |place: &[&str], how: &[&str]| {
                let what = ["generate", &folder, "--prompt-ids", "5,17,99,140,3", "--json"];
                let count = ["--max-tokens", "24", "--ignore-eos", "--prefill-chunk", "2"];
                token_ids(&umbel(&[&what[..], &count, place, how].concat()))
            };
            let joined = ["--join", servers[0].address()];
            let thin = ["--join", servers[0].address(), "--thin"];
            let drawn = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p"];
            let drawn = [&drawn[..], &["0.01", "--repetition-penalty", "1.3", "--seed", "7"]];
            for how in [&[][..], &drawn.concat()] {
                let local = ask(&["--local"], how);
                assert_eq!(local.as_array().unwrap().len(), 24);
                assert_eq!(ask(&joined, how), local, "{name} {spans:?} {how:?}");
                assert_eq!(ask(&thin, how), local, "{name} {spans:?} {how:?}");
            }
            servers.iter().for_each(|server| server.assert_no_errors());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_hops_change_no_token() {
    const NAME: &str = "smollm2-135m";
    let spans = ["0..10", "10..20", "20..30"];
    let mut servers = swarm_of(NAME, &[spans, spans].concat());
    let model = thin_model(NAME);
    let expected = of_one_process(NAME, request(40, sampled())).await;
    let swarm = join(&servers[0]).await.unwrap();
    let mut generation = request(40, sampled())
        .start(Arc::clone(&model), open(Arc::clone(&swarm), &model, 64).await)
        .unwrap();
    for count in 0..40 {
        // Each hop of the route in turn; what takes its place is its only replica.
        if let Some(hop) = [6, 16, 26].iter().position(|at| *at == count) {
            let peer = generation.chain().route()[hop].0.unwrap().to_string();
            let doomed = servers.iter().position(|of| of.address().ends_with(&peer)).unwrap();
            servers.remove(doomed).kill();
        }
        generation.next().await.unwrap().unwrap();
    }
    assert_eq!(generation.next().await.unwrap().map(|token| token.id), None);
    assert_eq!(generation.tokens(), expected);
    let Chain::Remote(chain) = generation.chain() else { panic!("it is over a swarm") };
    assert!(chain.failures().len() >= 3, "{:?}", chain.failures());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_in_the_same_session_and_an_answer_can_be_left() {
    let folder = checkpoint("llama");
    let servers = swarm_of(&folder, &["0..2", "2..4"]);
    let model = thin_model(&folder);
    let chain = open(join(&servers[0]).await.unwrap(), &model, 200).await;
    // The answer is left after three tokens, while more are drawn.
    let mut first = request(60, sampled()).start(Arc::clone(&model), chain).unwrap();
    for _ in 0..3 {
        first.next().await.unwrap().unwrap();
    }
    let text = first.tokens().to_vec();
    assert_eq!(text, of_one_process(&folder, request(3, sampled())).await);
    let (chain, cached) = first.into_chain();
    assert!(cached.len() >= 7, "the cache is kept: {cached:?}");
    // It goes on with other words, and then from an earlier place.
    let prompts = [[&text[..], &[11, 12, 13]].concat(), [&text[..6], &[44]].concat()];
    let (mut chain, mut cached) = (chain, cached);
    for prompt in prompts {
        let next = Generate { prompt, ..request(20, sampled()) };
        let mut generation = next.clone().resume(Arc::clone(&model), chain, &cached).unwrap();
        generation.finish().await.unwrap();
        assert_eq!(generation.tokens(), of_one_process(&folder, next).await);
        (chain, cached) = generation.into_chain();
    }
    chain.close().await;
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn thin_sessions_and_others_share_servers() {
    let folder = checkpoint("llama");
    let servers = swarm_of(&folder, &["0..2", "2..4"]);
    let (thin, whole) = (thin_model(&folder), client_model(&folder).unwrap());
    let swarm = join(&servers[0]).await.unwrap();
    let mut answers = Vec::new();
    for (number, is_thin) in [true, true, false].into_iter().enumerate() {
        let sampling = Sampling { seed: number as u64, ..sampled() };
        let options = SessionOptions { thin: is_thin, ..THIN };
        let model = if is_thin { Arc::clone(&thin) } else { Arc::clone(&whole) };
        let opening = Opening { tokens_max: 128, options, ..Opening::default() };
        let chain = RemoteChain::open_with(Arc::clone(&swarm), &model, opening).await.unwrap();
        let chain = Chain::Remote(Box::new(chain));
        let mut generation = request(100, sampling.clone()).start(model, chain).unwrap();
        let answer = tokio::spawn(async move { generation.finish().await.unwrap().to_vec() });
        answers.push((sampling, answer));
    }
    for (sampling, answer) in answers {
        let expected = of_one_process(&folder, request(100, sampling)).await;
        assert_eq!(answer.await.unwrap(), expected);
    }
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_the_ends_serve_others_and_blocks_between() {
    let folder = checkpoint("llama");
    let without = serve(&[&folder, "--no-ends"]);
    let model = thin_model(&folder);
    let opening = Opening { tokens_max: 64, options: THIN, ..Opening::default() };
    let refused = RemoteChain::open_with(join(&without).await.unwrap(), &model, opening).await;
    let error = refused.err().expect("nobody holds the ends").to_string();
    assert!(error.contains("0..1") && error.contains("3..4"), "{error}");
    let with = [
        serve(&[&folder, "--blocks", "0..1", "--join", without.address()]),
        serve(&[&folder, "--blocks", "3..4", "--join", without.address()]),
    ];
    let expected = of_one_process(&folder, request(20, sampled())).await;
    let chain = open(join(&without).await.unwrap(), &model, 64).await;
    assert_eq!(chain.route().len(), 3);
    let mut generation = request(20, sampled()).start(Arc::clone(&model), chain).unwrap();
    generation.finish().await.unwrap();
    assert_eq!(generation.tokens(), expected);
    let words = ["generate", &folder, "--prompt-ids", "5,17,99,140,3", "--join", without.address()];
    assert!(umbel(&words).status.success(), "others need no ends there");
    with.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thin_session_cannot_do_is_said() {
    let folder = checkpoint("llama");
    let server = serve(&[&folder]);
    let model = thin_model(&folder);
    let swarm = join(&server).await.unwrap();
    let open_with = |options| {
        let opening = Opening { tokens_max: 64, options, ..Opening::default() };
        RemoteChain::open_with(Arc::clone(&swarm), &model, opening)
    };
    let chain = Chain::Remote(Box::new(open_with(THIN).await.unwrap()));
    let logits = Generate { top_logits: 2, ..request(4, sampled()) };
    let refused = logits.start(Arc::clone(&model), chain).err();
    assert!(matches!(refused, Some(GenerateError::NoLogits)), "{refused:?}");
    let chain = open_with(SessionOptions { thin: false, ..THIN }).await.unwrap();
    let chain = Chain::Remote(Box::new(chain));
    let refused = request(4, sampled()).start(Arc::clone(&model), chain).err();
    assert!(matches!(refused, Some(GenerateError::NoWeights)), "{refused:?}");
    let words = ["generate", &folder, "--prompt-ids", "5", "--join", server.address(), "--thin"];
    let output = umbel(&[&words[..], &["--speculate", "prompt"]].concat());
    assert!(output.stderr.contains("--thin has no drafts"), "{}", output.stderr);
    let output = umbel(&[&words[..], &["--standby"]].concat());
    assert!(!output.status.success() && output.stderr.contains("--thin"), "{}", output.stderr);
}
