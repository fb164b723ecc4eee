//! How a training ends: early, by divergence, on a full disk, and where it is refused; and what it
//! leaves in its folder each time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use umbel_client::train::checkpoint::Checkpoint;
use umbel_engine::train::PeftFiles;
use umbel_shard::ModelConfig;
use umbel_tests::process::{Output, UmbelProcess, umbel_binary};
use umbel_tests::swarm::{checkpoint, serve, umbel};
use umbel_tests::workload::client_model;

const MODEL: &str = "llama";

/// Texts that begin alike, with ids each of which is three larger than the one before, and go on with
/// ids that nothing foretells.
fn texts(path: &Path, count: usize, noise: usize) {
    let line = |start: usize| {
        let pattern = (0..8).map(|place| (start * 7 + place * 3) % 190);
        let noise =
            (0..noise).map(|place| (start * start * 31 + place * (place + start) * 53) % 187);
        json!({ "token_ids": pattern.chain(noise).collect::<Vec<_>>() }).to_string()
    };
    let lines: Vec<_> = (0..count).map(line).collect();
    fs::write(path, lines.join("\n")).unwrap();
}

fn arguments(folder: &Path, out: &str, more: &[&str]) -> Vec<String> {
    let (data, out) = (folder.join("data.jsonl"), folder.join(out));
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let model = checkpoint(MODEL);
    let fixed = ["train", &model, "--data", data, "--out", out, "--rank", "4", "--batch", "6"];
    fixed.iter().chain(more).map(|&argument| argument.to_owned()).collect()
}

fn train(folder: &Path, out: &str, more: &[&str]) -> Output {
    let arguments = arguments(folder, out, more);
    umbel(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn config() -> ModelConfig {
    client_model(&checkpoint(MODEL)).unwrap().config().clone()
}

fn adapter(folder: &Path) -> PeftFiles {
    PeftFiles::read(folder, &config()).unwrap()
}

/// Steps of the checkpoint in a folder.
fn steps(folder: &Path) -> u64 {
    let path = folder.join("checkpoint.safetensors");
    Checkpoint::read(&path, &config()).unwrap().state.steps()
}

/// Pairs of a step and a number of it.
fn metrics(folder: &Path, key: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?))).collect()
}

#[test]
fn a_training_that_grows_worse_stops_and_keeps_its_best_adapter() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    // First it learns how all texts begin, and then by heart how those end that it sees.
    texts(&folder.join("data.jsonl"), 24, 12);
    let fast = ["--local", "--schedule", "constant", "--learning-rate", "0.02"];
    let early = [&fast[..], &["--epochs", "60", "--patience", "3"]].concat();
    train(folder, "early", &early).succeeded();
    let early_folder = folder.join("early");
    let validations = metrics(&early_folder, "validation_loss");
    let best = validations.iter().min_by(|one, other| one.1.total_cmp(&other.1)).unwrap().0;
    let (last, _) = *validations.last().unwrap();
    let epoch = validations[1].0;
    assert!(best > 0 && last == best + 3 * epoch, "{validations:?}");
    assert_eq!(steps(&early_folder), last);

    // Rates that do not fall do not depend on the number of epochs, so that a training may end there.
    let epochs = (best / epoch).to_string();
    train(folder, "short", &[&fast[..], &["--epochs", &epochs]].concat()).succeeded();
    let kept = adapter(&early_folder);
    assert!(kept == adapter(&folder.join("short")), "the best adapter is kept, not the last");

    // It has not forgotten that it was over.
    train(folder, "early", &[&early[..], &["--resume"]].concat()).succeeded();
    assert_eq!((steps(&early_folder), adapter(&early_folder)), (last, kept));
    let card = fs::read_to_string(early_folder.join("README.md")).unwrap();
    for part in ["library_name: peft", "base_model: \"llama\"", &format!("steps: {best} of {last}")]
    {
        assert!(card.contains(part), "{part} in {card}");
    }
    let plot = fs::read_to_string(early_folder.join("loss.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("validation"));

    let nothing_to_look_at = ["--local", "--patience", "1", "--validation", "0"];
    train(folder, "none", &nothing_to_look_at).refused("--patience looks at texts");
}

#[test]
fn a_training_that_begins_to_choose_does_so_among_what_it_keeps() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 24, 12);
    let long = ["--local", "--schedule", "constant", "--learning-rate", "0.02", "--epochs", "24"];
    train(folder, "out", &long).succeeded();
    let out = folder.join("out");
    let validations = metrics(&out, "validation_loss");
    let best = validations.iter().min_by(|one, other| one.1.total_cmp(&other.1)).unwrap().0;
    let (last, _) = *validations.last().unwrap();
    assert!(best < last, "it has grown worse: {validations:?}");
    let output = train(folder, "out", &[&long[..], &["--resume", "--patience", "2"]].concat());
    output.succeeded();
    assert!(output.stderr.contains("the best validation so far was not kept"), "{}", output.stderr);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains(&format!("steps: {last} of {last}")), "{card}");
}

#[test]
fn two_trainings_have_no_folder_in_common() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 20, 0);
    let long = ["--local", "--epochs", "10000"];
    let training = begun(folder, "out", &long);
    for more in [&[][..], &["--resume"]] {
        let second = train(folder, "out", &[&long[..], more].concat());
        second.refused("another process uses the folder: stop it, or name another folder");
    }
    assert_eq!(training.terminate().unwrap().status.code(), Some(143));
    assert!(steps(&folder.join("out")) > 0);
}

#[test]
fn a_training_that_diverges_keeps_a_state_from_which_it_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 20, 0);
    let long = ["--local", "--warmup-steps", "0", "--checkpoint-every", "1"];
    let wild = [&long[..], &["--learning-rate", "1e30", "--clip", "1e30"]].concat();
    let calm = [&long[..], &["--resume", "--learning-rate", "0.01"]].concat();
    train(folder, "step", &wild).refused("the training has diverged");
    // The first step leads to values with which no loss is a number, and shows that those before it
    // were good.
    assert_eq!(steps(&folder.join("step")), 0);
    assert!(!folder.join("step/adapter_model.safetensors").exists());
    train(folder, "step", &[&wild[..], &["--resume"]].concat()).refused("step 2 was not taken");
    let other_rank = [&calm[..], &["--dropout", "0.1"]].concat();
    train(folder, "step", &other_rank).refused("another dropout");
    train(folder, "step", &calm).succeeded();
    assert_eq!(steps(&folder.join("step")), 9);
    let losses = metrics(&folder.join("step"), "loss");
    assert!(losses.iter().all(|(_, loss)| loss.is_finite()), "{losses:?}");
    let unasked = [&long[..], &["--resume", "--learning-rate", "0.02"]].concat();
    train(folder, "step", &unasked).refused("another learning rate");

    // A validation sees it too.
    let watched = [&wild[..], &["--validate-every", "1"]].concat();
    train(folder, "validation", &watched).refused("the training has diverged");
    assert_eq!(steps(&folder.join("validation")), 0);
}

/// Trains where no file may grow beyond so many blocks of 512 bytes.
fn train_within(folder: &Path, out: &str, blocks: u32, more: &[&str]) -> std::process::Output {
    // A process that goes beyond is killed unless it would rather be told.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(umbel_binary().unwrap());
    command.arg("--cache-dir").arg(folder.join("cache"));
    command.args(arguments(folder, out, more)).output().unwrap()
}

#[test]
fn a_disk_that_is_full_costs_a_training_nothing_of_what_was_written() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 20, 0);
    let calm = ["--local", "--learning-rate", "0.01", "--checkpoint-every", "1"];
    train(folder, "whole", &calm).succeeded();
    let size = fs::metadata(folder.join("whole/checkpoint.safetensors")).unwrap().len();

    // A training that has come to a checkpoint.
    let out = folder.join("full");
    let wild = ["--learning-rate", "1e30", "--clip", "1e30", "--warmup-steps", "0"];
    let fixed = ["--local", "--checkpoint-every", "1"];
    train(folder, "full", &[&fixed[..], &wild].concat()).refused("diverged");
    let before = fs::read(out.join("checkpoint.safetensors")).unwrap();
    let metrics_before = metrics(&out, "loss").len();

    // Neither a checkpoint nor the adapter, which is a third of it, has room; the metrics have.
    let blocks = u32::try_from(size / 512 / 6).unwrap();
    let again = [&calm[..], &["--resume", "--clip", "1e30", "--warmup-steps", "0"]].concat();
    let output = train_within(folder, "full", blocks, &again);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("going on without a checkpoint of this step"), "{stderr}");
    assert!(stderr.contains("once there is room, --resume writes it"), "{stderr}");
    assert_eq!(fs::read(out.join("checkpoint.safetensors")).unwrap(), before);
    let files: Vec<_> = fs::read_dir(&out).unwrap().map(|file| file.unwrap().file_name()).collect();
    let is_part = |file: &std::ffi::OsString| file.to_string_lossy().ends_with("part");
    assert!(!files.iter().any(is_part), "no half file takes what room there is: {files:?}");
    // It went on to its end, in memory.
    assert_eq!(metrics(&out, "loss").len(), metrics_before + 9);

    // With not even room for a line of the metrics.
    let output = train_within(folder, "full", 0, &again);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("metrics cannot be written"), "{stderr}");
    assert_eq!(fs::read(out.join("checkpoint.safetensors")).unwrap(), before);
    assert_eq!(metrics(&out, "loss").len(), metrics_before + 9, "and no half line");

    train(folder, "full", &again).succeeded();
    let free = ["--local", "--learning-rate", "0.01", "--clip", "1e30", "--warmup-steps", "0"];
    train(folder, "free", &free).succeeded();
    assert!(adapter(&out) == adapter(&folder.join("free")), "nothing was lost");
}

/// A training that has taken its first step.
fn begun(folder: &Path, out: &str, more: &[&str]) -> UmbelProcess {
    let mut training = UmbelProcess::begin(&arguments(folder, out, more)).unwrap();
    assert!(training.wait_for_stderr("step 1/"), "{}", training.stderr());
    training
}

#[test]
fn a_training_that_is_interrupted_keeps_the_step_under_way_and_goes_on_behind_it() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 20, 0);
    let mut server = serve(&[&checkpoint(MODEL)]);
    let address = server.address().to_owned();
    let join = ["--join", &address, "--epochs", "20"];
    train(folder, "whole", &join).succeeded();

    let mut training = begun(folder, "stopped", &join);
    // So that a step is under way.
    server.freeze();
    training.interrupt();
    assert!(training.wait_for_stderr("stopping behind the step under way"));
    server.thaw();
    let ended = training.wait().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(ended.stderr.contains("the same with --resume goes on"), "{}", ended.stderr);
    let out = folder.join("stopped");
    let taken = metrics(&out, "loss");
    assert_eq!(steps(&out), taken.last().unwrap().0, "its last step is in the checkpoint");
    assert!(taken.len() < 60, "it was not over");
    train(folder, "stopped", &[&join[..], &["--resume"]].concat()).succeeded();
    assert_eq!(metrics(&out, "loss"), metrics(&folder.join("whole"), "loss"));
    assert!(adapter(&out) == adapter(&folder.join("whole")));

    // A step that will not end holds nobody who asks twice.
    let mut training = begun(folder, "twice", &join);
    server.freeze();
    training.interrupt();
    assert!(training.wait_for_stderr("stopping behind the step under way"));
    assert_eq!(training.terminate().unwrap().status.code(), Some(130));
    server.thaw();
    server.assert_no_errors();

    let endless = begun(folder, "endless", &["--local", "--epochs", "10000"]);
    assert_eq!(endless.terminate().unwrap().status.code(), Some(143));
    assert!(steps(&folder.join("endless")) > 0);
}

#[test]
fn a_training_that_no_server_has_room_for_says_what_takes_less() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    texts(&folder.join("data.jsonl"), 4, 0);
    let server = serve(&[&checkpoint(MODEL), "--memory-bytes", "96000000"]);
    let join = ["--join", server.address(), "--epochs", "1"];
    let large = [&join[..], &["--microbatch-tokens", "65536"]].concat();
    let output = train(folder, "large", &large);
    output.refused("no server has room for this training");
    output.refused("a lower rank, fewer target modules or fewer tokens at once");
    // What counts is how long the texts are, and not how long they might be.
    train(folder, "small", &[&join[..], &["--max-tokens", "65536"]].concat()).succeeded();
    server.assert_no_errors();
}

#[test]
fn adapters_that_the_model_has_no_place_for_are_refused_with_what_differs() {
    let scratch = tempfile::tempdir().unwrap();
    let stored = Path::new(&checkpoint(MODEL)).join("lora");
    let ask = |model: &str, change: &dyn Fn(&mut Value)| {
        let folder = scratch.path().join("adapter");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(
            stored.join("adapter_model.safetensors"),
            folder.join("adapter_model.safetensors"),
        )
        .unwrap();
        let file = fs::read(stored.join("adapter_config.json")).unwrap();
        let mut config = serde_json::from_slice(&file).unwrap();
        change(&mut config);
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let adapter = folder.to_str().unwrap();
        let prompt = ["--prompt-ids", "1,2", "--max-tokens", "1", "--local", "--adapter", adapter];
        umbel(&[&["generate", &checkpoint(model)][..], &prompt].concat())
    };
    ask(MODEL, &|_| ()).succeeded();
    let rank = |config: &mut Value| config["r"] = (config["r"].as_u64().unwrap() * 2).into();
    ask(MODEL, &rank).refused("of another rank than its configuration says?");
    let targets = |config: &mut Value| config["target_modules"] = json!(["embed_tokens"]);
    ask(MODEL, &targets).refused("\"embed_tokens\" is not among the target modules q_proj");
    let fewer = |config: &mut Value| config["target_modules"] = json!(["q_proj"]);
    ask(MODEL, &fewer).refused("is it for another model");
    ask("llama-tied-mha", &|_| ()).refused("is it for another model");
}
