//! `umbel train --method ptune` and `deep-ptune`, and what is asked with the result.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_engine::train::{Adapter, AdapterConfig, PeftFiles};
use umbel_protocol::Span;
use umbel_tests::process::{Output, umbel_binary};
use umbel_tests::swarm::{checkpoint, report, serve, umbel};
use umbel_tests::workload::client_model;

/// How long a training may take until it has taken some steps, on a busy machine.
const STEPS_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Texts with a pattern that can be learned: each id is followed by the one that is 3 larger.
fn texts(path: &Path) {
    let line = |start: usize| {
        let ids: Vec<_> = (0..10 + start % 3).map(|place| (start * 7 + place * 3) % 190).collect();
        json!({ "token_ids": ids }).to_string()
    };
    fs::write(path, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
}

fn arguments(folder: &Path, out: &str, more: &[&str]) -> Vec<String> {
    let (data, out) = (folder.join("data.jsonl"), folder.join(out));
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let model = checkpoint("llama");
    let fixed = ["train", &model, "--data", data, "--out", out, "--batch", "6"];
    fixed.iter().chain(more).map(|&argument| argument.to_owned()).collect()
}

fn train(folder: &Path, out: &str, more: &[&str]) -> Output {
    let arguments = arguments(folder, out, more);
    umbel(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn files(folder: &Path) -> PeftFiles {
    let config = client_model(&checkpoint("llama")).unwrap().config().clone();
    PeftFiles::read(folder, &config).unwrap()
}

/// The last number of each step.
fn metrics(folder: &Path, key: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let numbers = lines.filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?)));
    numbers.collect::<std::collections::BTreeMap<_, _>>().into_iter().collect()
}

/// The largest logits of some tokens that follow a prompt.
fn ask(more: &[&str]) -> Value {
    let model = checkpoint("llama");
    let fixed = ["generate", &model, "--prompt-ids", "7,10,13,16", "--max-tokens", "6"];
    let output =
        umbel(&[&fixed[..], &["--ignore-eos", "--json", "--top-logits", "9"], more].concat());
    report(&output)["top_logits"].clone()
}

#[test]
fn a_swarm_learns_the_prompt_of_one_process_and_answers_with_it() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"));
    let model = checkpoint("llama");
    let first = serve(&[&model, "--blocks", "0..2"]);
    let second = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    for method in ["ptune", "deep-ptune"] {
        let learns = ["--method", method, "--prompt-tokens", "6", "--learning-rate", "0.01"];
        let learns = [&learns[..], &["--epochs", "20"]].concat();
        let (alone, swarm) = (format!("{method}-alone"), format!("{method}-swarm"));
        train(folder, &alone, &[&learns[..], &["--local"]].concat()).succeeded();
        let join = [&learns[..], &["--join", first.address(), "--routes", "2"]].concat();
        train(folder, &swarm, &join).succeeded();
        let (alone, swarm) = (folder.join(alone), folder.join(swarm));
        assert!(files(&alone) == files(&swarm), "{method}: every bit is the same");
        for key in ["loss", "validation_loss", "gradient_norm"] {
            assert_eq!(metrics(&alone, key), metrics(&swarm, key), "{method}: {key}");
        }
        let losses = metrics(&swarm, "validation_loss");
        assert!(losses.last().unwrap().1 < losses[0].1 - 0.05, "{method}: {losses:?}");
        let card = fs::read_to_string(swarm.join("README.md")).unwrap();
        assert!(card.contains(&format!("- method: {method}\n")), "{card}");
        assert_eq!(card.contains("With PEFT"), method == "ptune", "{card}");

        let adapter = swarm.to_str().unwrap();
        let learned = ask(&["--local", "--adapter", adapter]);
        assert_eq!(ask(&["--join", first.address(), "--adapter", adapter]), learned, "{method}");
        assert_ne!(ask(&["--local"]), learned, "{method}");
        let thin = ["generate", &model, "--join", first.address(), "--adapter", adapter];
        let thin = umbel(&[&thin[..], &["--prompt-ids", "7", "--thin"]].concat());
        thin.refused("servers embed tokens alone");
    }
    [&first, &second].iter().for_each(|server| server.assert_no_errors());
}

#[test]
fn a_training_that_was_killed_goes_on_with_the_same_losses() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"));
    for method in ["ptune", "deep-ptune"] {
        let learns = ["--local", "--method", method, "--prompt-tokens", "3", "--epochs", "100"];
        let learns = [&learns[..], &["--checkpoint-every", "2"]].concat();
        let (whole, killed) =
            (folder.join(format!("{method}-1")), folder.join(format!("{method}-2")));
        train(folder, &format!("{method}-1"), &learns).succeeded();
        let out = format!("{method}-2");
        let mut command = Command::new(umbel_binary().unwrap());
        let mut begun = command.args(arguments(folder, &out, &learns)).spawn().unwrap();
        let deadline = Instant::now() + STEPS_TIMEOUT;
        while !killed.join("checkpoint.safetensors").exists() {
            assert!(Instant::now() < deadline, "no checkpoint is written");
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        begun.kill().unwrap();
        assert!(begun.wait().unwrap().code().is_none(), "it was killed before its end");
        let matrices = ["--local", "--epochs", "100", "--resume"];
        train(folder, &out, &matrices).refused("of a training with another");
        train(folder, &out, &[&learns[..], &["--resume"]].concat()).succeeded();
        for key in ["loss", "validation_loss"] {
            assert_eq!(metrics(&killed, key), metrics(&whole, key), "{method}: {key}");
        }
        assert!(files(&killed) == files(&whole), "{method}: the same to the last bit");
    }
}

#[test]
fn prompts_that_cannot_be_learned_or_asked_with_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"));
    let learn = |more: &[&str]| train(folder, "out", &[&["--local"], more].concat());
    for tokens in ["0", "257"] {
        learn(&["--method", "ptune", "--prompt-tokens", tokens]).refused("--prompt-tokens");
    }
    learn(&["--prompt-tokens", "4"]).refused("--prompt-tokens means nothing with --method lora");
    let mixed = learn(&["--method", "deep-ptune", "--dropout", "0.1"]);
    mixed.refused("--dropout means nothing with --method deep-ptune");
    let modules = learn(&["--method", "ptune", "--target-modules", "q_proj"]);
    modules.refused("--target-modules means nothing with --method ptune");
    let context = client_model(&checkpoint("llama")).unwrap().config().context_tokens;
    assert!(context <= 256, "a prompt may fill the context of {context} tokens");
    let full = learn(&["--method", "ptune", "--prompt-tokens", &(context - 1).to_string()]);
    full.refused("leaves no room for a text");
    // The model of the tests has no tokenizer.
    let worded = learn(&["--method", "ptune", "--prompt-text", "ahoy"]);
    worded.refused("--prompt-text");
    assert!(!folder.join("out/checkpoint.safetensors").exists(), "nothing was learned");

    // Of a model with wider hidden states.
    let other = client_model(&checkpoint("llama")).unwrap();
    let mut wide = other.config().clone();
    wide.hidden_size *= 2;
    for block_prompt_tokens in [0, 2] {
        let config =
            AdapterConfig { prompt_tokens: 2, block_prompt_tokens, ..AdapterConfig::default() };
        let all = Span::new(0, wide.block_count).unwrap();
        let adapter = Adapter::begin(config, &wide, all, 0).unwrap();
        adapter.to_peft().write(&folder.join("wide")).unwrap();
        let wide = folder.join("wide");
        let model = checkpoint("llama");
        let ask = ["generate", &model, "--local", "--prompt-ids", "7", "--adapter"];
        let refusal = umbel(&[&ask[..], &[wide.to_str().unwrap()]].concat());
        refusal.refused("is it for another model");
    }
}
