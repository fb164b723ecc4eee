//! Magnitudes (DoRA) over the servers of a swarm: the numbers of PEFT, servers that are killed, and one that
//! lies about what magnitudes begin with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use umbel_client::adapter::fetch::{FetchAdapterError, fetch};
use umbel_client::adapter::publish::{Publication, PublishSettings};
use umbel_client::train::RemoteSettings;
use umbel_client::train::checkpoint::Checkpoint;
use umbel_engine::train::{Adapter, PeftFiles};
use umbel_net::Network;
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::{Span, Tensor};
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, checkpoint, report, umbel};
use umbel_tests::training::peft::{prompt, step_over_three_servers, stored};
use umbel_tests::training::{Kills, Lesson, TOKENS_MAX, join, join_all, remote_as, start};
use umbel_tests::workload::client_model;

use super::fakes::fake;

const LISTEN: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Of logits of about 1.
const LOGIT_ERROR_MAX: f64 = 1e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/training/dora/llama")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_over_three_servers_is_the_stored_one_of_peft() {
    step_over_three_servers(&folder()).await.unwrap();
}

/// A server is killed behind each answer that the first step has, the norms among them.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_magnitudes_begin_changes_no_loss() {
    let lesson = Lesson::decomposed();
    assert!(lesson.local().adapter().lacks_magnitudes());
    // Norms and values of two servers; then two microbatches forward and back, gradients, steps.
    let answers_of_step = 2 + 2 + 2 * 2 * 2 + 2 + 2;
    lesson.with_a_kill_behind_each_answer(0..answers_of_step).await.unwrap();
}

const KILL_SEEDS: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_at_a_random_moment_along_one_route_or_two_changes_nothing() {
    let mut kills = Kills::start(Lesson::decomposed()).await.unwrap();
    for seed in 0..KILL_SEEDS {
        kills.run(seed).await.unwrap();
    }
    kills.assert_no_errors();
}

/// What a server says of magnitudes that are to begin.
#[derive(Debug, Clone, Copy)]
enum Lie {
    NotFinite,
    Negative,
    TooFew,
    Elsewhere,
    SomethingElse,
}

impl Lie {
    fn answer(self, offset: u64, count: u32) -> TrainingAnswer {
        let norms = |count: u32, first: f32| {
            let mut values = vec![1.0; count as usize];
            values[0] = first;
            Tensor::from_f32(vec![count], &values).unwrap()
        };
        match self {
            Self::NotFinite => TrainingAnswer::RowNorms { offset, norms: norms(count, f32::NAN) },
            Self::Negative => TrainingAnswer::RowNorms { offset, norms: norms(count, -1.0) },
            Self::TooFew => TrainingAnswer::RowNorms { offset, norms: norms(count - 1, 1.0) },
            Self::Elsewhere => {
                TrainingAnswer::RowNorms { offset: offset + 1, norms: norms(count, 1.0) }
            }
            Self::SomethingElse => TrainingAnswer::Written,
        }
    }
}

/// A peer that says this of magnitudes; how often it was asked for norms.
async fn liar(server: &Server, lesson: &Lesson, lie: Lie) -> (Network, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count_of_asked = Arc::clone(&asked);
    let answer = move |message| {
        let TrainerMessage::RowNorms { offset, count } = message else {
            panic!("it has no magnitudes yet: {message:?}");
        };
        count_of_asked.fetch_add(1, Ordering::Relaxed);
        lie.answer(offset, count)
    };
    (fake(server, lesson, answer).await, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lies_about_magnitudes_is_given_up_for_another() {
    let lesson = Lesson::decomposed();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    for lie in [Lie::NotFinite, Lie::Negative, Lie::TooFew, Lie::Elsewhere, Lie::SomethingElse] {
        let first = start("0..2", None);
        let (network, asked) = liar(&first, &lesson, lie).await;
        let (mut trainer, _) = lesson.remote(&join(&first).await.unwrap()).await.unwrap();
        assert_eq!(trainer.routes()[0][1].peer, Some(network.peer_id()), "{lie:?}");
        let second = start("2..4", Some(&first));
        assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected, "{lie:?}");
        assert_eq!((asked.load(Ordering::Relaxed), trainer.replaced()), (1, 1), "{lie:?}");
        let other = trainer.routes()[0][1].peer.unwrap().to_string();
        assert!(second.address().ends_with(&other), "{lie:?}");
        trainer.close().await;
        network.shutdown().await;
        [first, second].iter().for_each(|server| server.assert_no_errors());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_of_its_own_split_begins_with_the_same_bits() {
    let lesson = Lesson::decomposed();
    let mut alone = lesson.local();
    alone.begin().await.unwrap();
    let first = start("0..3", None);
    let servers = [start("3..4", Some(&first)), start("0..4", Some(&first))];
    let swarm = join_all(&[&first, &servers[0], &servers[1]]).await.unwrap();
    let remote = RemoteSettings { tokens_max: TOKENS_MAX, routes: 2, ..RemoteSettings::default() };
    let Lesson { model, state, settings, .. } = &lesson;
    let opened = remote_as(remote, &swarm, model, state.clone(), *settings).await;
    let (mut trainer, _) = opened.unwrap();
    assert_eq!(trainer.routes().len(), 2);
    trainer.begin().await.unwrap();
    assert!(trainer.state() == alone.state() && !trainer.adapter().lacks_magnitudes());
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), lesson.steps(&mut alone).await.unwrap());
    trainer.close().await;
    [first].iter().chain(&servers).for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_goes_on_with_the_magnitudes_of_its_checkpoint() {
    let lesson = Lesson::decomposed();
    let mut alone = lesson.local();
    let batch = lesson.batch();
    alone.step(&batch, 0.01).await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("checkpoint.safetensors");
    let (state, sequences) = (alone.state().clone(), alone.sequences());
    let model = lesson.model.id().to_string();
    Checkpoint { state, model, sequences, other: Value::Null }.write(&path).unwrap();
    let expected = alone.step(&batch, 0.01).await.unwrap();
    let Checkpoint { state, .. } = Checkpoint::read(&path, lesson.model.config()).unwrap();
    let server = start("0..4", None);
    let swarm = join(&server).await.unwrap();
    let resumed = Lesson { state, ..lesson };
    let (trainer, _) = resumed.remote(&swarm).await.unwrap();
    let mut trainer = trainer.after_sequences(sequences);
    assert_eq!(trainer.step(&resumed.batch(), 0.01).await.unwrap(), expected);
    assert!(trainer.state() == alone.state());
    trainer.close().await;
    server.assert_no_errors();
}

#[test]
fn an_adapter_of_peft_gives_the_stored_logits_over_a_swarm() {
    let stored = stored(&folder()).unwrap();
    let logits = &stored["logits"];
    let ids = prompt().unwrap();
    let vocabulary = logits.len() / ids.len();
    let last = &logits[vocabulary * (ids.len() - 1)..];
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let (model, adapter) = (checkpoint("llama"), folder());
    let ask = |more: &[&str]| {
        let fixed = ["generate", &model, "--prompt-ids", &ids, "--max-tokens", "1", "--json"];
        let top = vocabulary.to_string();
        report(&umbel(&[&fixed[..], &["--top-logits", &top], more].concat()))["top_logits"][0]
            .clone()
    };
    let adapter = ["--adapter", adapter.to_str().unwrap()];
    for place in [&["--local"][..], &["--join", first.address()]] {
        let answered = ask(&[place, &adapter].concat());
        let answered = answered.as_array().unwrap();
        assert_eq!(answered.len(), vocabulary);
        for pair in answered {
            let id = usize::try_from(pair[0].as_u64().unwrap()).unwrap();
            let difference = (pair[1].as_f64().unwrap() - f64::from(last[id])).abs();
            assert!(difference < LOGIT_ERROR_MAX, "{place:?}, {id}: {difference}");
        }
        assert_ne!(Value::from(answered.clone()), ask(place), "others are answered without it");
    }
    [first, second].iter().for_each(|server| server.assert_no_errors());
}

/// How often the hash table is asked before it is wrong that it does not know the publisher.
const TRIES: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn a_published_adapter_has_its_magnitudes() {
    let server = start("0..4", None);
    let model = client_model(&checkpoint("llama")).unwrap();
    let files = PeftFiles::read(&folder(), model.config()).unwrap();
    let settings = PublishSettings {
        listen: vec![LISTEN.parse().unwrap()],
        join: vec![server.address().parse().unwrap()],
        swarm_key: None,
    };
    let publication = Publication::start(files.clone(), settings).await.unwrap();
    let cache = tempfile::tempdir().unwrap();
    let swarm = join(&server).await.unwrap();
    let mut fetched = fetch(&swarm, cache.path(), files.id(), model.config()).await;
    for _ in 0..TRIES {
        if !matches!(fetched, Err(FetchAdapterError::NoProvider { .. })) {
            break;
        }
        fetched = fetch(&swarm, cache.path(), files.id(), model.config()).await;
    }
    assert!(fetched.unwrap() == files);
    publication.end().await;
}

/// What a training comes to whose adapter goes to `out`.
fn learned(folder: &Path, out: &str, more: &[&str]) -> Output {
    let data = folder.join("data.jsonl");
    let line = |start: usize| {
        let ids: Vec<_> = (0..10 + start % 3).map(|place| (start * 7 + place * 3) % 190).collect();
        serde_json::json!({ "token_ids": ids }).to_string()
    };
    fs::write(&data, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let (out, model) = (folder.join(out), checkpoint("llama"));
    let fixed = ["train", &model, "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    umbel(&[&fixed[..], &["--batch", "6", "--learning-rate", "0.01"], more].concat())
}

#[test]
fn a_swarm_learns_magnitudes_as_one_process_does_and_a_training_goes_on_with_them() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let local = ["--local", "--dora", "--dropout", "0.05", "--epochs", "2"];
    learned(folder, "alone", &local).succeeded();
    let join = [&["--join", first.address()][..], &local[1..]].concat();
    learned(folder, "swarm", &join).succeeded();
    let config = client_model(&checkpoint("llama")).unwrap().config().clone();
    let files = |name: &str| PeftFiles::read(&folder.join(name), &config).unwrap();
    assert!(files("alone") == files("swarm"), "every bit of the adapters is the same");
    let whole = Span::new(0, config.block_count).unwrap();
    let adapter = Adapter::from_peft(&files("alone"), &config, whole).unwrap();
    assert!(adapter.config().weight_decomposed && !adapter.lacks_magnitudes());
    let card = fs::read_to_string(folder.join("alone/README.md")).unwrap();
    assert!(card.contains("A DoRA in PEFT's files") && card.contains("- dora\n"), "{card}");

    let plain = ["--local", "--dropout", "0.05", "--epochs", "2", "--resume"];
    learned(folder, "alone", &plain).refused("another dora");
    let before = files("alone");
    learned(folder, "alone", &[&local[..], &["--resume"]].concat()).succeeded();
    assert!(files("alone") == before, "there was no step left");
    learned(folder, "prompt", &["--local", "--dora", "--method", "ptune"])
        .refused("--dora means nothing with --method ptune");
    [first, second].iter().for_each(|server| server.assert_no_errors());
}
