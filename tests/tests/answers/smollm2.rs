//! The default model: what another implementation computed of it, in one process and over a swarm,
//! and the memory that a part of it takes.
//!
//! The model comes through the catalogue, by pip, the first time, and stays beside the build.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::Value;
use umbel_tests::swarm::{Server, report, serve, umbel};

/// The stored logits come from weights that were widened to float32; here activations are rounded
/// to 8 bits for each product, which moves a logit by about this much.
const LOGITS_TOLERANCE: f64 = 0.35;

/// With `--arithmetic exact` nothing is rounded but the sums, in another order.
const EXACT_TOLERANCE: f64 = 0.001;

/// Where the likeliest token leads by less than this, arithmetic that rounds differently may take
/// the second.
const MARGIN: f64 = 0.3;

/// What a server of a third of the blocks may hold of what a server of all holds.
const THIRD_OF_BLOCKS_SHARE_MAX: f64 = 0.6;

fn cases() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2/golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn numbers(values: &Value) -> Vec<u64> {
    values.as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).collect()
}

/// What `umbel generate` prints for a case, prompted by its text.
fn generate(case: &Value, place: &[&str]) -> Value {
    let prompt = case["prompt"].as_str().unwrap();
    let tokens = numbers(&case["greedy"]).len().to_string();
    let mut arguments = vec!["generate", "--prompt", prompt, "--max-tokens", &tokens, "--json"];
    arguments.extend(["--top-logits", "5"]);
    if case["kind"] == "chat" {
        arguments.push("--chat");
    }
    arguments.extend(place);
    report(&umbel(&arguments))
}

fn check(case: &Value, report: &Value, tolerance: f64) {
    assert_eq!(numbers(&report["prompt_ids"]), numbers(&case["ids"]), "the tokenizer");
    let found = report["top_logits"][0].as_array().unwrap();
    for (stored, found) in case["top5"].as_array().unwrap().iter().zip(found) {
        let (stored, found) = (stored[1].as_f64().unwrap(), found[1].as_f64().unwrap());
        assert!((stored - found).abs() < tolerance, "{stored} and {found}");
    }
    assert_eq!(found[0][0], case["top5"][0][0]);
    let margins = case["margins"].as_array().unwrap();
    let sure = margins.iter().take_while(|margin| margin.as_f64().unwrap() >= MARGIN).count();
    assert!(sure >= 5, "the case says something");
    assert_eq!(numbers(&report["token_ids"])[..sure], numbers(&case["greedy"])[..sure]);
}

/// Servers that split the 30 blocks.
fn swarm(splits: &[&str]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for blocks in splits {
        let mut arguments = vec!["--blocks", blocks];
        if let Some(first) = servers.first() {
            arguments.extend(["--join", first.address()]);
        }
        let server = serve(&arguments);
        servers.push(server);
    }
    servers
}

#[test]
fn the_stored_tokens_come_out_and_a_swarm_gives_what_one_process_gives() {
    let servers = swarm(&["0..10", "10..20", "20..30"]);
    for case in cases() {
        let local = generate(&case, &["--local"]);
        check(&case, &local, LOGITS_TOLERANCE);
        let over_swarm = generate(&case, &["--join", servers[0].address()]);
        assert_eq!(over_swarm["token_ids"], local["token_ids"]);
        assert_eq!(over_swarm["top_logits"], local["top_logits"]);
        assert_eq!(over_swarm["text"], local["text"]);
        assert_eq!(over_swarm["route"].as_array().unwrap().len(), 3);
    }
}

/// Blocks and head in this process, and the head beside servers, do as they are told.
#[test]
fn nothing_is_lost_where_nothing_is_rounded() {
    let case = &cases()[0];
    let exact = ["--arithmetic", "exact"];
    let local = generate(case, &["--local", exact[0], exact[1]]);
    check(case, &local, EXACT_TOLERANCE);
    let server = serve(&["--blocks", "0..30", exact[0], exact[1]]);
    let over_swarm = generate(case, &["--join", server.address(), exact[0], exact[1]]);
    check(case, &over_swarm, EXACT_TOLERANCE);
    assert_eq!(over_swarm["top_logits"], local["top_logits"]);
}

/// Servers that round less come nearer to what was stored.
#[test]
fn careful_servers_are_nearer_to_the_stored_logits() {
    let case = &cases()[0];
    let [usual, careful] = ["usual", "careful"].map(|arithmetic| {
        let server = serve(&["--blocks", "0..30", "--arithmetic", arithmetic]);
        let report = generate(case, &["--join", server.address()]);
        check(case, &report, LOGITS_TOLERANCE);
        let found = report["top_logits"][0].as_array().unwrap();
        let stored = case["top5"].as_array().unwrap();
        let off = |(stored, found): (&Value, &Value)| {
            (stored[1].as_f64().unwrap() - found[1].as_f64().unwrap()).abs()
        };
        stored.iter().zip(found).map(off).fold(0.0, f64::max)
    });
    println!("largest difference of a logit: usual {usual}, careful {careful}");
    assert!(careful < usual, "{careful} and {usual}");
    let unknown = umbel(&["serve", "--arithmetic", "fast"]);
    assert!(!unknown.status.success() && unknown.stderr.contains("one of usual, careful, exact"));
}

#[test]
fn the_text_ends_where_the_model_or_a_stop_string_ends_it() {
    let arguments = ["generate", "--local", "--json", "--prompt", "The capital of France is"];
    let stopped = report(&umbel(&[&arguments[..], &["--stop", "The"]].concat()));
    assert_eq!(stopped["text"], " Paris.\n\n");
    assert_eq!(stopped["finish_reason"], "stop");
    let cut = report(&umbel(&[&arguments[..], &["--max-tokens", "3"]].concat()));
    assert_eq!((&cut["text"], &cut["finish_reason"]), (&" Paris.\n".into(), &"length".into()));
    // Token ids are for models without a tokenizer.
    let plain = ["generate", "--local", "--prompt", "The capital of France is", "--stop", " Paris"];
    let empty = umbel(&plain);
    assert_eq!((empty.status.success(), empty.stdout.as_str()), (true, "\n"), "{empty:?}");
}

#[test]
fn a_server_of_a_third_of_the_blocks_holds_far_less_than_one_of_all() {
    let resident = |blocks| {
        let server = serve(&["--blocks", blocks]);
        let asked = umbel(&["status", "--join", server.address()]);
        assert!(asked.status.success(), "{}", asked.stderr);
        server.resident_bytes().unwrap()
    };
    let (third, all) = (resident("10..20"), resident("0..30"));
    #[expect(clippy::cast_precision_loss, reason = "some hundred megabytes")]
    let share = third as f64 / all as f64;
    println!("10 of 30 blocks: {third} bytes resident; 30 of 30: {all}; share {share:.3}");
    assert!(share < THIRD_OF_BLOCKS_SHARE_MAX, "{third} of {all} bytes");
}

#[test]
fn the_demo_answers_and_leaves_no_process_behind() {
    let prompt = "What is gravity? Answer in one sentence.";
    let demo = umbel(&["demo", "--prompt", prompt, "--temperature", "0", "--max-tokens", "16"]);
    assert!(demo.status.success(), "{}", demo.stderr);
    assert!(demo.stdout.starts_with("Gravity is a fundamental"), "{demo:?}");
    for line in demo.stderr.lines().filter(|line| line.contains("/p2p/")) {
        let address = line.split_whitespace().last().unwrap();
        let status = umbel(&["status", "--join", address]);
        assert!(!status.status.success(), "a server outlived the demo: {address}");
    }
}
