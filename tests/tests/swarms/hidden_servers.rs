//! Swarms of real processes whose servers are reached by relays alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use umbel_client::{Chain, Generate, RemoteChain, Swarm, SwarmConfig};
use umbel_net::{Identity, Network, NetworkConfig, RelayLimits, Role};
use umbel_tests::process::UmbelProcess;
use umbel_tests::prometheus::{get, metric, url};
use umbel_tests::swarm::{Server, cache, checkpoint, report, serve, serve_on, umbel};
use umbel_tests::workload::client_model;

const TCP: [&str; 1] = ["/ip4/127.0.0.1/tcp/0"];
const PROMPT: [u32; 5] = [5, 17, 99, 140, 3];
const ASK: [&str; 4] = ["--prompt-ids", "5,17,99,140,3", "--ignore-eos", "--json"];

fn relay(model: &str, blocks: &str, more: &[&str]) -> Server {
    let arguments = [&[model, "--blocks", blocks, "--relay", "--metrics", "127.0.0.1:0"], more];
    serve_on(&TCP, &arguments.concat())
}

/// A server that listens nowhere but at these relays.
fn hidden(model: &str, blocks: &str, relays: &[&Server]) -> Server {
    let places: Vec<_> =
        relays.iter().map(|relay| format!("{}/p2p-circuit", relay.address())).collect();
    let listen: Vec<_> = places.iter().map(String::as_str).collect();
    let mut arguments = vec![model, "--blocks", blocks];
    for relay in relays {
        arguments.extend(["--join", relay.address()]);
    }
    serve_on(&listen, &arguments)
}

fn ask(model: &str, more: &[&str]) -> serde_json::Value {
    let tokens = if more.contains(&"--max-tokens") { &[][..] } else { &["--max-tokens", "24"] };
    let output = umbel(&[&["generate", "--model", model], &ASK[..], tokens, more].concat());
    report(&output)["token_ids"].clone()
}

/// Pairs of peers between which a server passes on.
fn circuits(server: &Server) -> f64 {
    metric(&get(&url(&server.stderr())).1, "umbel_circuits")
}

#[test]
fn servers_that_are_reached_by_a_relay_alone_answer_as_one_process() {
    let model = checkpoint("llama");
    let relay = relay(&model, "0..1", &[]);
    let first = hidden(&model, "1..3", &[&relay]);
    let second = hidden(&model, "3..4", &[&relay]);
    for server in [&first, &second] {
        assert!(server.address().contains("/p2p-circuit/p2p/"), "{}", server.address());
    }
    let join = ["--join", relay.address()];
    assert_eq!(ask(&model, &join), ask(&model, &["--local"]));
    // By the address of one of them others come in too.
    assert_eq!(ask(&model, &["--join", second.address()]), ask(&model, &["--local"]));
    let status = report(&umbel(&[&["status", "--json"], &join[..]].concat()));
    let servers = status["servers"].as_array().unwrap();
    let relayed = servers.iter().filter(|server| server["relayed"] == true).count();
    assert_eq!((servers.len(), relayed), (3, 2), "{status}");
    let table = umbel(&[&["status"], &join[..]].concat());
    assert_eq!(table.stdout.matches("by a relay").count(), 2, "{}", table.stdout);
    for server in [&relay, &first, &second] {
        server.assert_no_errors();
    }
}

async fn join(servers: &[&Server]) -> Arc<Swarm> {
    let join = servers.iter().map(|server| server.address().parse().unwrap()).collect();
    let patience = Duration::from_secs(60);
    Arc::new(Swarm::join(SwarmConfig { join, patience, ..SwarmConfig::default() }).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_by_another_relay_when_one_is_killed() {
    let folder = checkpoint("llama");
    // What the relays serve themselves is of no use to the session: all of it goes through them.
    let another = checkpoint("qwen2");
    let first_relay = relay(&another, "0..1", &[]);
    let second_relay = relay(&another, "0..1", &["--join", first_relay.address()]);
    let behind =
        ["0..2", "2..4"].map(|blocks| hidden(&folder, blocks, &[&first_relay, &second_relay]));
    let model = client_model(&folder).unwrap();
    let swarm = join(&[&first_relay, &second_relay]).await;
    let chain = RemoteChain::open(swarm, &model, 64).await.unwrap();
    let chain = Chain::Remote(Box::new(chain));
    let names: Vec<_> =
        chain.route().into_iter().map(|(peer, _)| peer.unwrap().to_string()).collect();
    for (name, server) in names.iter().zip(&behind) {
        assert!(server.address().ends_with(name), "{names:?}");
    }
    let request = Generate { max_tokens: 24, ignore_eos: true, ..Generate::new(PROMPT.to_vec()) };
    let mut generation = request.start(Arc::clone(&model), chain).unwrap();
    for _ in 0..7 {
        generation.next().await.unwrap().unwrap();
    }
    let passing = [&first_relay, &second_relay].map(circuits);
    assert!(passing[0] + passing[1] >= 2.0, "{passing:?}");
    let (doomed, left) = if passing[0] >= passing[1] {
        (first_relay, second_relay)
    } else {
        (second_relay, first_relay)
    };
    doomed.kill();
    generation.finish().await.unwrap();
    let tokens = serde_json::to_value(&generation.tokens()[PROMPT.len()..]).unwrap();
    assert_eq!(tokens, ask(&folder, &["--local"]));
    assert!(circuits(&left) >= 2.0);
    // Who comes now finds them as well.
    assert_eq!(ask(&folder, &["--join", left.address()]), tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_its_circuits() {
    const CIRCUIT_BYTES: u64 = 32 << 10;
    let folder = checkpoint("llama");
    let limits = RelayLimits { circuit_bytes: CIRCUIT_BYTES, ..RelayLimits::default() };
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
    let listen = vec![TCP[0].parse().unwrap()];
    let config = NetworkConfig { listen, relays: Some(limits), ..config };
    let relay = Network::start(config).await.unwrap();
    let place = format!("{}/p2p-circuit", relay.preferred_address());
    let only = serve_on(&[&place], &[&folder, "--blocks", "0..4"]);
    let model = client_model(&folder).unwrap();
    let chain = RemoteChain::open(join(&[&only]).await, &model, 120).await.unwrap();
    let request = Generate { max_tokens: 100, ignore_eos: true, ..Generate::new(PROMPT.to_vec()) };
    let mut generation = request.start(Arc::clone(&model), Chain::Remote(Box::new(chain))).unwrap();
    generation.finish().await.unwrap();
    let passed = relay.traffic().sent;
    assert!(passed > 2 * CIRCUIT_BYTES, "one circuit was enough for {passed} bytes");
    let tokens = serde_json::to_value(&generation.tokens()[PROMPT.len()..]).unwrap();
    assert_eq!(tokens, ask(&folder, &["--local", "--max-tokens", "100"]));
}

#[test]
fn who_tells_nobody_where_it_listens_is_met_by_a_relay_and_then_directly() {
    let model = checkpoint("llama");
    let relay = serve(&[&model, "--blocks", "0..1", "--relay"]);
    let by = ["--reach", "relayed", "--relayed-by", relay.address(), "--join", relay.address()];
    let hidden = serve(&[&[&*model, "--blocks", "1..4"], &by[..]].concat());
    assert!(hidden.address().contains("/p2p-circuit/p2p/"), "{}", hidden.address());
    let of_one_process = ask(&model, &["--local"]);
    assert!(hidden.stderr().contains("others reach this server by relays"));
    // On a machine that is busy an answer may be there before a direct connection is.
    let met = || hidden.stderr().contains("a direct connection to a peer that was met by a relay");
    let asked = (0..10).take_while(|_| !met()).map(|_| ask(&model, &["--join", relay.address()]));
    let answers: Vec<_> = asked.collect();
    assert!(!answers.is_empty() && answers.iter().all(|answer| *answer == of_one_process));
    assert!(met(), "{}", hidden.stderr());
    hidden.assert_no_errors();
    relay.assert_no_errors();
}

#[test]
fn who_is_reached_by_relays_alone_may_be_there_before_the_first_of_them() {
    let model = checkpoint("llama");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("/ip4/127.0.0.1/tcp/{port}");
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("identity.pem");
    let (identity, cache) = (identity.to_str().unwrap(), cache());
    let place = ["--cache-dir", cache.to_str().unwrap(), "serve", "--no-mdns", "--identity"];
    let served = [identity, "--listen", TCP[0], "--device", "cpu", &model, "--blocks", "1..4"];
    let by = ["--reach", "relayed", "--join", &at];
    let mut hidden = UmbelProcess::begin(&[&place[..], &served, &by].concat()).unwrap();
    assert!(hidden.wait_for_stderr("nobody is there yet"), "{}", hidden.stderr());
    let relay = serve_on(&[&at], &[&model, "--blocks", "0..1", "--relay"]);
    let address = hidden.wait_for_line("ready ").unwrap_or_else(|| panic!("{}", hidden.stderr()));
    assert!(address.contains("/p2p-circuit/p2p/"), "{address}");
    hidden.assert_no_errors();
    relay.assert_no_errors();
}

#[test]
fn who_can_be_reached_by_nobody_says_what_to_do() {
    let model = checkpoint("llama");
    let server = serve(&[&model, "--blocks", "0..4"]);
    let bare = server.address().split("/p2p/").next().unwrap();
    let fixed = ["serve", &model, "--no-mdns", "--blocks", "0..4", "--listen", TCP[0]];
    let fixed = [&fixed[..], &["--reach", "relayed"]].concat();
    for (more, said) in [
        (&["--relayed-by", bare][..], "with /p2p/ and its name"),
        (&["--announce", "/ip4/203.0.113.7/tcp/4001"], "leave --announce out"),
        // It takes half a minute to find out that nobody there is a relay.
        (&["--join", server.address()], "umbel serve --relay"),
    ] {
        umbel(&[&fixed[..], more].concat()).refused(said);
    }
    server.assert_no_errors();
}
