//! Blocks on a GPU, over the emulated driver of `tests/gpu/emulator`, which runs the same kernels on the
//! processor: that they are exact, that a server uses them, and what it does when the device fails.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{ModelConfig, WeightType};
use umbel_tests::swarm::{Server, checkpoint, report, serve, serve_in, try_serve_in, umbel};
use umbel_tests::training::peft::StoredStep;
use umbel_tests::training::{Lesson, STEPS, join, remote, start};

/// The checkpoints of the families that there are.
const FAMILIES: [&str; 9] = [
    "llama",
    "llama-tied-mha",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3-moe",
    "qwen3-moe-raw",
];

/// Those of them that have experts.
const SPARSE: [&str; 3] = ["mixtral", "qwen3-moe", "qwen3-moe-raw"];

/// Where the emulated driver is, built once for all tests.
static DRIVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-driver");
    let built = Command::new(root.join("gpu/emulator/build.sh"))
        .arg(root.join("../engine/cuda"))
        .arg(&out)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    out
});

fn driver() -> &'static str {
    DRIVER.to_str().unwrap()
}

/// A server of the tiny Llama on the emulated GPU, which these variables describe further.
fn gpu_server(variables: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Server> {
    gpu_server_of("llama", variables, arguments)
}

/// As `gpu_server`, of some checkpoint.
fn gpu_server_of(
    model: &str,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> anyhow::Result<Server> {
    let folder = checkpoint(model);
    let environment = [&[("LD_LIBRARY_PATH", driver())], variables].concat();
    // The emulated device is small.
    let cache = ["--kv-tokens", "1024"];
    let cache = if arguments.contains(&"--kv-tokens") { &[][..] } else { &cache };
    let device = ["--device", "cuda"];
    let device = if arguments.contains(&"--device") { &[][..] } else { &device };
    try_serve_in(&environment, &[&[folder.as_str()], cache, device, arguments].concat())
}

/// What `umbel generate` reports of the stored prompt, computed by a swarm, and what is stored.
fn generated(address: &str) -> (Value, Value) {
    generated_as(address, "f32")
}

/// As `generated`, with keys and values kept in `cache`.
fn generated_as(address: &str, cache: &str) -> (Value, Value) {
    generated_with(address, &["--kv", cache])
}

/// As `generated`, asked for in some way.
fn generated_with(address: &str, how: &[&str]) -> (Value, Value) {
    generated_of("llama", address, how)
}

/// As `generated_with`, of some checkpoint.
fn generated_of(model: &str, address: &str, how: &[&str]) -> (Value, Value) {
    let folder = checkpoint(model);
    let stored = std::fs::read_to_string(Path::new(&folder).join("golden.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let prompt = stored_prompt(&folder);
    let arguments = ["generate", &folder, "--prompt-ids", &prompt, "--max-tokens", "24"];
    // An emulated GPU takes its time until it serves.
    let more = ["--ignore-eos", "--json", "--patience", "90", "--join", address];
    (report(&umbel(&[&arguments[..], &more, how].concat())), stored["greedy"].clone())
}

fn stored_prompt(folder: &str) -> String {
    let bytes = std::fs::read(Path::new(folder).join("golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = tensors.tensor("input_ids").unwrap();
    let ids = ids.data().chunks_exact(8);
    let ids = ids.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()).to_string());
    ids.collect::<Vec<_>>().join(",")
}

/// Every weight type, odd shapes and every family; see the program for what is compared.
#[test]
fn a_gpu_gives_what_the_processor_gives_and_the_same_bits_each_time() {
    let families = FAMILIES.map(checkpoint);
    // Two types, and all shapes in two types, also with keys and values in 8 bits; what is long; and with
    // experts all types, shapes in two types, and what is long.
    let sparse = 11 + 5 * 2 + 2 * 3 + 2;
    let dense = 11 + 2 + 1 + 6 * 2 * 2 + 4;
    assert_eq!(compared("80", &families), dense + sparse + FAMILIES.len());
}

/// Devices of this capability have matrix units of their own for many tokens.
#[test]
fn a_newer_gpu_gives_the_same_bits_each_time() {
    let types = ["--types", "bf16,q4_k,q8_0"].map(str::to_owned);
    let sparse = 3 + 5 + 2 * 2 + 1;
    assert_eq!(compared("90", &types), 3 + 1 + 1 + 6 * 2 + 4 + sparse);
}

/// What a pass had begun when it failed is done before the next one begins.
#[test]
fn a_pass_that_cannot_go_on_changes_none_behind_it() {
    let checked = Command::new(env!("CARGO_BIN_EXE_umbel-gpu-check"))
        .arg("--refused")
        .env("LD_LIBRARY_PATH", driver())
        .env("UMBEL_EMULATED_REFUSE_EVERY", "23")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// How many models were compared on a device of a capability. Its memory is small, so that what fills
/// it is soon done.
fn compared(capability: &str, arguments: &[String]) -> usize {
    let checked = Command::new(env!("CARGO_BIN_EXE_umbel-gpu-check"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", driver())
        .env("UMBEL_EMULATED_CAPABILITY", capability)
        .env("UMBEL_EMULATED_MEMORY", "400000000")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{}{said}", String::from_utf8_lossy(&checked.stdout));
    String::from_utf8_lossy(&checked.stdout).lines().count()
}

/// What measures a real device runs at all.
#[test]
fn the_benchmark_measures_every_pass() {
    let measured = Command::new(env!("CARGO_BIN_EXE_umbel-gpu-bench"))
        .args(["--tiny", "--blocks", "1", "--types", "q4_k", "--bandwidth", "1e9"])
        .args(["--kernels", concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/cuda/ptx")])
        .env("LD_LIBRARY_PATH", driver())
        .output()
        .unwrap();
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let table = String::from_utf8_lossy(&measured.stdout).into_owned();
    assert_eq!(table.matches("| Q4_K |").count(), 5, "{table}");
}

/// The kernels' order of threads is the device's own affair.
#[test]
fn a_server_on_a_gpu_gives_the_stored_tokens_beside_one_on_a_processor() {
    let first = gpu_server(&[("UMBEL_EMULATED_SEED", "1")], &["--blocks", "0..3"]).unwrap();
    let folder = checkpoint("llama");
    let second = serve(&[&folder, "--blocks", "3..4", "--join", first.address()]);
    let (report, stored) = generated(second.address());
    assert_eq!(report["token_ids"], stored);
    // With keys and values in 8 bits on both, it may be another text.
    let (report, _) = generated_as(second.address(), "q8");
    assert_eq!(report["token_ids"].as_array().unwrap().len(), 24);
    first.assert_no_errors();
    assert!(first.stderr().contains("computing on the GPU"), "{}", first.stderr());
    let stopped = first.terminate();
    assert!(stopped.status.success(), "{}", stopped.stderr);
}

/// In a thin session the last server draws: on the GPU where that has room for the head beside blocks,
/// caches and passes, else on the processor.
#[test]
fn a_server_on_a_gpu_draws_the_stored_tokens_wherever_its_head_has_room() {
    let first = serve(&[&checkpoint("llama"), "--blocks", "0..1"]);
    let last = ["--blocks", "1..4", "--join", first.address()];
    for (memory, said) in [
        ("2000000000", "the GPU draws the tokens of thin sessions"),
        ("500000000", "the processor draws the tokens of thin sessions"),
    ] {
        let server = gpu_server(&[("UMBEL_EMULATED_MEMORY", memory)], &last).unwrap();
        let (report, stored) = generated_with(server.address(), &["--thin"]);
        assert_eq!(report["token_ids"], stored, "with {memory} bytes");
        assert!(server.stderr().contains(said), "{}", server.stderr());
        server.assert_no_errors();
        assert!(server.terminate().status.success());
    }
}

/// What is too large a part of what the device may give is not put there.
#[test]
fn a_head_that_would_leave_no_room_for_blocks_stays_with_the_processor() {
    // Its matrix and 64 rows of logits are 150 kB; a block and the smallest cache are 201 kB.
    let last = ["--blocks", "3..4", "--kv-tokens", "256", "--memory-bytes", "250000"];
    let server = gpu_server(&[], &last).unwrap();
    let said = server.stderr();
    assert!(said.contains("head is too large for the GPU"), "{said}");
    assert!(!said.contains("the GPU draws"), "{said}");
}

/// Numbers of 4 bits have a scale and an offset of 16 bits each for 32 of them there, and less in a file.
#[test]
fn weights_count_as_they_lie_on_a_gpu() {
    let config = ModelConfig {
        hidden_size: 512,
        intermediate_size: 2048,
        head_count: 8,
        kv_head_count: 4,
        head_size: 64,
        ..ModelConfig::llama(2)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers.gguf");
    let file = GgufWriter::random_model(&config, WeightType::Q4K, 1).unwrap();
    std::fs::write(&path, file.to_bytes()).unwrap();
    let arguments = ["--blocks", "0..2", "--kv-tokens", "256", "--memory-bytes", "4000000"];
    let model = [path.to_str().unwrap(), "--device", "cuda"];
    let environment = [("LD_LIBRARY_PATH", driver())];
    let refused = try_serve_in(&environment, &[&model[..], &arguments].concat()).err().unwrap();
    // In the file they are 4.4 MB.
    let said = format!("{refused:#}");
    assert!(said.contains("weights of blocks 0..2 take 4.9 MB"), "{said}");
}

/// Heads of 100 values have room for 128 there.
#[test]
fn keys_and_values_count_as_they_lie_on_a_gpu() {
    let config =
        ModelConfig { head_count: 4, kv_head_count: 4, head_size: 100, ..ModelConfig::llama(2) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heads.gguf");
    let file = GgufWriter::random_model(&config, WeightType::BF16, 1).unwrap();
    std::fs::write(&path, file.to_bytes()).unwrap();
    // As they are they take 26.2 MB.
    let arguments = ["--blocks", "0..2", "--kv-tokens", "4096", "--memory-bytes", "30000000"];
    let model = [path.to_str().unwrap(), "--device", "cuda"];
    let environment = [("LD_LIBRARY_PATH", driver())];
    let refused = try_serve_in(&environment, &[&model[..], &arguments].concat()).err().unwrap();
    let said = format!("{refused:#}");
    assert!(said.contains("KV cache of 4096 tokens 33.5 MB"), "{said}");
}

/// Passes need more than all of its memory.
#[test]
fn a_gpu_that_is_full_is_passed_over_unless_it_was_asked_for() {
    let memory = ("UMBEL_EMULATED_MEMORY", "400000000");
    for which in [&["--blocks", "0..4"][..], &[]] {
        let server = gpu_server(&[memory], &[&["--device", "auto"][..], which].concat()).unwrap();
        let (report, stored) = generated(server.address());
        assert_eq!(report["token_ids"], stored);
        assert!(server.stderr().contains("computing on the processor"), "{}", server.stderr());
    }
    let refused = gpu_server(&[memory], &[]).err().unwrap();
    let said = format!("{refused:#}");
    assert!(said.contains("of GPU 0's free memory") && said.contains("--device cpu"), "{said}");
}

#[test]
fn without_a_gpu_a_server_says_so_and_computes_on_the_processor() {
    let folder = checkpoint("llama");
    let environment = [("LD_LIBRARY_PATH", driver()), ("UMBEL_EMULATED_DEVICES", "0")];
    let server = serve_in(&environment, &[&folder, "--blocks", "0..4", "--device", "auto"]);
    let (report, stored) = generated(server.address());
    assert_eq!(report["token_ids"], stored);
    assert!(server.stderr().contains("computing on the processor"), "{}", server.stderr());
}

#[test]
fn a_gpu_that_cannot_be_used_is_a_clear_error_where_it_was_asked_for() {
    for (variable, value, said) in [
        ("UMBEL_EMULATED_DEVICES", "0", "there is no GPU 0 on this machine"),
        ("UMBEL_EMULATED_DRIVER", "11040", "supports CUDA 11.4 and Umbel's kernels need 12.1"),
        ("UMBEL_EMULATED_CAPABILITY", "75", "has the compute capability 7.5"),
        ("UMBEL_EMULATED_MEMORY", "1000000", "out of memory"),
    ] {
        let error = gpu_server(&[(variable, value)], &[]).err().expect(said);
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
    let folder = checkpoint("llama");
    let unknown = umbel(&["serve", &folder, "--device", "gpu"]);
    assert!(unknown.stderr.contains("cuda:1"), "{}", unknown.stderr);
}

/// The device is lost during an answer: the server ends with a clear line, and the client goes on with
/// another server and gets the same tokens.
#[test]
fn a_device_that_is_lost_ends_its_server_and_no_answer() {
    let folder = checkpoint("llama");
    let end = serve(&[&folder, "--blocks", "2..4"]);
    let address = end.address().to_owned();
    // A token takes 18 kernels, and the blocks are measured with at most 240 before.
    // The error is one of those that newer drivers alone have.
    let variables = [("UMBEL_EMULATED_LOSE_AFTER", "300"), ("UMBEL_EMULATED_LOST_WITH", "226")];
    let lost = gpu_server(&variables, &["--blocks", "0..2", "--join", &address]).unwrap();
    let asking = std::thread::spawn(move || generated(&address));
    let lost = lost.into_process().wait().unwrap();
    // It would be preferred if it were there before; the client has patience.
    let other = serve(&[&folder, "--blocks", "0..2", "--join", end.address()]);
    let (report, stored) = asking.join().unwrap();
    assert_eq!(report["token_ids"], stored);
    assert!(!lost.status.success() && lost.stderr.contains("the GPU is lost"), "{}", lost.stderr);
    other.assert_no_errors();
}

/// What implementations in binary32 may differ by over four blocks, in logits of about 1.
const LOGIT_ERROR_MAX: f64 = 1e-4;

/// Matrices (LoRA), matrices with magnitudes (DoRA), and prompts in blocks.
#[test]
fn a_session_with_an_adapter_has_the_logits_that_peft_has_stored() {
    let folder = checkpoint("llama");
    let first = gpu_server(&[], &["--blocks", "0..3"]).unwrap();
    let last = serve(&[&folder, "--blocks", "3..4", "--join", first.address()]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/training/peft");
    for adapter in ["peft-all", "peft-dora", "trained-prompt"] {
        let adapter = fixtures.join(adapter);
        let cases = std::fs::read(adapter.join("logits.json")).unwrap();
        let case = &serde_json::from_slice::<Value>(&cases).unwrap()[0];
        let ids = case["prompt"].as_array().unwrap().iter().map(Value::to_string);
        let ids = ids.collect::<Vec<_>>().join(",");
        let what = ["generate", &folder, "--prompt-ids", &ids, "--max-tokens", "1", "--json"];
        let how = ["--top-logits", "288", "--join", first.address(), "--patience", "90"];
        let with = ["--adapter", adapter.to_str().unwrap()];
        let found = report(&umbel(&[&what[..], &how, &with].concat()));
        for pair in found["top_logits"][0].as_array().unwrap() {
            let (id, logit) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
            let stored = case["logits"][usize::try_from(id).unwrap()].as_f64().unwrap();
            assert!((logit - stored).abs() < LOGIT_ERROR_MAX, "{id}: {logit}, not {stored}");
        }
    }
    let (report, stored) = generated(last.address());
    assert_eq!(report["token_ids"], stored, "nobody else is answered with them");
    first.assert_no_errors();
}

/// The session goes to another server, and the one without memory says why.
#[test]
fn a_session_whose_adapter_has_no_room_on_a_gpu_goes_elsewhere() {
    let folder = checkpoint("llama");
    // As much as it takes to serve and to open a session, some 50, and some of 84 pieces of the adapter.
    let memory = [("UMBEL_EMULATED_REFUSE_AFTER", "90")];
    let mut full = gpu_server(&memory, &["--blocks", "0..4"]).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/training/peft");
    let adapter = fixtures.join("peft-all");
    let address = full.address().to_owned();
    let asking = std::thread::spawn(move || {
        generated_with(&address, &["--adapter", adapter.to_str().unwrap()]).0
    });
    let said = "the GPU cannot take up an adapter";
    assert!(full.wait_for_stderr(said), "{}", full.stderr());
    let other = serve(&[&folder, "--blocks", "0..4", "--join", full.address()]);
    assert_eq!(asking.join().unwrap()["token_ids"].as_array().unwrap().len(), 24);
    other.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_on_a_gpu_is_the_stored_one_of_peft() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for adapter in ["checkpoints/llama/lora", "training/dora/llama"] {
        let server = gpu_server(&[], &["--blocks", "0..4"]).unwrap();
        let step = StoredStep::read(&fixtures.join(adapter)).unwrap();
        let swarm = join(&server).await.unwrap();
        let (mut trainer, _) =
            remote(&swarm, &step.model, step.state.clone(), step.settings).await.unwrap();
        step.take(&mut trainer).await.unwrap();
        trainer.close().await;
        server.assert_no_errors();
    }
}

/// The largest difference of a loss of some 5, between a GPU and a processor whose gradients differ in
/// their last bits: a step of AdamW is as long for a gradient that is nearly zero as for others.
const LESSON_ERROR_MAX: f64 = 1e-3;

/// A training with dropout over a GPU and a processor. The device is lost in the middle of it, or has no
/// memory any more, and a server that has come meanwhile goes on in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_training_over_a_gpu_comes_to_the_losses_of_one_process_whatever_becomes_of_the_gpu() {
    let lesson = Lesson::new();
    let mut alone = lesson.local();
    let expected = lesson.steps(&mut alone).await.unwrap();
    for (variable, value, said) in [
        ("UMBEL_EMULATED_SEED", "1", None),
        ("UMBEL_EMULATED_LOSE_AFTER", "1000", Some("the GPU is lost")),
        ("UMBEL_EMULATED_REFUSE_AFTER", "1000", Some("the GPU could not compute a training")),
    ] {
        let first = start("0..2", None);
        let place = ["--blocks", "2..4", "--join", first.address()];
        let mut on_gpu = gpu_server(&[(variable, value)], &place).unwrap();
        let swarm = join(&first).await.unwrap();
        let (mut trainer, _) = lesson.remote(&swarm).await.unwrap();
        let spare = said.map(|_| start("2..4", Some(&first)));
        let learned = lesson.steps(&mut trainer).await.unwrap();
        for (found, expected) in learned.iter().zip(&expected) {
            let error = (found.loss - expected.loss).abs();
            assert!(error < LESSON_ERROR_MAX, "{variable}: {found:?}, not {expected:?}");
        }
        assert!(learned[0].loss > learned[STEPS - 1].loss, "it learns: {learned:?}");
        assert_eq!(trainer.replaced(), said.map_or(0, |_| 1), "{variable}");
        trainer.close().await;
        if let Some(said) = said {
            assert!(on_gpu.wait_for_stderr(said), "{}", on_gpu.stderr());
        }
        [Some(first), spare].iter().flatten().for_each(|server| server.assert_no_errors());
    }
}

/// Sessions of models with experts have the tokens that other implementations have stored; trainings are
/// refused before they begin.
#[test]
fn experts_on_a_gpu_give_the_stored_tokens_and_are_not_trained_there() {
    for model in SPARSE {
        let server = gpu_server_of(model, &[], &["--blocks", "0..4"]).unwrap();
        let (report, stored) = generated_of(model, server.address(), &[]);
        assert_eq!(report["token_ids"], stored, "{model}");
        let said = server.stderr();
        assert!(said.contains("the GPU has no kernels to train this model"), "{said}");
        assert!(said.contains("gradients through experts"), "{said}");
        server.assert_no_errors();
    }
}

/// Whoever trains is sent elsewhere at once, and not when a gradient has come back.
#[test]
fn a_gpu_without_kernels_for_gradients_through_large_heads_says_so_at_the_start() {
    let config = ModelConfig {
        hidden_size: 64,
        intermediate_size: 64,
        head_count: 1,
        kv_head_count: 1,
        head_size: 260,
        ..ModelConfig::llama(1)
    };
    let file = GgufWriter::random_model(&config, WeightType::F32, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large-heads.gguf");
    std::fs::write(&path, file.to_bytes()).unwrap();
    let environment = [("LD_LIBRARY_PATH", driver())];
    let model = [path.to_str().unwrap(), "--kv-tokens", "256", "--device", "cuda"];
    let server = try_serve_in(&environment, &model).unwrap();
    let said = server.stderr();
    assert!(said.contains("the GPU has no kernels to train this model"), "{said}");
    assert!(said.contains("heads have 260 values"), "{said}");
    server.assert_no_errors();
}

/// Two devices, a server process on each. One is killed: the other goes on, until both are told to stop.
#[test]
fn every_gpu_has_a_server_of_its_own_and_one_that_ends_leaves_the_other() {
    let environment = [("UMBEL_EMULATED_DEVICES", "2")];
    let mut servers = gpu_server(&environment, &["--device", "all", "--block-count", "2"]).unwrap();
    let (report, stored) = generated(servers.address());
    assert_eq!(report["token_ids"], stored, "the two have all blocks between them");
    let said = servers.stderr();
    assert!(said.contains("number=0") && said.contains("number=1"), "{said}");

    let path = format!("/proc/{0}/task/{0}/children", servers.id());
    let children = std::fs::read_to_string(path).unwrap();
    let children: Vec<_> = children.split_whitespace().collect();
    assert_eq!(children.len(), 2);
    assert!(Command::new("kill").args(["-KILL", children[0]]).status().unwrap().success());
    assert!(servers.wait_for_stderr("the others go on"), "{}", servers.stderr());
    assert!(Path::new("/proc").join(children[1]).exists());
    let stopped = servers.terminate();
    assert!(stopped.status.success(), "{}", stopped.stderr);
    assert!(!Path::new("/proc").join(children[1]).exists(), "it was waited for");
}

#[test]
fn what_is_for_one_server_is_refused_for_several() {
    let folder = checkpoint("llama");
    let refused = umbel(&["serve", &folder, "--device", "all", "--blocks", "0..2"]);
    assert!(!refused.status.success() && refused.stderr.contains("--blocks is for one server"));
}
