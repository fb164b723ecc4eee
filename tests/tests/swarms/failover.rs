//! A server dies in the middle of an answer, and the answer is the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbel_client::{
    Chain, ClientModel, Generate, GenerateError, LocalModel, Opening, RemoteChain, SessionOptions,
    Swarm, SwarmConfig,
};
use umbel_coordinator::random::Random;
use umbel_protocol::DType;
use umbel_tests::clients::{Clients, Question};
use umbel_tests::faults::{Fault, Replicated};
use umbel_tests::process::umbel_binary;
#[cfg(target_os = "linux")]
use umbel_tests::swarm::serve_locally;
use umbel_tests::swarm::{Server, checkpoint, serve};
use umbel_tests::workload::{Workload, client_model, join};

const TOKENS: u32 = 24;

fn request() -> Generate {
    Generate { max_tokens: TOKENS, ignore_eos: true, ..Generate::new(vec![5, 17, 99, 140, 3]) }
}

/// What one process answers.
async fn undisturbed(model: &Arc<ClientModel>) -> Vec<u32> {
    answer_of_one_process(model, request()).await
}

async fn answer_of_one_process(model: &Arc<ClientModel>, request: Generate) -> Vec<u32> {
    let local =
        Arc::new(LocalModel::load(model.shard(), 256, umbel_client::Device::shared()).unwrap());
    let chain = Chain::Local(local.open(128).unwrap());
    let mut generation = request.start(Arc::clone(model), chain).unwrap();
    generation.finish().await.unwrap().to_vec()
}

/// Ends the server of the last hop of `chain`.
fn kill_last_hop(chain: &Chain, servers: &mut Vec<Server>) {
    let (peer, _) = chain.route().pop().unwrap();
    let peer = peer.unwrap().to_string();
    let doomed = servers.iter().position(|server| server.address().ends_with(&peer)).unwrap();
    servers.remove(doomed).kill();
}

/// That the system knows of links within the machine.
#[cfg(target_os = "linux")]
fn sockets_are_seen() {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(sockets.contains("@umbel-link-"), "{sockets}");
}

async fn an_answer_goes_on_over_another_server(start: fn(&[&str]) -> Server, during: fn()) {
    let folder = checkpoint("llama");
    let first = start(&[&folder, "--blocks", "0..2"]);
    let second = ["--blocks", "2..4", "--join", first.address()];
    let second = [&[folder.as_str()], &second[..]].concat();
    let mut servers = vec![start(&second), start(&second)];
    let model = client_model(&folder).unwrap();
    let chain = RemoteChain::open(join(&first).await.unwrap(), &model, 64).await.unwrap();
    let mut generation =
        request().start(Arc::clone(&model), Chain::Remote(Box::new(chain))).unwrap();
    for _ in 0..7 {
        generation.next().await.unwrap().unwrap();
    }
    during();
    kill_last_hop(generation.chain(), &mut servers);
    generation.finish().await.unwrap();
    assert_eq!(generation.tokens(), undisturbed(&model).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_over_another_server_and_no_token_differs() {
    an_answer_goes_on_over_another_server(serve, || ()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_where_links_stay_within_the_machine() {
    an_answer_goes_on_over_another_server(serve_locally, sockets_are_seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_continues_with_narrow_keys_and_values_rounds_as_the_one_before() {
    let folder = checkpoint("llama");
    let first = serve(&[&folder, "--blocks", "0..2"]);
    let second = ["--blocks", "2..4", "--join", first.address()];
    let second = [&[folder.as_str()], &second[..]].concat();
    let model = client_model(&folder).unwrap();
    let request = || Generate { top_logits: 3, ..request() };
    let mut servers = vec![serve(&second)];
    for cache in [DType::BF16, DType::Q8] {
        servers.push(serve(&second));
        let options = SessionOptions { cache, ..SessionOptions::default() };
        let opening = Opening { tokens_max: 64, options, ..Opening::default() };
        let chain =
            RemoteChain::open_with(join(&first).await.unwrap(), &model, opening).await.unwrap();
        let mut generation =
            request().start(Arc::clone(&model), Chain::Remote(Box::new(chain))).unwrap();
        let mut logits = Vec::new();
        for count in 0..TOKENS {
            if count == 7 {
                kill_last_hop(generation.chain(), &mut servers);
            }
            logits.push(generation.next().await.unwrap().unwrap().top_logits);
        }
        let blocks = LocalModel::load(model.shard(), 256, umbel_client::Device::shared()).unwrap();
        let chain = Chain::Local(Arc::new(blocks).open_as(cache, 64).unwrap());
        let mut local = request().start(Arc::clone(&model), chain).unwrap();
        let mut of_one_process = Vec::new();
        while let Some(token) = local.next().await.unwrap() {
            of_one_process.push(token.top_logits);
        }
        assert!(logits == of_one_process && logits[0].len() == 3, "{cache}");
        assert_eq!(generation.tokens(), local.tokens(), "{cache}");
    }
}

/// Short enough for every run of the tests; `examples/kill_runs.rs` does the same at length.
fn workload() -> Workload {
    let prompt = (0..48).map(|i| 1_000 + i * 7_919 % 40_000).collect();
    Workload { prompt, tokens: 16, prefill_chunk: 16, standby: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_frozen_servers_of_a_real_model_change_no_token() {
    let mut swarm =
        Replicated::start("smollm2-135m", &["0..10", "10..20", "20..30"]).await.unwrap();
    let workload = workload();
    let expected = swarm.undisturbed(&workload).await.unwrap();
    // Every kind of fault; every second one with spares.
    for seed in 0..6 {
        let fault = Fault::of_run(seed);
        let workload = Workload { standby: seed % 2 == 1, ..workload.clone() };
        let outcome = swarm.run(&workload, fault, &mut Random::new(seed)).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("seed {seed}, {fault}: {error:#}"));
        assert_eq!(outcome.tokens, expected, "seed {seed}, {fault}");
        assert!(outcome.failures >= 1, "seed {seed}, {fault}: nothing failed");
        swarm.restore().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_is_restarted_in_turn_while_clients_generate() {
    let folder = checkpoint("llama");
    let mut swarm = Replicated::start(&folder, &["0..2", "2..4"]).await.unwrap();
    let workload = Workload {
        prompt: vec![5, 17, 99, 140, 3],
        tokens: 24,
        prefill_chunk: 512,
        standby: false,
    };
    let expected = swarm.undisturbed(&workload).await.unwrap();
    for _ in 0..4 {
        let mut generation = swarm.begin(&workload).await.unwrap();
        for _ in 0..6 {
            generation.next().await.unwrap().unwrap();
        }
        // The oldest goes, politely; the answer goes on meanwhile.
        let leaving = swarm.remove_oldest();
        let gone = tokio::task::spawn_blocking(move || leaving.terminate());
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while generation.next().await.unwrap().is_some() {
            pace.tick().await;
        }
        assert_eq!(generation.tokens(), expected);
        generation.into_chain().0.close().await;
        let output = gone.await.unwrap();
        assert!(output.status.success(), "{}", output.stderr);
        swarm.restore().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_is_restarted_in_turn_while_many_clients_generate() {
    let folder = checkpoint("llama");
    let mut swarm = Replicated::start(&folder, &["0..2", "2..4"]).await.unwrap();
    let workload = Workload {
        prompt: vec![5, 17, 99, 140, 3],
        tokens: 24,
        prefill_chunk: 512,
        standby: false,
    };
    let expected = swarm.undisturbed(&workload).await.unwrap();
    let question = Question { model: Arc::clone(swarm.model()), workload, expected };
    let mut swarms = Vec::new();
    for _ in 0..4 {
        swarms.push(swarm.join().await.unwrap());
    }
    let mut clients = Clients::start(swarms, &question);
    for _ in 0..4 {
        // Every client is in the middle of something.
        clients.go_on(32).await;
        swarm.restart_oldest().await.unwrap();
    }
    let answers = clients.stop().await.unwrap();
    println!("{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_asked_for_while_the_only_server_restarts_waits_for_it() {
    let folder = checkpoint("llama");
    let first = serve(&[&folder, "--blocks", "0..2"]);
    let second = serve(&[&folder, "--blocks", "2..4", "--join", first.address()]);
    let model = client_model(&folder).unwrap();
    let expected = undisturbed(&model).await;
    let config =
        SwarmConfig { join: vec![first.address().parse().unwrap()], ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(config).await.unwrap());
    let gone = second.terminate();
    assert!(gone.status.success(), "{}", gone.stderr);
    let opening = tokio::spawn({
        let model = Arc::clone(&model);
        async move { RemoteChain::open(swarm, &model, 64).await }
    });
    let back = tokio::task::spawn_blocking({
        let join = first.address().to_owned();
        move || serve(&[&folder, "--blocks", "2..4", "--join", &join])
    });
    let chain = Chain::Remote(Box::new(opening.await.unwrap().unwrap()));
    let mut generation = request().start(Arc::clone(&model), chain).unwrap();
    generation.finish().await.unwrap();
    assert_eq!(generation.tokens(), expected);
    back.await.unwrap().assert_no_errors();
}

/// Nobody waits while nothing is asked, so that no patience is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_idle_while_its_server_restarted_waits_as_long_as_any_other() {
    let folder = checkpoint("llama");
    let first = serve(&[&folder, "--blocks", "0..2"]);
    // It does not wait for the session, which stays open.
    let arguments = ["--blocks", "2..4", "--join", first.address(), "--drain-timeout", "1"];
    let mut second = serve(&[&[folder.as_str()], &arguments[..]].concat());
    let model = client_model(&folder).unwrap();
    let patience = Duration::from_secs(3);
    let join = vec![first.address().parse().unwrap()];
    let config = SwarmConfig { join, patience, ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(config).await.unwrap());
    let chain = RemoteChain::open(swarm, &model, 64).await.unwrap();
    let mut failures = chain.watch_failures();
    let mut generation =
        request().start(Arc::clone(&model), Chain::Remote(Box::new(chain))).unwrap();
    generation.next().await.unwrap();
    // The client hears at once that it is gone, and asks for nothing.
    second = tokio::task::spawn_blocking(|| second.restart(&[])).await.unwrap();
    failures.wait_for(|failures| !failures.is_empty()).await.unwrap();
    let heard = Instant::now();
    while heard.elapsed() <= patience {
        second = tokio::task::spawn_blocking(|| second.restart(&[])).await.unwrap();
    }
    generation.finish().await.unwrap();
    assert_eq!(generation.tokens(), undisturbed(&model).await);
    second.assert_no_errors();
}

/// The log of the client says what has happened, and nothing that has not.
#[test]
fn a_server_is_said_to_be_replaced_once_one_has_its_place() {
    let folder = checkpoint("llama");
    let first = serve(&[&folder, "--blocks", "0..2"]);
    let second = ["--blocks", "2..4", "--join", first.address()];
    let second = [&[folder.as_str()], &second[..]].concat();
    serve(&second).kill();
    let mut command = Command::new(umbel_binary().unwrap());
    command.args(["generate", &folder, "--prompt-ids", "1,2,3", "--max-tokens", "4", "--patience"]);
    let client = command.args(["60", "--join", first.address()]);
    let mut client = client.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(client.stderr.take().unwrap()).lines().map(Result::unwrap);
    let (failed, whole) = ("a server has failed", "the route is whole again");
    let mut said: Vec<_> = log.by_ref().take_while(|line| !line.contains(failed)).collect();
    let _third = serve(&second);
    said.extend(log);
    assert!(client.wait().unwrap().success(), "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.contains(whole)).count(), 1, "{said:#?}");
    let wrong = ["another server", "is replaced", "unread"];
    assert!(!said.iter().any(|line| wrong.iter().any(|of| line.contains(of))), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_moves_to_blocks_that_are_given_up_while_clients_generate() {
    a_server_moves(&[]).await;
}

/// With room for the blocks that it serves and not for others beside them, it first gives those up.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_both_gives_up_its_blocks_before_it_loads_others() {
    // Ends take 148 kB, two blocks 271 kB, and their cache 2.1 MB; two more blocks would take too much.
    let log = a_server_moves(&["--memory-bytes", "2600000", "--kv-tokens", "4096"]).await;
    assert!(log.contains("no room for others beside them"), "{log}");
}

/// The log of a server that moves while clients generate.
async fn a_server_moves(arguments: &[&str]) -> String {
    let folder = checkpoint("llama");
    let leaving = serve(&[&folder, "--blocks", "2..4"]);
    let with = |arguments: &[&str]| serve(&[&[folder.as_str()], arguments].concat());
    let mover = ["--block-count", "2", "--rebalance-interval", "1", "--join", leaving.address()];
    // It takes the half that has no server yet; then that half gets another one.
    let mover = with(&[&mover, arguments].concat());
    let anchor =
        with(&["--blocks", "0..2", "--join", leaving.address(), "--join", mover.address()]);
    let model = client_model(&folder).unwrap();
    let long = || Generate { max_tokens: 100, ..request() };
    let expected = answer_of_one_process(&model, long()).await;
    let chain = RemoteChain::open(join(&anchor).await.unwrap(), &model, 128).await.unwrap();
    let mut generation = long().start(Arc::clone(&model), Chain::Remote(Box::new(chain))).unwrap();
    generation.next().await.unwrap().unwrap();
    // Others ask meanwhile; sessions that they open are on the old blocks, and then on the new.
    let workload =
        Workload { prompt: request().prompt, tokens: TOKENS, prefill_chunk: 512, standby: false };
    let others = vec![
        join(&anchor).await.unwrap(),
        join(&anchor).await.unwrap(),
        join(&anchor).await.unwrap(),
    ];
    let model = Arc::clone(&model);
    let expected_by_others = undisturbed(&model).await;
    let question = Question { model, workload, expected: expected_by_others };
    let clients = Clients::start(others, &question);
    let gone = tokio::task::spawn_blocking(move || leaving.terminate());
    // Slowly enough that the answer lasts until after the move.
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    while generation.next().await.unwrap().is_some() {
        pace.tick().await;
    }
    assert_eq!(generation.tokens(), expected);
    clients.stop().await.unwrap();
    let (last, blocks) = generation.chain().route().pop().unwrap();
    assert!(mover.address().ends_with(&last.unwrap().to_string()), "{}", mover.stderr());
    assert_eq!(blocks.end(), 4);
    let output = gone.await.unwrap();
    assert!(output.status.success(), "{}", output.stderr);
    mover.assert_no_errors();
    mover.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_for_which_nobody_is_left_ends_with_the_blocks_that_are_missing() {
    let folder = checkpoint("llama");
    let first = serve(&[&folder, "--blocks", "0..2"]);
    let mut servers = vec![serve(&[&folder, "--blocks", "2..4", "--join", first.address()])];
    let model = client_model(&folder).unwrap();
    let chain = RemoteChain::open(join(&first).await.unwrap(), &model, 64).await.unwrap();
    let mut generation = request().start(model, Chain::Remote(Box::new(chain))).unwrap();
    generation.next().await.unwrap().unwrap();
    kill_last_hop(generation.chain(), &mut servers);
    let failure = loop {
        match generation.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it went on without its last blocks"),
            Err(failure) => break failure,
        }
    };
    let GenerateError::Step(failure) = failure else { panic!("{failure}") };
    assert_eq!(failure.no_route().unwrap().missing[0].to_string(), "2..4");
}
