//! Heads of one's own over a swarm: the examples of the client, as they are, and gradients of a classifier.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use serde_json::json;
use umbel_client::ClientModel;
use umbel_client::train::FrozenBlocks;
use umbel_client::train::head::{Classifier, HeadError};
use umbel_engine::HiddenStates;
use umbel_engine::train::AdamW;
use umbel_protocol::Span;
use umbel_tests::swarm::checkpoint;
use umbel_tests::training::{TOKENS_MAX, join_all, start};
use umbel_tests::workload::client_model;

#[path = "../../../client/examples/classifier.rs"]
#[expect(dead_code, unreachable_pub, reason = "it is a program of its own as well")]
mod classifier;
#[path = "../../../client/examples/custom_head.rs"]
#[expect(dead_code, unreachable_pub, reason = "it is a program of its own as well")]
mod custom_head;

/// Of a difference beside the gradient: the third derivative over a step, and rounding of binary32.
const ERROR_MAX: f64 = 1e-2;

/// A step that moves the loss by far more than it is rounded.
const STEP: f32 = 1e-2;

fn model() -> Arc<ClientModel> {
    client_model(&checkpoint("llama")).unwrap()
}

/// Ids of one of two kinds, in an order that follows from the number of the text.
fn ids(text: usize, kind: usize) -> Vec<usize> {
    (0..7 + text % 4).map(|place| 20 + 60 * kind + (text * 5 + place * 7) % 13).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_learns_over_a_swarm_and_is_right_about_texts_that_it_has_not_seen() {
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let line = |text: usize| {
        let label = ["sea", "land"][text % 2];
        json!({ "label": label, "token_ids": ids(text, text % 2) }).to_string()
    };
    let lines = (0..60).map(line).collect::<Vec<_>>().join("\n");
    let texts = classifier::read(&lines, &model).unwrap();
    let swarm = join_all(&[&first, &second]).await.unwrap();
    let outcome = classifier::train(swarm, &model, &texts).await.unwrap();
    let (begun, ended) = (outcome.losses[0], outcome.losses.last().unwrap());
    assert!(*ended < begun / 2.0, "{:?}", outcome.losses);
    assert!(outcome.right > 0.9, "{} are right", outcome.right);
    outcome.classifier.save(folder.path()).unwrap();
    let size = model.config().hidden_size;
    let loaded = Classifier::load(folder.path(), size, AdamW::default()).unwrap();
    assert_eq!(loaded.labels(), ["sea", "land"]);
    assert_eq!(loaded.score().values(), outcome.classifier.score().values());
    assert!(classifier::read("{\"label\": \"sea\"}", &model).is_err());
    [first, second].iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_ones_own_learns_from_hidden_states_in_the_middle_of_the_model() {
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let text = |text: usize| -> Vec<u32> {
        // Few tokens, so that all are met among the texts that are learned.
        let few = |kind| ids(text + 3 * kind, kind).into_iter().map(|id| id - id % 4);
        let mixed = few(0).zip(few(1));
        let mixed = mixed.enumerate().map(|(place, (one, other))| {
            if (place * place + text).is_multiple_of(3) { one } else { other }
        });
        mixed.map(|id| u32::try_from(id).unwrap()).collect()
    };
    let texts: Vec<_> = (0..60).map(text).collect();
    let swarm = join_all(&[&first, &second]).await.unwrap();
    let belongs = |id| id < 60;
    let outcome = custom_head::train(swarm, &model, 3, &texts, &belongs).await.unwrap();
    let (begun, ended) = (outcome.losses[0], outcome.losses.last().unwrap());
    assert!(*ended < begun / 2.0, "{:?}", outcome.losses);
    assert!(outcome.right > 0.9, "{} are right", outcome.right);
    outcome.probe.save(folder.path(), 3).unwrap();
    let loaded = custom_head::Probe::load(folder.path()).unwrap();
    let hidden = model.ends().embed(&texts[0]).unwrap();
    assert_eq!(loaded.results(&hidden).unwrap(), outcome.probe.results(&hidden).unwrap());
    assert!(custom_head::Probe::load(&folder.path().join("none")).is_err());
    [first, second].iter().for_each(|server| server.assert_no_errors());
}

fn direction(gradient: &[f32]) -> (Vec<f32>, f64) {
    let length = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "steps are binary32")]
    let unit = gradient.iter().map(|value| STEP * value / length as f32).collect();
    (unit, length)
}

/// What stands before the blocks learns through them from what a classifier says.
#[tokio::test(flavor = "multi_thread")]
async fn gradients_of_a_classifier_are_slopes_through_the_blocks_of_a_swarm() {
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let model = model();
    let swarm = join_all(&[&first, &second]).await.unwrap();
    let all = Span::new(0, model.config().block_count).unwrap();
    let blocks = FrozenBlocks::open(swarm, &model, all, None, TOKENS_MAX).await;
    let mut blocks = blocks.unwrap();
    let (lengths, classes) = ([9, 4], [1, 0]);
    let ids: Vec<u32> = (0..13).map(|place| 3 + place * 11).collect();
    let entering = model.ends().embed(&ids).unwrap();
    let labels = vec!["one".to_owned(), "two".to_owned(), "three".to_owned()];
    let size = model.config().hidden_size;
    let mut classifier = Classifier::begin(labels, size, AdamW::default(), 5).unwrap();
    let before = classifier.clone();
    let passed = blocks.forward(&lengths, &entering).await.unwrap();
    let learned = classifier.learn(model.ends(), passed.output(), &lengths, &classes).unwrap();
    let back = blocks.backward(&passed, &learned.gradient).await.unwrap();

    let (along, length) = direction(classifier.score().gradients());
    let loss_at = |sign: f32| {
        let mut moved = before.clone();
        let values = moved.score_mut().values_mut().iter_mut().zip(&along);
        values.for_each(|(value, along)| *value += sign * along);
        moved.learn(model.ends(), passed.output(), &lengths, &classes).unwrap().loss
    };
    let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * f64::from(STEP));
    assert!((slope / length - 1.0).abs() < ERROR_MAX, "the head: {slope}, not {length}");

    let (along, length) = direction(&back.to_values());
    let mut losses = Vec::new();
    for sign in [1.0, -1.0] {
        let values = entering.to_values();
        let moved = values.iter().zip(&along).map(|(at, along)| at + 0.1 * sign * along);
        let moved = HiddenStates::from_values(moved.collect(), size).unwrap();
        let passed = blocks.forward(&lengths, &moved).await.unwrap();
        let learned = before.clone().learn(model.ends(), passed.output(), &lengths, &classes);
        losses.push(learned.unwrap().loss);
    }
    let slope = (losses[0] - losses[1]) / (0.2 * f64::from(STEP));
    assert!((slope / length - 1.0).abs() < ERROR_MAX, "what enters: {slope}, not {length}");

    let mut learn = |lengths: &[u32], classes: &[usize]| {
        classifier.learn(model.ends(), passed.output(), lengths, classes).map(|_| ())
    };
    assert!(matches!(learn(&lengths, &[1, 3]), Err(HeadError::Class { found: 3, count: 3 })));
    assert!(matches!(learn(&lengths, &[1]), Err(HeadError::Texts)));
    assert!(matches!(learn(&[9, 5], &classes), Err(HeadError::Texts)));
    assert!(matches!(learn(&[13, 0], &classes), Err(HeadError::Texts)));
    blocks.close().await;
    [first, second].iter().for_each(|server| server.assert_no_errors());
}
