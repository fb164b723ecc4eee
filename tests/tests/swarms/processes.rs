//! Swarms of real server processes: many clients, servers that come and go, discovery.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use umbel_client::{Speculate, Swarm, SwarmConfig};
use umbel_tests::process::{Output, UmbelProcess};
use umbel_tests::swarm::{checkpoint, report, serve, serve_on, umbel};
use umbel_tests::workload::{Workload, ask as ask_over, client_model, undisturbed};

fn llama() -> String {
    checkpoint("llama")
}

const PROMPT: &str = "5,17,99,140,3,201,77";

fn ask(model: &str, place: &[&str]) -> Output {
    let mut arguments = vec!["generate", model, "--prompt-ids", PROMPT, "--max-tokens", "30"];
    arguments.extend(["--ignore-eos", "--json"]);
    arguments.extend(place);
    umbel(&arguments)
}

fn tokens(model: &str, place: &[&str]) -> Value {
    report(&ask(model, place))["token_ids"].clone()
}

#[test]
fn eight_clients_at_once_get_what_each_would_get_alone() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..2"]);
    let _second = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    // Prompts of 1 to 99 tokens, so that some are still read while others decode.
    let prompts = (0..8u32).map(|client| {
        let ids = (0..=14 * client).map(|index| (1 + 37 * index + client) % 250);
        ids.map(|id| id.to_string()).collect::<Vec<_>>().join(",")
    });
    let arguments = |client: usize, prompt: &str, place: &[&str]| {
        let seed = client.to_string();
        let asked = ["generate", &model, "--prompt-ids", prompt, "--max-tokens", "24"];
        let sampled = ["--ignore-eos", "--json", "--temperature", "0.9", "--seed", &seed];
        report(&umbel(&[&asked[..], &sampled, place].concat()))["token_ids"].clone()
    };
    let alone: Vec<_> = prompts
        .enumerate()
        .map(|(client, prompt)| {
            let tokens = arguments(client, &prompt, &["--local"]);
            (prompt, tokens)
        })
        .collect();
    std::thread::scope(|scope| {
        for (client, (prompt, alone)) in alone.iter().enumerate() {
            let (arguments, address) = (&arguments, first.address());
            scope.spawn(move || {
                let together = arguments(client, prompt, &["--join", address]);
                assert_eq!(together, *alone, "client {client}");
            });
        }
    });
    assert_ne!(alone[0].1, alone[1].1, "other prompts, other texts");
}

#[test]
fn a_server_takes_the_blocks_where_the_swarm_is_thinnest() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..2"]);
    let _second = serve(&[&model, "--block-count", "1", "--join", first.address()]);
    let _third = serve(&[&model, "--block-count", "1", "--join", first.address()]);
    let status = umbel(&["status", "--json", "--join", first.address()]);
    let spans: Vec<_> = report(&status)["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| (server["start"].as_u64().unwrap(), server["end"].as_u64().unwrap()))
        .collect();
    assert_eq!(spans, [(0, 2), (2, 3), (3, 4)]);
    assert_eq!(tokens(&model, &["--join", first.address()]), tokens(&model, &["--local"]));
}

#[test]
fn without_a_wish_a_server_takes_every_block_that_fits() {
    let model = llama();
    let server = serve(&[&model]);
    let route = report(&ask(&model, &["--join", server.address()]))["route"].clone();
    assert_eq!((route[0]["start"].as_u64(), route[0]["end"].as_u64()), (Some(0), Some(4)));
}

#[test]
fn a_swarm_is_found_through_a_server_of_another_model() {
    let (llama, qwen) = (llama(), checkpoint("qwen3"));
    let other = serve(&[&qwen]);
    let _server = serve(&[&llama, "--join", other.address()]);
    assert_eq!(tokens(&llama, &["--join", other.address()]), tokens(&llama, &["--local"]));
}

#[test]
fn servers_that_name_each_other_begin_one_after_the_other() {
    let model = llama();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("/ip4/127.0.0.1/tcp/{port}");
    let nobody = umbel(&["status", "--join", &at]);
    nobody.refused("no peer answers");
    let first = serve(&[&model, "--blocks", "0..2", "--join", &at]);
    assert!(first.stderr().contains("nobody is there yet"), "{}", first.stderr());
    // A list for all servers has the address of each.
    let list = ["--join", &at, "--join", first.address()];
    let second = serve_on(&[&at], &[&[&model, "--blocks", "2..4"], &list[..]].concat());
    assert!(!second.stderr().contains("nobody is there yet"), "{}", second.stderr());
    let alone = tokens(&model, &["--local"]);
    for address in [first.address(), &at] {
        assert_eq!(tokens(&model, &["--join", address]), alone);
    }
}

#[test]
fn a_server_that_vanishes_is_passed_over_and_the_answer_is_the_same() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..2"]);
    let doomed = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    let _spare = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    doomed.kill();
    // The swarm has not noticed yet: the announcement of the dead server has not expired.
    assert_eq!(tokens(&model, &["--join", first.address()]), tokens(&model, &["--local"]));
}

#[test]
fn with_standby_other_servers_compute_along() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..2"]);
    let more = |blocks| serve(&[&model, "--blocks", blocks, "--join", first.address()]);
    let (second, third, fourth) = (more("2..4"), more("0..2"), more("2..4"));
    let place = ["--join", first.address(), "--standby"];
    assert_eq!(tokens(&model, &place), tokens(&model, &["--local"]));
    let servers = [&first, &second, &third, &fourth];
    let asked = servers.iter().filter(|server| server.stderr().contains(" opened ")).count();
    assert!(asked >= 3, "{asked} servers opened a session, of which two are the route");
}

#[test]
fn a_server_leaves_in_good_order_when_it_is_asked_to() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..2"]);
    let second = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    let ended = second.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let output = ask(&model, &["--join", first.address(), "--patience", "0"]);
    assert!(!output.status.success());
    assert!(output.stderr.contains("blocks 2..4"), "{}", output.stderr);
    let status = umbel(&["status", "--join", first.address()]);
    assert!(status.stdout.contains("served by nobody: blocks 2, 3"), "{}", status.stdout);
}

/// As where a signal goes to a whole group, of which one holds the stdin of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_stdin_closes_behind_a_signal_stays_for_its_sessions() {
    let (folder, name) = (tempfile::tempdir().unwrap(), llama());
    let identity = folder.path().join("identity.pem");
    let held = ["serve", &name, "--no-mdns", "--device", "cpu", "--stop-with-stdin"];
    let place = ["--identity", identity.to_str().unwrap(), "--listen", "/ip4/127.0.0.1/tcp/0"];
    let mut server = UmbelProcess::start_held(&[&held[..], &place].concat()).unwrap();
    let join = vec![server.address().parse().unwrap()];
    let swarm = Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await.unwrap();
    let model = client_model(&name).unwrap();
    let prompt = vec![5, 17, 99, 140, 3];
    let workload = Workload { prompt, tokens: 24, prefill_chunk: 512, standby: false };
    let expected = undisturbed(&model, &workload).await.unwrap();
    let asked = ask_over(Arc::new(swarm), &model, &workload, &Speculate::Off);
    let mut generation = asked.await.unwrap();
    generation.next().await.unwrap().unwrap();
    server.interrupt();
    assert!(server.wait_for_stderr("stopping"), "{}", server.stderr());
    server.close_stdin();
    // Slowly enough that a server which takes this for haste is gone meanwhile.
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while generation.next().await.unwrap().is_some() {
        pace.tick().await;
    }
    assert_eq!(generation.tokens(), expected);
    generation.into_chain().0.close().await;
    server.wait().unwrap().succeeded();
}

#[test]
fn tcp_alone_is_enough() {
    let model = llama();
    let listen = ["/ip4/127.0.0.1/tcp/0"];
    let first = serve_on(&listen, &[&model, "--blocks", "0..2"]);
    let _second = serve_on(&listen, &[&model, "--blocks", "2..4", "--join", first.address()]);
    assert!(first.address().contains("/tcp/"), "{}", first.address());
    assert_eq!(tokens(&model, &["--join", first.address()]), tokens(&model, &["--local"]));
}

#[test]
fn as_many_threads_compute_as_were_asked_for() {
    let model = llama();
    let alone = tokens(&model, &["--local"]);
    for threads in [1, 3] {
        let server = serve(&[&model, "--threads", &threads.to_string()]);
        assert_eq!(tokens(&model, &["--join", server.address()]), alone);
        let process = server.into_process();
        let names = process.thread_names().unwrap();
        // Whoever asks for work computes as well.
        let beside = names.iter().filter(|name| name.starts_with("umbel-compute")).count();
        assert_eq!(beside, threads - 1, "{names:?}");
    }
}

#[test]
fn timings_say_where_each_step_went() {
    let model = llama();
    let first = serve(&[&model, "--blocks", "0..1"]);
    let _second = serve(&[&model, "--blocks", "1..4", "--join", first.address()]);
    let timings = report(&ask(&model, &["--join", first.address()]))["timings"].clone();
    assert!(timings["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(timings["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    let steps = timings["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 30);
    for step in steps {
        let hops = step["hops"].as_array().unwrap();
        assert_eq!(hops.len(), 2);
        let of = |hop: &Value, part: &str| hop[part].as_f64().unwrap();
        let parts = ["compute_ms", "queue_ms", "network_ms"];
        let sum: f64 = hops.iter().flat_map(|hop| parts.map(|part| of(hop, part))).sum();
        let total = step["total_ms"].as_f64().unwrap();
        assert!((sum - total).abs() < 1e-3 * total.max(1.0), "{sum} of {total}");
        assert!(hops.iter().all(|hop| of(hop, "compute_ms") > 0.0));
    }
}

#[test]
fn a_seed_repeats_a_sampled_answer() {
    let model = llama();
    let sampled = ["--local", "--temperature", "1.2", "--top-k", "50", "--top-p", "0.95"];
    let seeded =
        [&sampled[..], &["--min-p", "0.01", "--repetition-penalty", "1.1", "--seed", "11"]];
    let once = tokens(&model, &seeded.concat());
    assert_eq!(once, tokens(&model, &seeded.concat()));
    assert_eq!(once.as_array().unwrap().len(), 30);
}
