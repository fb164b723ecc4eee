//! Learned prompts: their gradients, training through servers that are killed, and sessions that begin with
//! them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use umbel_client::train::data::Example;
use umbel_client::train::prompt::{self, BeginPromptError};
use umbel_client::{
    Chain, ClientModel, Device, Generate, GenerateError, LocalModel, NamedAdapter, Opening,
    RemoteChain, SessionOptions, Speculate, Swarm,
};
use umbel_engine::train::{AdamW, TrainingState};
use umbel_protocol::training::StateKind;
use umbel_tests::adapted::{scattered, uncached};
use umbel_tests::swarm::Server;
use umbel_tests::training::{Kills, Lesson, PROMPT_TOKENS, join_all, local, start};
use umbel_tests::workload::finish;

/// Of a difference beside the gradient: the third derivative over a step, and rounding of binary32.
const ERROR_MAX: f64 = 1e-2;

/// A step that moves the loss by far more than it is rounded.
const STEP: f32 = 2e-3;

const ROOM: u32 = 110;

const TOKENS: u32 = 24;

/// How often a session is opened before it is wrong to begin otherwise than expected: what the last one
/// left may come to a server behind the opening of the next.
const TRIES: usize = 100;

/// The loss of a lesson's texts with other values.
async fn loss(lesson: &Lesson, values: &[f32]) -> f64 {
    let mut state = lesson.state.clone();
    state.write(StateKind::Values, 0, values).unwrap();
    let mut trainer = local(&lesson.model, state, lesson.settings);
    trainer.evaluate(&lesson.batch()).await.unwrap().loss
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_of_prompts_are_slopes_of_the_loss() {
    for deep in [false, true] {
        let lesson = Lesson::of_prompt(deep);
        let settings = umbel_client::train::TrainerSettings { clip: 1e9, ..lesson.settings };
        let mut trainer = local(&lesson.model, lesson.state.clone(), settings);
        // A step that goes nowhere leaves a tenth of the gradients as their running mean.
        trainer.step(&lesson.batch(), 0.0).await.unwrap();
        let count = lesson.state.value_count();
        let share = 1.0 / (1.0 - AdamW::default().beta1);
        let means = trainer.state().read(StateKind::Means, 0..count).unwrap();
        let values = lesson.state.read(StateKind::Values, 0..count).unwrap();
        assert_eq!(trainer.values(), values);
        // What stands before the text, and what each block adds.
        let prompt = PROMPT_TOKENS * lesson.model.config().hidden_size;
        assert_eq!(means.len(), if deep { 5 * prompt } else { prompt });
        for (part, means) in means.chunks(prompt).enumerate() {
            let length = means.iter().map(|mean| f64::from(*mean).powi(2)).sum::<f64>().sqrt();
            assert!(length > 0.0, "part {part}");
            let moved = |step: f32| {
                let mut values = values.clone();
                let part = values[part * prompt..].iter_mut().zip(means);
                #[expect(clippy::cast_possible_truncation, reason = "steps are binary32")]
                part.for_each(|(value, mean)| *value += step * mean / length as f32);
                values
            };
            let (behind, before) = (moved(STEP), moved(-STEP));
            let change = loss(&lesson, &behind).await - loss(&lesson, &before).await;
            let slope = change / (2.0 * f64::from(STEP));
            let error = (slope / (length * share) - 1.0).abs();
            assert!(error < ERROR_MAX, "deep {deep}, part {part}: {slope}, not {}", length * share);
        }
    }
}

/// As for adapters with matrices: along one route and along two, at moments that are drawn.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_a_prompt_is_learned_changes_no_bit() {
    for deep in [false, true] {
        let lesson = Lesson::of_prompt(deep);
        let blocks = umbel_protocol::Span::new(0, lesson.model.config().block_count).unwrap();
        let held = lesson.state.stretch(blocks);
        assert_eq!(held.is_empty(), !deep, "servers hold nothing of what stands before the text");
        let mut kills = Kills::start(lesson).await.unwrap();
        for seed in 0..4 {
            kills.run(seed).await.unwrap();
        }
        kills.assert_no_errors();
    }
}

#[test]
fn a_prompt_that_no_model_has_room_for_is_not_begun() {
    let model = Lesson::of_prompt(false).model;
    let begin = |tokens, text: &[u32]| prompt::begin(&model, (tokens, true), text, 1);
    assert!(matches!(begin(0, &[]), Err(BeginPromptError::NoToken)));
    let refused = begin(257, &[]).unwrap_err().to_string();
    assert!(refused.contains("257 tokens; this model takes 256"), "{refused}");
    assert!(matches!(begin(2, &[100_000]), Err(BeginPromptError::Ends(_))));
    let begun = begin(5, &[7, 8]).unwrap();
    let embedded = model.ends().embed(&[7, 8, 7, 8, 7]).unwrap();
    assert_eq!(begun.prompt(), embedded.to_values(), "the text, as often as there is room");
}

fn request() -> Generate {
    let prompt = (0..37).map(|place| 3 + place * 13 % 200).collect();
    Generate { max_tokens: TOKENS, ignore_eos: true, prefill_chunk: 16, ..Generate::new(prompt) }
}

/// A prompt whose every part changes what is answered.
fn adapter(model: &ClientModel, deep: bool, seed: u32) -> NamedAdapter {
    let mut adapter = prompt::begin(model, (PROMPT_TOKENS, deep), &[], seed.into()).unwrap();
    let values = scattered(adapter.parameters().value_count(), seed, 2.0);
    adapter.write(0, &values).unwrap();
    NamedAdapter::new(&adapter.to_peft(), model.config()).unwrap()
}

async fn open(
    swarm: &Arc<Swarm>,
    model: &Arc<ClientModel>,
    adapter: &NamedAdapter,
    options: SessionOptions,
) -> Chain {
    let prompt = &request().prompt;
    let opening = Opening { tokens_max: ROOM, prompt, options, adapter: Some(adapter.clone()) };
    let chain = RemoteChain::open_with(Arc::clone(swarm), model, opening).await;
    Chain::Remote(Box::new(chain.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_begin_with_a_prompt_outlive_their_servers() {
    let mut servers = vec![start("0..2", None)];
    servers.push(start("2..4", Some(&servers[0])));
    servers.push(start("0..2", Some(&servers[0])));
    let model = Lesson::of_prompt(false).model;
    let without = uncached(&model, None, &request()).await.unwrap();
    for (deep, standby) in [(false, false), (true, false), (false, true)] {
        let swarm = join_all(&servers.iter().collect::<Vec<_>>()).await.unwrap();
        let adapter = adapter(&model, deep, 3);
        let expected = uncached(&model, Some(&adapter), &request()).await.unwrap();
        assert_ne!(expected, without, "deep {deep}: it changes what is answered");
        let options = SessionOptions { standby, ..SessionOptions::default() };
        let chain = open(&swarm, &model, &adapter, options).await;
        assert_eq!(chain.tokens_max(), ROOM, "the room that was asked for is the text's");
        let request = Generate { speculate: Speculate::Prompt, ..request() };
        let mut generation = request.start(Arc::clone(&model), chain).unwrap();
        for _ in 0..7 {
            generation.next().await.unwrap().unwrap();
        }
        // The first of the route, for which the client itself has kept what was handed in.
        let peer = generation.chain().route()[0].0.unwrap().to_string();
        let doomed = servers.iter().position(|of| of.address().ends_with(&peer)).unwrap();
        servers.remove(doomed).kill();
        assert_eq!(finish(generation).await.unwrap(), expected, "deep {deep}, standby {standby}");
        let first: Option<&Server> = servers.first();
        let next = start("0..2", first);
        servers.push(next);
    }
    servers.iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_behind_a_prompt_is_taken_over_behind_the_same_one_alone() {
    let server = start("0..4", None);
    let model = Lesson::of_prompt(false).model;
    let swarm = join_all(&[&server]).await.unwrap();
    for deep in [false, true] {
        let (one, another) = (adapter(&model, deep, 1), adapter(&model, deep, 2));
        let begin = async |adapter: &NamedAdapter| {
            let chain = open(&swarm, &model, adapter, SessionOptions::default()).await;
            request().start(Arc::clone(&model), chain).unwrap()
        };
        let expected = uncached(&model, Some(&one), &request()).await.unwrap();
        assert_eq!(finish(begin(&one).await).await.unwrap(), expected, "deep {deep}");
        let other = begin(&another).await;
        assert_eq!(other.chain().held(), [0; 0], "another's");
        assert_eq!(
            finish(other).await.unwrap(),
            uncached(&model, Some(&another), &request()).await.unwrap()
        );
        let mut held = 0;
        for _ in 0..TRIES {
            let same = begin(&one).await;
            held = same.chain().held().len();
            assert_eq!(finish(same).await.unwrap(), expected, "deep {deep}, {held} held");
            if held > 0 {
                break;
            }
        }
        // Two pages of 16 tokens, of which the prompt has some.
        assert_eq!(held, 32 - PROMPT_TOKENS, "deep {deep}");
    }
    server.assert_no_errors();
}

/// As a chat does: the session of an answer has what the next one begins with.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_behind_its_prompt_with_a_longer_text() {
    let server = start("0..4", None);
    let model = Lesson::of_prompt(true).model;
    let swarm = join_all(&[&server]).await.unwrap();
    let adapter = adapter(&model, true, 4);
    let chain = open(&swarm, &model, &adapter, SessionOptions::default()).await;
    let mut generation = request().start(Arc::clone(&model), chain).unwrap();
    generation.finish().await.unwrap();
    let (chain, cached) = generation.into_chain();
    // It goes on with what was said, and with another text from the middle of the first on.
    let longer = [&cached[..], &[9, 8, 7]].concat();
    let other = [&cached[..20], &[7; 11]].concat();
    let mut kept = (chain, cached);
    for prompt in [longer, other] {
        let again = Generate { prompt, max_tokens: 6, ..request() };
        let mut generation = again.clone().resume(Arc::clone(&model), kept.0, &kept.1).unwrap();
        generation.finish().await.unwrap();
        let found = generation.tokens().to_vec();
        kept = generation.into_chain();
        let fresh = open(&swarm, &model, &adapter, SessionOptions::default()).await;
        assert_eq!(found, finish(again.start(Arc::clone(&model), fresh).unwrap()).await.unwrap());
    }
    kept.0.close().await;
    server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_embed_tokens_themselves_take_no_prompt() {
    let server = start("0..4", None);
    let model = Lesson::of_prompt(false).model;
    let swarm = join_all(&[&server]).await.unwrap();
    let options = SessionOptions { thin: true, ..SessionOptions::default() };
    let chain = open(&swarm, &model, &adapter(&model, false, 1), options).await;
    let Err(refused) = request().start(Arc::clone(&model), chain) else {
        panic!("it would be answered without its prompt")
    };
    assert!(matches!(refused, GenerateError::NoLogits), "{refused}");
    server.assert_no_errors();
}

/// A text and its prompt fill the model's context together.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_takes_its_part_of_the_context() {
    let model = Lesson::of_prompt(false).model;
    let context = model.config().context_tokens;
    let local = Arc::new(LocalModel::load(model.shard(), context, Device::shared()).unwrap());
    let adapter = adapter(&model, false, 1);
    let chain = local.open(u32::try_from(context).unwrap()).unwrap().adapted(&adapter).unwrap();
    let prompt = vec![5; context - PROMPT_TOKENS - 2];
    let request = Generate { max_tokens: 9, ignore_eos: true, ..Generate::new(prompt.clone()) };
    let generation = request.clone().start(Arc::clone(&model), Chain::Local(chain)).unwrap();
    assert_eq!(finish(generation).await.unwrap().len(), context - PROMPT_TOKENS);
    let chain = local.open(u32::try_from(context).unwrap()).unwrap().adapted(&adapter).unwrap();
    let long = Generate { prompt: [prompt, vec![5; 2]].concat(), ..request };
    let refused = long.start(Arc::clone(&model), Chain::Local(chain));
    assert!(matches!(refused, Err(GenerateError::PromptTooLong { .. })));
}

/// What a text teaches behind a prompt is what it teaches without one.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_adds_tokens_and_no_targets() {
    let lesson = Lesson::of_prompt(false);
    let text = Example::of_text((0..9).collect());
    let mut trainer = local(&lesson.model, lesson.state.clone(), lesson.settings);
    let report = trainer.evaluate(&[&text]).await.unwrap();
    assert_eq!((report.targets, report.tokens), (8, 8 + PROMPT_TOKENS));
    // Vectors of tokens stand where these tokens would: the same text, of which less is learned.
    let adapter = prompt::begin(&lesson.model, (PROMPT_TOKENS, true), &[11, 12, 13, 14, 15], 0);
    let state = TrainingState::new(adapter.unwrap(), AdamW::default());
    let mut behind = local(&lesson.model, state, lesson.settings);
    let behind = behind.evaluate(&[&text]).await.unwrap();
    let ids = [11, 12, 13, 14, 15].into_iter().chain(0..9).collect::<Vec<_>>();
    let hidden = lesson.model.ends().embed(&ids[..13]).unwrap();
    let local = Arc::new(LocalModel::load(lesson.model.shard(), 64, Device::shared()).unwrap());
    let (left, _) = Chain::Local(local.open(64).unwrap()).step(0, hidden).await.unwrap();
    let targets: Vec<_> =
        (1..14).map(|place| (place > PROMPT_TOKENS).then(|| ids[place])).collect();
    let loss = lesson.model.ends().loss(&left, &targets, 1.0).unwrap();
    assert!((behind.loss - loss.sum / 8.0).abs() < 1e-5, "{} and {}", behind.loss, loss.sum / 8.0);
}
