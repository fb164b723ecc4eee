//! Training over the servers of a swarm: the numbers of PEFT, of one process, and of a swarm whose
//! servers are killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use umbel_client::train::data::Example;
use umbel_client::train::{RemoteSettings, TrainError, TrainerSettings};
use umbel_tests::swarm::{checkpoint, serve};
use umbel_tests::training::peft::step_over_three_servers;
use umbel_tests::training::{Kills, Lesson, STEPS, TOKENS_MAX, join, join_all, remote_as, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_step_over_three_servers_is_the_stored_one_of_peft() {
    let lora = PathBuf::from(checkpoint("llama")).join("lora");
    step_over_three_servers(&lora).await.unwrap();
}

/// A server is killed behind each answer that a step has, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_at_any_moment_of_a_step_changes_no_loss() {
    // Two microbatches forward and back through two servers, two rows of gradients, two steps.
    let answers_of_step = 2 * 2 * 2 + 2 + 2;
    // In the second step, when there are gradients, means and masks that differ from the first.
    let moments = answers_of_step..2 * answers_of_step;
    Lesson::new().with_a_kill_behind_each_answer(moments).await.unwrap();
}

/// Thirty seeds take a minute: `cargo run -p umbel-tests --example training_kills`.
const KILL_SEEDS: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_at_a_random_moment_is_replaced_and_no_step_is_taken_twice() {
    let mut kills = Kills::start(Lesson::new()).await.unwrap();
    for seed in 0..KILL_SEEDS {
        kills.run(seed).await.unwrap();
    }
    kills.assert_no_errors();
}

/// A lesson of texts each of which is a microbatch.
fn long_lesson() -> Lesson {
    let lesson = Lesson::new();
    let text = |number: u32| {
        let ids = (0..9 + number % 5).map(|place| (number * 31 + place * 17) % 200);
        Example::of_text(ids.collect())
    };
    let settings = TrainerSettings { microbatch_tokens: 1, ..lesson.settings };
    Lesson { settings, texts: (0..12).map(text).collect(), ..lesson }
}

#[tokio::test(flavor = "multi_thread")]
async fn microbatches_that_go_along_several_routes_teach_the_same_bits() {
    let lesson = long_lesson();
    let mut alone = lesson.local();
    let expected = lesson.steps(&mut alone).await.unwrap();
    // Routes that are split otherwise: one of a single server, and one of two.
    let whole = start("0..4", None);
    let halves = [start("0..1", Some(&whole)), start("1..4", Some(&whole))];
    let remote = RemoteSettings { tokens_max: TOKENS_MAX, routes: 3, ..RemoteSettings::default() };
    let Lesson { model, state, settings, .. } = &lesson;
    let swarm = join_all(&[&whole, &halves[0], &halves[1]]).await.unwrap();
    let opened = remote_as(remote, &swarm, model, state.clone(), *settings).await;
    let (mut trainer, answers) = opened.unwrap();
    let mut servers: Vec<_> = trainer.routes().iter().map(Vec::len).collect();
    servers.sort_unstable();
    let routes = trainer.routes();
    assert_eq!(servers, [1, 2], "as many routes as there are servers for: {routes:?}");

    let before = *answers.borrow();
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    assert!(trainer.state() == alone.state());
    // A microbatch has three answers from each server of its route: forward, back, and its gradients.
    // Each of the three servers is then given their sum, and steps.
    let of_microbatches = *answers.borrow() - before - STEPS as u64 * 3 * 2;
    let at_servers = of_microbatches / 3;
    let all = (lesson.texts.len() * STEPS) as u64;
    assert!(
        all < at_servers && at_servers < 2 * all,
        "both routes were used: {at_servers} of {all}"
    );
    let batch = lesson.batch();
    let loss = trainer.evaluate(&batch).await.unwrap();
    assert_eq!(loss, alone.evaluate(&batch).await.unwrap());
    trainer.close().await;
    [whole].iter().chain(&halves).for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_lost_leaves_its_microbatches_to_another_with_little_room() {
    let lesson = long_lesson();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    let first = start("0..4", None);
    let doomed = start("0..4", Some(&first));
    let remote = RemoteSettings { tokens_max: TOKENS_MAX, under_way: 1, routes: 2, seed: 0 };
    let Lesson { model, state, settings, .. } = &lesson;
    let swarm = join_all(&[&first, &doomed]).await.unwrap();
    let opened = remote_as(remote, &swarm, model, state.clone(), *settings).await;
    let (mut trainer, mut answers) = opened.unwrap();
    assert_eq!(trainer.routes().len(), 2);
    let goal = *answers.borrow() + 5;
    let kill = tokio::spawn(async move {
        answers.wait_for(|count| *count >= goal).await.unwrap();
        doomed.kill();
    });
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    assert_eq!((trainer.routes().len(), trainer.replaced()), (1, 1));
    kill.await.unwrap();
    trainer.close().await;
    first.assert_no_errors();
}

/// How often, and how many times, it is looked whether a server that has come is used: the others are
/// asked every ten seconds, and a machine may be five times as slow as it should be.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOOKS_MAX: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_later_takes_part_between_two_steps() {
    let lesson = long_lesson();
    let mut alone = lesson.local();
    let first = start("0..4", None);
    let remote = RemoteSettings { tokens_max: TOKENS_MAX, routes: 2, ..RemoteSettings::default() };
    let Lesson { model, state, settings, .. } = &lesson;
    let swarm = join(&first).await.unwrap();
    let opened = remote_as(remote, &swarm, model, state.clone(), *settings).await;
    let (mut trainer, _) = opened.unwrap();
    let batch = &lesson.batch()[..2];
    assert_eq!(trainer.step(batch, 0.01).await.unwrap(), alone.step(batch, 0.01).await.unwrap());
    assert_eq!(trainer.routes().len(), 1, "there is no other server");
    let later = start("0..4", Some(&first));
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    for look in 0.. {
        // It learns nothing, so that this side need not compute it too.
        trainer.evaluate(batch).await.unwrap();
        if trainer.routes().len() == 2 {
            break;
        }
        assert!(look < LOOKS_MAX, "the second server is not used");
        looks.tick().await;
    }
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), lesson.steps(&mut alone).await.unwrap());
    assert!(trainer.state() == alone.state());
    trainer.close().await;
    [first, later].iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_little_room_is_given_one_microbatch_after_the_other() {
    let lesson = long_lesson();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    // A session may have a sixteenth of this, in which four times as many tokens do not fit.
    let server = serve(&[&checkpoint("llama"), "--memory-bytes", "96000000"]);
    let narrow = RemoteSettings { tokens_max: 1_500, ..RemoteSettings::default() };
    let Lesson { model, state, settings, .. } = &lesson;
    let swarm = join(&server).await.unwrap();
    let opened = remote_as(narrow, &swarm, model, state.clone(), *settings).await;
    let (mut trainer, _) = opened.unwrap();
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    trainer.close().await;
    let too_wide = RemoteSettings { tokens_max: 6_000, ..narrow };
    let refused = remote_as(too_wide, &swarm, model, state.clone(), *settings).await;
    assert!(refused.err().unwrap().to_string().contains("no server has room"));
    server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_whose_servers_are_split_otherwise_goes_on() {
    let lesson = Lesson::new();
    let mut alone = lesson.local();
    let expected = lesson.steps(&mut alone).await.unwrap();
    let first = start("0..1", None);
    let whole = start("1..4", Some(&first));
    let (mut trainer, mut answers) = lesson.remote(&join(&first).await.unwrap()).await.unwrap();
    let parts = [start("1..2", Some(&first)), start("2..4", Some(&first))];
    let goal = *answers.borrow() + 5;
    let kill = tokio::spawn(async move {
        answers.wait_for(|count| *count >= goal).await.unwrap();
        whole.kill();
    });
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    assert_eq!((trainer.routes()[0].len(), trainer.replaced()), (3, 1));
    kill.await.unwrap();
    trainer.close().await;
    parts.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_texts_than_a_message_holds_are_several_microbatches() {
    let text = |number: u32| Example::of_text(vec![number % 190, (number + 3) % 190]);
    let lesson = Lesson::new();
    let settings = TrainerSettings { microbatch_tokens: 2_048, ..lesson.settings };
    let lesson = Lesson { settings, texts: (0..1_100).map(text).collect(), ..lesson };
    let batch = lesson.batch();
    let expected = lesson.local().step(&batch, 0.01).await.unwrap();
    let server = start("0..4", None);
    let remote = RemoteSettings { tokens_max: 2_048, ..RemoteSettings::default() };
    let swarm = join(&server).await.unwrap();
    let opened = remote_as(remote, &swarm, &lesson.model, lesson.state.clone(), settings).await;
    let (mut trainer, _) = opened.unwrap();
    assert_eq!(trainer.step(&batch, 0.01).await.unwrap(), expected);
    // As the servers were told, and no more.
    let long = Example::of_text(vec![7; 2_050]);
    for refused in [trainer.step(&[&long], 0.01).await, trainer.evaluate(&[&long]).await] {
        let too_long = TrainError::TooLong { tokens: 2_049, max: 2_048 }.to_string();
        assert_eq!(refused.unwrap_err().to_string(), too_long);
    }
    assert_eq!(trainer.replaced(), 0);
    trainer.close().await;
    server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_leaves_nothing_behind() {
    let lesson = Lesson::new();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    let first = start("0..4", None);
    let (over_swarm, _) = lesson.remote(&join(&first).await.unwrap()).await.unwrap();
    for mut trainer in [lesson.local(), over_swarm] {
        let failed = trainer.step(&lesson.batch(), f64::NAN).await;
        assert!(matches!(failed, Err(TrainError::Step(_))), "{failed:?}");
        assert!(trainer.state() == &lesson.state);
        assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
        trainer.close().await;
    }
    first.assert_no_errors();
}

/// As long as a server has to forget a part: far less than what it has yet to answer may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_in_the_middle_of_an_evaluation_waits_for_no_answer_to_it() {
    let lesson = long_lesson();
    let mut server = start("0..4", None);
    let swarm = join(&server).await.unwrap();
    let (mut trainer, mut answers) = lesson.remote(&swarm).await.unwrap();
    let goal = *answers.borrow() + 1;
    let batch = lesson.batch();
    let begun = async {
        answers.wait_for(|count| *count >= goal).await.unwrap();
        server.freeze();
    };
    tokio::select! {
        biased;
        () = begun => {}
        evaluated = trainer.evaluate(&batch) => panic!("it was not interrupted: {evaluated:?}"),
    }
    let closed = tokio::time::timeout(CLOSE_TIMEOUT, trainer.close()).await;
    server.thaw();
    assert!(closed.is_ok(), "what was asked for before was waited for");
    server.assert_no_errors();
}

/// How often a step is begun that is to be dropped: where others use the processors, what is left of it may
/// be answered before this side gets to run again, one time in ten.
const DROPS_TRIED_MAX: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_dropped_on_its_way_leaves_nothing_behind() {
    let lesson = Lesson::new();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let swarm = join_all(&[&first, &second]).await.unwrap();
    // A step has twelve answers.
    for answers_until_then in [1, 5, 9, 10] {
        let mut dropped = false;
        for _ in 0..DROPS_TRIED_MAX {
            let (mut trainer, mut answers) = lesson.remote(&swarm).await.unwrap();
            let goal = *answers.borrow() + answers_until_then;
            let batch = lesson.batch();
            dropped = tokio::select! {
                biased;
                reached = answers.wait_for(|count| *count >= goal) => reached.is_ok(),
                step = trainer.step(&batch, 0.01) => step.is_err(),
            };
            if dropped {
                assert_eq!((trainer.state().steps(), trainer.sequences()), (0, 0));
                trainer.evaluate(&batch).await.unwrap();
                assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
                assert_eq!(trainer.replaced(), 0);
            }
            trainer.close().await;
            if dropped {
                break;
            }
        }
        assert!(dropped, "the step came to its end before {answers_until_then} answers were seen");
    }
    [first, second].iter().for_each(|server| server.assert_no_errors());
}
