//! `umbel train`, in one process and over a swarm, to its end and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use umbel_client::train::checkpoint::Checkpoint;
use umbel_client::train::data::Example;
use umbel_client::train::prompt;
use umbel_client::train::run::{Run, RunSettings};
use umbel_client::train::schedule::{Decay, Schedule};
use umbel_client::train::{Blocks, LocalBlocks, Trainer, TrainerSettings};
use umbel_client::{ClientModel, Device};
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, PeftFiles, TargetModule, TrainingState};
use umbel_protocol::Span;
use umbel_tests::process::Output;
use umbel_tests::swarm::{checkpoint, report, serve, umbel};
use umbel_tests::workload::client_model;

/// Texts with a pattern that can be learned: each id is followed by the one that is 3 larger.
fn texts(path: &Path) {
    texts_from(path, 0);
}

/// Others that are as many and as long.
fn texts_from(path: &Path, first: usize) {
    let line = |start: usize| {
        let ids: Vec<_> =
            (0..10 + start % 3).map(|place| (first + start * 7 + place * 3) % 190).collect();
        json!({ "token_ids": ids }).to_string()
    };
    let lines: Vec<_> = (0..20).map(line).collect();
    fs::write(path, lines.join("\n")).unwrap();
}

fn train(folder: &Path, out: &str, more: &[&str]) -> Output {
    train_model("llama", folder, out, more)
}

fn train_model(model: &str, folder: &Path, out: &str, more: &[&str]) -> Output {
    let (data, out) = (folder.join("data.jsonl"), folder.join(out));
    let model = checkpoint(model);
    let mut arguments = vec!["train", &model, "--data", data.to_str().unwrap()];
    arguments.extend(["--out", out.to_str().unwrap(), "--rank", "4", "--batch", "6"]);
    arguments.extend(["--epochs", "4"]);
    for (name, value) in [("--learning-rate", "0.01"), ("--dropout", "0.05")] {
        if !more.contains(&name) {
            arguments.extend([name, value]);
        }
    }
    arguments.extend(more);
    umbel(&arguments)
}

fn metrics(folder: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line[key].as_f64()).collect()
}

#[test]
fn a_swarm_learns_what_one_process_does_and_a_finished_training_is_not_begun_again() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"));
    train(folder, "alone", &["--local"]).succeeded();
    let model = checkpoint("llama");
    let first = serve(&[&model, "--blocks", "0..2"]);
    let second = serve(&[&model, "--blocks", "2..4", "--join", first.address()]);
    train(folder, "swarm", &["--join", first.address()]).succeeded();
    let files = |name: &str| {
        let config = client_model(&model).unwrap().config().clone();
        PeftFiles::read(&folder.join(name), &config).unwrap()
    };
    assert!(files("alone") == files("swarm"), "every bit of the adapters is the same");
    for key in ["loss", "validation_loss", "gradient_norm", "learning_rate"] {
        let alone = metrics(&folder.join("alone"), key);
        assert_eq!(alone, metrics(&folder.join("swarm"), key), "{key}");
    }
    let losses = metrics(&folder.join("swarm"), "validation_loss");
    // Before the first step and behind each of four epochs.
    assert_eq!(losses.len(), 5);
    assert!(losses[4] < losses[0], "it learns: {losses:?}");
    [&first, &second].iter().for_each(|server| server.assert_no_errors());

    // What was learned shows in the answers, wherever they are computed.
    let ask = |more: &[&str]| {
        let prompt =
            ["generate", &model, "--prompt-ids", "7,10,13,16", "--max-tokens", "6", "--ignore-eos"];
        let output = umbel(&[&prompt[..], &["--json", "--top-logits", "9"], more].concat());
        report(&output)["top_logits"].clone()
    };
    let adapter = folder.join("swarm");
    let adapter = adapter.to_str().unwrap();
    let learned = ask(&["--local", "--adapter", adapter]);
    assert_eq!(ask(&["--join", first.address(), "--adapter", adapter]), learned);
    assert_ne!(ask(&["--local"]), learned);
    let untrained = ask(&["--join", first.address()]);
    assert_eq!(untrained, ask(&["--local"]), "nobody else is answered with it");

    let before = files("alone");
    train(folder, "alone", &["--local"]).refused("--resume goes on with it");
    let other = train(folder, "alone", &["--local", "--resume", "--seed", "4"]);
    other.refused("another seed");
    let other = train(folder, "alone", &["--local", "--resume", "--rank-stabilized"]);
    other.refused("another rank stabilized");
    texts_from(&folder.join("data.jsonl"), 1);
    train(folder, "alone", &["--local", "--resume"]).refused("another data set");
    texts(&folder.join("data.jsonl"));
    train(folder, "alone", &["--local", "--resume"]).succeeded();
    assert!(files("alone") == before, "there was no step left");
}

#[test]
fn a_model_with_experts_learns_over_a_swarm_what_it_learns_in_one_process() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"));
    let model = checkpoint("qwen3-moe");
    let first = serve(&[&model, "--blocks", "0..3"]);
    let second = serve(&[&model, "--blocks", "3..4", "--join", first.address()]);
    let train = |out, more: &[&str]| train_model("qwen3-moe", folder, out, more);
    train("alone", &["--local"]).succeeded();
    train("swarm", &["--join", first.address()]).succeeded();
    let config = client_model(&model).unwrap().config().clone();
    let files = |name: &str| PeftFiles::read(&folder.join(name), &config).unwrap();
    assert!(files("alone") == files("swarm"), "every bit of the adapters is the same");
    let losses = metrics(&folder.join("swarm"), "loss");
    assert!(losses[11] < losses[0], "it learns: {losses:?}");
    let in_experts = train("experts", &["--local", "--target-modules", "q_proj,up_proj"]);
    in_experts.refused("the model has experts in the place of up_proj");
    let in_experts =
        train("experts", &["--join", first.address(), "--target-modules", "q_proj,up_proj"]);
    in_experts.refused("the model has experts in the place of up_proj");
    [&first, &second].iter().for_each(|server| server.assert_no_errors());
}

/// What implementations in binary32 may differ by over four blocks, in logits of about 1.
const LOGIT_ERROR_MAX: f64 = 1e-4;

#[test]
fn an_adapter_of_peft_gives_the_stored_logits_over_a_swarm() {
    let model = checkpoint("llama");
    let tensors = |path: &str, name: &str| {
        let bytes = fs::read(Path::new(&model).join(path)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.tensor(name).unwrap().data().to_vec()
    };
    let ids = tensors("golden.safetensors", "input_ids");
    let ids: Vec<_> =
        ids.as_chunks().0.iter().map(|&id| i64::from_le_bytes(id).to_string()).collect();
    let logits = tensors("lora/golden.safetensors", "logits");
    let logits: Vec<_> =
        logits.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let last = &logits[logits.len() / ids.len() * (ids.len() - 1)..];

    let first = serve(&[&model, "--blocks", "0..3"]);
    let second = serve(&[&model, "--blocks", "3..4", "--join", first.address()]);
    let adapter = Path::new(&model).join("lora");
    let output = umbel(&[
        "generate",
        &model,
        "--join",
        first.address(),
        "--adapter",
        adapter.to_str().unwrap(),
        "--prompt-ids",
        &ids.join(","),
        "--max-tokens",
        "1",
        "--json",
        "--top-logits",
        "20",
    ]);
    let found = report(&output)["top_logits"][0].as_array().unwrap().clone();
    assert_eq!(found.len(), 20);
    for pair in found {
        let (id, logit) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
        let stored = f64::from(last[usize::try_from(id).unwrap()]);
        assert!((logit - stored).abs() < LOGIT_ERROR_MAX, "{id}: {logit}, not {stored}");
    }
    [&first, &second].iter().for_each(|server| server.assert_no_errors());
}

/// What `tests/python/peft_adapter.py` has stored: four adapters that were learned here and three that
/// PEFT has written, with the logits that PEFT computes with each.
#[test]
fn adapters_of_either_have_the_logits_that_peft_has_stored() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/training/peft");
    let model = checkpoint("llama");
    let mut compared = 0;
    for adapter in fs::read_dir(folder).unwrap() {
        let adapter = adapter.unwrap().path();
        let stored = fs::read(adapter.join("logits.json")).unwrap();
        let stored: Vec<Value> = serde_json::from_slice(&stored).unwrap();
        for case in stored {
            let ids: Vec<_> =
                case["prompt"].as_array().unwrap().iter().map(Value::to_string).collect();
            let ids = ids.join(",");
            let fixed = ["generate", &model, "--local", "--max-tokens", "1", "--json"];
            let more = ["--top-logits", "288", "--prompt-ids", &ids, "--adapter"];
            let adapter = adapter.to_str().unwrap();
            let output = umbel(&[&fixed[..], &more[..], &[adapter]].concat());
            let found = report(&output)["top_logits"][0].as_array().unwrap().clone();
            let expected = case["logits"].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for pair in found {
                let (id, logit) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
                let stored = expected[usize::try_from(id).unwrap()].as_f64().unwrap();
                let difference = (logit - stored).abs();
                assert!(difference < LOGIT_ERROR_MAX, "{adapter}, {id}: {logit}, not {stored}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 7 * 3);
}

#[test]
fn what_cannot_be_learned_is_refused_with_what_is_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let data = folder.join("data.jsonl");
    train(folder, "out", &["--local"]).refused("data.jsonl");
    // Before a model is looked for.
    let missing =
        ["train", "/nowhere", "--data", data.to_str().unwrap(), "--out", "out", "--local"];
    umbel(&missing).refused("data.jsonl");
    fs::write(&data, "{\"token_ids\": [1, 2]}\n{\"text\": \"a\"}\n{}\n").unwrap();
    let output = train(folder, "out", &["--local"]);
    output.refused("2 broken lines: line 2: the model has no tokenizer");
    fs::write(&data, "{\"token_ids\": [1, 100000]}\n").unwrap();
    let output = train(folder, "out", &["--local", "--validation", "0"]);
    output.refused("line 1: token 100000 is not in the model's vocabulary");
    texts(&data);
    train(folder, "out", &[]).refused("--join ADDR");
    train(folder, "out", &["--local", "--dropout", "1"]).refused("dropout");
    train(folder, "none", &["--local", "--resume"]).refused("cannot go on from");
    let wild = ["--local", "--learning-rate", "1e30", "--clip", "1e30", "--warmup-steps", "0"];
    train(folder, "wild", &wild).refused("diverged");
    assert!(folder.join("wild/checkpoint.safetensors").exists(), "the last good state is kept");
}

/// A training of seven steps.
fn run(state: TrainingState, sequences: u64) -> Run {
    let model = client_model(&checkpoint("llama")).unwrap();
    let blocks = LocalBlocks::load(model.shard(), Device::shared()).unwrap();
    let settings = TrainerSettings { clip: 1.0, seed: 3, microbatch_tokens: 16 };
    let trainer = Trainer::new(Arc::clone(&model), Blocks::Local(blocks), state, settings);
    let text =
        |start: u32| Example::of_text((0..9).map(|place| (start * 5 + place) % 150).collect());
    let settings = RunSettings { epochs: 3, batch: 3, seed: 5 };
    let texts: Vec<_> = (0..7).map(text).collect();
    let decay = Decay::Cosine;
    let steps = settings.steps(texts.len());
    let schedule = Schedule { learning_rate: 0.02, warmup_steps: 2, steps, decay };
    Run::new(trainer.after_sequences(sequences), (texts, Vec::new()), settings, schedule)
}

async fn losses(run: &mut Run, steps: usize) -> Vec<f64> {
    let mut losses = Vec::new();
    while losses.len() < steps
        && let Some(step) = run.next().await.unwrap()
    {
        losses.push(step.report.loss);
    }
    losses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_is_resumed_has_the_losses_of_one_that_was_not_interrupted() {
    let model = client_model(&checkpoint("llama")).unwrap();
    let config = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        rank_stabilized: false,
        dropout: 0.2,
        target_modules: vec![TargetModule::Query, TargetModule::Up],
        ..AdapterConfig::default()
    };
    let all = Span::new(0, model.config().block_count).unwrap();
    let matrices = Adapter::begin(config, model.config(), all, 1).unwrap();
    assert_resumed_alike(&model, matrices).await;
    for deep in [false, true] {
        assert_resumed_alike(&model, prompt::begin(&model, (4, deep), &[], 1).unwrap()).await;
    }
}

async fn assert_resumed_alike(model: &ClientModel, adapter: Adapter) {
    let state = TrainingState::new(adapter, AdamW::default());
    let expected = losses(&mut run(state.clone(), 0), usize::MAX).await;
    assert_eq!(expected.len(), 9, "three epochs of three steps");
    assert!(expected[8] < expected[0], "it learns: {expected:?}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for interrupted in [1, 3, 5] {
        let mut first = run(state.clone(), 0);
        let mut found = losses(&mut first, interrupted).await;
        let (state, sequences) = (first.trainer().state().clone(), first.trainer().sequences());
        let name = "llama".to_owned();
        Checkpoint { state, model: name, sequences, other: Value::Null }.write(&path).unwrap();
        let Checkpoint { state, sequences, .. } = Checkpoint::read(&path, model.config()).unwrap();
        found.extend(losses(&mut run(state, sequences), usize::MAX).await);
        assert_eq!(found, expected, "interrupted behind step {interrupted}");
    }
}
