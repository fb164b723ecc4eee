//! Every checkpoint gives what another implementation stored, in one process and over swarms of
//! server processes, however the blocks are split; and splitting changes no bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use umbel_tests::swarm::{Server, checkpoint, report, serve, umbel};

/// Largest difference to logits that transformers computed in float32: sums of some hundred
/// products in another order differ in the last digits.
const LOGITS_TOLERANCE: f64 = 1e-4;

/// New tokens that the fixtures store.
const GREEDY_TOKENS: usize = 24;

/// What transformers computed.
struct Golden {
    prompt: Vec<i64>,
    /// Of the last token of the prompt.
    logits: Vec<f32>,
    greedy: Vec<u64>,
}

impl Golden {
    fn read(folder: &str) -> Self {
        let folder = Path::new(folder);
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let prompt = tensors.tensor("input_ids").unwrap();
        let prompt = prompt.data().chunks_exact(8);
        let logits = tensors.tensor("logits").unwrap();
        let vocabulary = *logits.shape().last().unwrap();
        let all: Vec<f32> = logits
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let json = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        Self {
            prompt: prompt.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect(),
            logits: all[all.len() - vocabulary..].to_vec(),
            greedy: json["greedy"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap())
                .collect(),
        }
    }
}

/// What `umbel generate` prints for the stored prompt, with every logit.
fn generate(folder: &str, golden: &Golden, place: &[&str]) -> Value {
    let ids: Vec<_> = golden.prompt.iter().map(ToString::to_string).collect();
    let (ids, tokens) = (ids.join(","), GREEDY_TOKENS.to_string());
    let vocabulary = golden.logits.len().to_string();
    let mut arguments = vec!["generate", folder, "--prompt-ids", &ids];
    arguments.extend(["--max-tokens", &tokens, "--ignore-eos", "--json"]);
    arguments.extend(["--top-logits", &vocabulary]);
    arguments.extend(place);
    report(&umbel(&arguments))
}

fn check(golden: &Golden, report: &Value) {
    let tokens: Vec<_> =
        report["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(tokens, golden.greedy);
    assert_eq!(report["finish_reason"], "length");
    let first = report["top_logits"][0].as_array().unwrap();
    assert_eq!(first.len(), golden.logits.len());
    for pair in first {
        let id = usize::try_from(pair[0].as_u64().unwrap()).unwrap();
        let difference = (pair[1].as_f64().unwrap() - f64::from(golden.logits[id])).abs();
        assert!(difference <= LOGITS_TOLERANCE, "token {id} differs by {difference}");
    }
}

/// One process, then swarms of 1, 2 and 4 servers: the same tokens and the same logits, bit for
/// bit.
fn exact(name: &str) {
    let folder = checkpoint(name);
    let golden = Golden::read(&folder);
    let local = generate(&folder, &golden, &["--local"]);
    check(&golden, &local);
    for splits in [vec!["0..4"], vec!["0..1", "1..4"], vec!["0..1", "1..2", "2..3", "3..4"]] {
        let mut servers: Vec<Server> = Vec::new();
        for blocks in &splits {
            let mut arguments = vec![folder.as_str(), "--blocks", blocks];
            if let Some(first) = servers.first() {
                arguments.extend(["--join", first.address()]);
            }
            let server = serve(&arguments);
            servers.push(server);
        }
        let swarm = generate(&folder, &golden, &["--join", servers[servers.len() - 1].address()]);
        check(&golden, &swarm);
        assert_eq!(swarm["top_logits"], local["top_logits"], "{name} split in {splits:?}");
        let route = swarm["route"].as_array().unwrap();
        assert_eq!(route.len(), splits.len());
        for (hop, blocks) in route.iter().zip(&splits) {
            assert_eq!(format!("{}..{}", hop["start"], hop["end"]), **blocks);
        }
    }
}

#[test]
fn llama_is_exact_and_splitting_changes_no_bit() {
    exact("llama");
}

#[test]
fn llama_with_tied_embeddings_is_exact_and_splitting_changes_no_bit() {
    exact("llama-tied-mha");
}

#[test]
fn llama_with_scaled_rope_is_exact_and_splitting_changes_no_bit() {
    exact("llama3-rope");
}

#[test]
fn mistral_is_exact_and_splitting_changes_no_bit() {
    exact("mistral");
}

#[test]
fn qwen2_is_exact_and_splitting_changes_no_bit() {
    exact("qwen2");
}

#[test]
fn qwen3_is_exact_and_splitting_changes_no_bit() {
    exact("qwen3");
}

#[test]
fn mixtral_is_exact_and_splitting_changes_no_bit() {
    exact("mixtral");
}

#[test]
fn the_sparse_qwen3_is_exact_and_splitting_changes_no_bit() {
    exact("qwen3-moe");
    exact("qwen3-moe-raw");
}

#[test]
fn the_prompt_may_be_computed_in_one_step_in_chunks_or_token_by_token() {
    let folder = checkpoint("mistral");
    let golden = Golden::read(&folder);
    let server = serve(&[&folder]);
    let whole = generate(&folder, &golden, &["--join", server.address()]);
    check(&golden, &whole);
    for chunk in ["1", "5", "16", "36"] {
        for place in [["--join", server.address()].as_slice(), &["--local"]] {
            let arguments = [place, &["--prefill-chunk", chunk]].concat();
            let cut = generate(&folder, &golden, &arguments);
            assert_eq!(cut["top_logits"], whole["top_logits"], "{chunk} tokens a step, {place:?}");
        }
    }
}
