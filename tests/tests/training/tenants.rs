//! Several tenants on the same servers: some train, others chat, and none has other results for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use umbel_client::train::{Trainer, TrainerSettings};
use umbel_client::{Speculate, Swarm};
use umbel_tests::prometheus::{get, metric, url};
use umbel_tests::swarm::{Server, checkpoint, serve};
use umbel_tests::training::{Lesson, join};
use umbel_tests::workload::{Workload, ask, undisturbed};

/// Answers of each chat in a round, so that all are still chatting while the others train.
const ANSWERS: usize = 4;

/// Rounds in which a pass has to find a training at work once. One nearly always does in the first, which
/// has a hundred passes on each server.
const ROUNDS_MAX: usize = 50;

/// One of three chats.
fn chat(number: u32) -> Workload {
    let prompt = (0..7 + number).map(|place| (number * 53 + place * 29) % 200).collect();
    Workload { prompt, tokens: 24, prefill_chunk: 8, standby: false }
}

/// Answers one after the other, each of which has to be that of one process.
async fn talk(swarm: &Arc<Swarm>, lesson: &Lesson, workload: &Workload, expected: &[u32]) {
    for _ in 0..ANSWERS {
        let asked = ask(Arc::clone(swarm), &lesson.model, workload, &Speculate::Off).await;
        let mut generation = asked.unwrap();
        generation.finish().await.unwrap();
        assert_eq!(generation.tokens(), expected);
    }
}

/// Learns along, and compares.
async fn learn(lesson: &Lesson, trainer: &mut Trainer, alone: &mut Trainer) {
    let learned = lesson.steps(trainer).await.unwrap();
    assert_eq!(learned, lesson.steps(alone).await.unwrap());
    assert!(trainer.state() == alone.state());
}

/// Passes that have found a training at work, and parts of trainings that they have waited for.
fn waits(servers: &[&Server]) -> [f64; 2] {
    let of_server = |server: &&Server| {
        let (status, text) = get(&url(&server.stderr()));
        assert_eq!(status, 200);
        ["umbel_passes_waited_total", "umbel_training_parts_waited_total"]
            .map(|name| metric(&text, name))
    };
    let add = |sum: [f64; 2], of: [f64; 2]| [sum[0] + of[0], sum[1] + of[1]];
    servers.iter().map(of_server).fold([0.0; 2], add)
}

fn start(blocks: &str, first: Option<&Server>) -> Server {
    let folder = checkpoint("llama");
    let mut arguments = vec![folder.as_str(), "--blocks", blocks, "--metrics", "127.0.0.1:0"];
    arguments.extend(first.iter().flat_map(|first| ["--join", first.address()]));
    serve(&arguments)
}

/// Each step of a chat waits for one part of a training at most on each server, whoever trains there:
/// that is the bound which `docs/training.md` states, in what can be counted.
#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_train_and_three_chat_and_each_has_the_results_of_being_alone() {
    let lesson = Lesson::new();
    let settings = TrainerSettings { seed: 12, ..lesson.settings };
    let other = Lesson { settings, ..Lesson::new() };
    let (mut alone, mut other_alone) = (lesson.local(), other.local());
    let mut chats = Vec::new();
    for number in 0..3 {
        let expected = undisturbed(&lesson.model, &chat(number)).await.unwrap();
        chats.push((chat(number), expected));
    }
    assert_ne!(chats[0].1, chats[1].1, "they ask different things");

    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let swarms = [join(&first).await.unwrap(), join(&first).await.unwrap()];
    let (mut trainer, _) = lesson.remote(&swarms[0]).await.unwrap();
    let (mut another, _) = other.remote(&swarms[1]).await.unwrap();
    let chatting = join(&first).await.unwrap();
    let mut waited = [0.0; 2];
    for _ in 0..ROUNDS_MAX {
        let talk = |number: usize| {
            let (chat, expected) = &chats[number];
            talk(&chatting, &lesson, chat, expected)
        };
        tokio::join!(
            learn(&lesson, &mut trainer, &mut alone),
            learn(&other, &mut another, &mut other_alone),
            talk(0),
            talk(1),
            talk(2),
        );
        waited = waits(&[&first, &second]);
        if waited[0] > 0.0 {
            break;
        }
    }
    assert!(trainer.state() != another.state(), "their dropout differs");
    let [passes, parts] = waited;
    assert!(passes > 0.0, "no pass has met a training, so that nothing was shown");
    assert!(parts <= passes, "{passes} passes have waited for {parts} parts");
    trainer.close().await;
    another.close().await;
    [first, second].iter().for_each(|server| server.assert_no_errors());
}
