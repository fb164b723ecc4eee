//! Blocks of a swarm between layers of one's own: the numbers of transformers and of one process,
//! whichever servers are killed meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use umbel_client::train::{FrozenBlocks, FrozenError, TrainError};
use umbel_client::{ClientModel, Swarm, SwarmConfig};
use umbel_engine::train::{Adapter, PeftFiles, Sequence, TrainingPass};
use umbel_engine::{HiddenStates, HostedSpan};
use umbel_protocol::Span;
use umbel_shard::Part;
use umbel_tests::swarm::checkpoint;
use umbel_tests::training::{Lesson, PROMPT_TOKENS, TOKENS_MAX, join, start};
use umbel_tests::workload::client_model;

/// What implementations in binary32 differ by after a few blocks, beside values of about 1.
const HIDDEN_ERROR_MAX: f32 = 1e-4;

/// Texts of these lengths: the first two go together, and the last alone.
const LENGTHS: [u32; 3] = [19, 30, 40];

fn model() -> Arc<ClientModel> {
    client_model(&checkpoint("llama")).unwrap()
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// What transformers has at a boundary between blocks.
fn stored(boundary: u32) -> HiddenStates {
    let bytes = std::fs::read(Path::new(&checkpoint("llama")).join("golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(&format!("hidden_states.{boundary}")).unwrap();
    let values = tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    HiddenStates::from_values(values.collect(), *tensor.shape().last().unwrap()).unwrap()
}

/// Some values for each token of [`LENGTHS`].
fn values(seed: u32) -> HiddenStates {
    let count = LENGTHS.iter().sum::<u32>() * 64;
    let value = |index: u32| ((index * 37 + seed) as f32 * 0.618).sin();
    HiddenStates::from_values((0..count).map(value).collect(), 64).unwrap()
}

/// What one process makes of [`values`] forward and back.
fn alone(
    model: &ClientModel,
    blocks: Span,
    adapter: Option<&Adapter>,
) -> (HiddenStates, HiddenStates) {
    let weights = model.shard().weights(Part::Blocks(blocks)).unwrap();
    let hosted = HostedSpan::load(model.config(), &weights, blocks).unwrap();
    let sequences = LENGTHS.map(|tokens| Sequence { tokens: tokens as usize, dropout_seed: 0 });
    let pass = TrainingPass::new(&hosted, blocks, adapter, &sequences).unwrap();
    let pass = pass.without_dropout();
    let forward = pass.forward(&values(0)).unwrap();
    let backward = pass.backward(&forward.inputs, &values(1)).unwrap();
    (forward.output, backward.input)
}

async fn open(swarm: &Arc<Swarm>, model: &ClientModel, blocks: Span) -> FrozenBlocks {
    FrozenBlocks::open(Arc::clone(swarm), model, blocks, None, TOKENS_MAX).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_blocks_forward_and_back_are_those_of_others_and_of_one_process() {
    let first = start("0..1", None);
    let servers = [start("1..3", Some(&first)), start("3..4", Some(&first))];
    let (model, swarm) = (model(), join(&first).await.unwrap());
    for (begin, end) in [(0, 3), (1, 3), (2, 3), (0, 1)] {
        let mut blocks = open(&swarm, &model, span(begin, end)).await;
        let passed = blocks.forward(&[19], &stored(begin)).await.unwrap();
        let (found, expected) = (passed.output().to_values(), stored(end).to_values());
        let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(errors.fold(0.0, f32::max) < HIDDEN_ERROR_MAX, "{begin}..{end}");
        blocks.close().await;
    }
    for blocks in [span(0, 4), span(1, 4)] {
        let (output, gradient) = alone(&model, blocks, None);
        let mut frozen = open(&swarm, &model, blocks).await;
        let passed = frozen.forward(&LENGTHS, &values(0)).await.unwrap();
        assert_eq!(passed.output().to_values(), output.to_values(), "{blocks}");
        // As often as it is asked for, also after something else.
        let _other = frozen.forward(&LENGTHS, &values(2)).await.unwrap();
        for _ in 0..2 {
            let back = frozen.backward(&passed, &values(1)).await.unwrap();
            assert_eq!(back.to_values(), gradient.to_values(), "{blocks}");
        }
        frozen.close().await;
    }
    [first].iter().chain(&servers).for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_with_an_adapter_are_those_of_one_process() {
    let server = start("0..4", None);
    let (model, swarm) = (model(), join(&server).await.unwrap());
    let files = PeftFiles::read(&Path::new(&checkpoint("llama")).join("lora"), model.config());
    let adapter = Adapter::from_peft(&files.unwrap(), model.config(), span(0, 4)).unwrap();
    let blocks = span(1, 3);
    let part = adapter.part(blocks).unwrap();
    let (output, gradient) = alone(&model, blocks, Some(&part));
    assert_ne!(output.to_values(), alone(&model, blocks, None).0.to_values());
    let opened = FrozenBlocks::open(swarm, &model, blocks, Some(&adapter), TOKENS_MAX).await;
    let mut frozen = opened.unwrap();
    let passed = frozen.forward(&LENGTHS, &values(0)).await.unwrap();
    assert_eq!(passed.output().to_values(), output.to_values());
    let back = frozen.backward(&passed, &values(1)).await.unwrap();
    assert_eq!(back.to_values(), gradient.to_values());
    server.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_on_the_way_back_is_replaced() {
    let first = start("0..2", None);
    let doomed = start("2..4", Some(&first));
    let (model, swarm) = (model(), join(&first).await.unwrap());
    let (_, gradient) = alone(&model, span(0, 4), None);
    let mut frozen = open(&swarm, &model, span(0, 4)).await;
    let passed = frozen.forward(&LENGTHS, &values(0)).await.unwrap();
    // Split otherwise, so that what entered block 3 is computed once more.
    let others = [start("2..3", Some(&first)), start("3..4", Some(&first))];
    doomed.kill();
    let back = frozen.backward(&passed, &values(1)).await.unwrap();
    assert_eq!(back.to_values(), gradient.to_values());
    assert_eq!(frozen.replaced(), 1);
    assert_eq!(frozen.route().len(), 3);
    [first].iter().chain(&others).for_each(|server| server.assert_no_errors());
}

/// A pass over the servers that were found, and not over the others, would have numbers too.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_for_which_nobody_was_there_are_looked_for_again() {
    let model = model();
    let first = start("0..2", None);
    let second = start("2..4", Some(&first));
    let join = vec![first.address().parse().unwrap()];
    let patience = Duration::from_secs(3);
    let swarm = Swarm::join(SwarmConfig { join, patience, ..SwarmConfig::default() });
    let swarm = Arc::new(swarm.await.unwrap());
    let mut frozen = open(&swarm, &model, span(0, 4)).await;
    second.kill();
    for _ in 0..2 {
        let nobody = frozen.forward(&LENGTHS, &values(0)).await.err().unwrap();
        let is_missing = matches!(nobody, FrozenError::Train(TrainError::NoRoute { .. }));
        assert!(is_missing, "{nobody}");
    }
    let third = start("2..4", Some(&first));
    let passed = frozen.forward(&LENGTHS, &values(0)).await.unwrap();
    let (expected, _) = alone(&model, span(0, 4), None);
    assert_eq!(passed.output().to_values(), expected.to_values());
    [first, third].iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_computed_is_refused_with_its_reason() {
    let first = start("0..2", None);
    let (model, swarm) = (model(), join(&first).await.unwrap());
    let mut frozen = open(&swarm, &model, span(0, 2)).await;
    let hidden = values(0);
    let shape = frozen.forward(&[19], &hidden).await.err().unwrap();
    assert!(matches!(shape, FrozenError::Shape { expected: [19, 64], found: [89, 64] }), "{shape}");
    let wide = HiddenStates::from_values(hidden.to_values(), 32).unwrap();
    assert!(matches!(frozen.forward(&[178], &wide).await, Err(FrozenError::Shape { .. })));
    for lengths in [&[89][..], &[0, 60, 29]] {
        let length = frozen.forward(lengths, &hidden).await.err().unwrap();
        assert!(matches!(length, FrozenError::Length { max: TOKENS_MAX, .. }), "{length}");
    }
    let context = u32::try_from(model.config().context_tokens).unwrap();
    let all = FrozenBlocks::open(Arc::clone(&swarm), &model, span(0, 2), None, 2 * context);
    let long = HiddenStates::from_values(vec![0.0; (context as usize + 1) * 64], 64).unwrap();
    let length = all.await.unwrap().forward(&[context + 1], &long).await.err().unwrap();
    assert!(matches!(length, FrozenError::Length { max, .. } if max == context), "{length}");
    let passed = frozen.forward(&LENGTHS, &hidden).await.unwrap();
    let short = hidden.rows(0..3).unwrap();
    assert!(matches!(frozen.backward(&passed, &short).await, Err(FrozenError::Shape { .. })));
    // It is of use after all that.
    frozen.backward(&passed, &values(1)).await.unwrap();

    for deep in [false, true] {
        let lesson = Lesson::of_prompt(deep);
        let (all, prompt) = (span(0, 4), Some(lesson.state.adapter()));
        let unsaid = FrozenBlocks::open(Arc::clone(&swarm), &model, all, prompt, 8).await;
        assert!(matches!(unsaid, Err(FrozenError::Prompt { tokens: PROMPT_TOKENS })));
    }
    let missing = FrozenBlocks::open(swarm, &model, span(4, 5), None, 8).await;
    assert!(matches!(missing, Err(FrozenError::Blocks(_))));
    let join = vec![first.address().parse().unwrap()];
    let hasty = SwarmConfig { join, patience: Duration::from_secs(1), ..SwarmConfig::default() };
    let hasty = Arc::new(Swarm::join(hasty).await.unwrap());
    let nobody = FrozenBlocks::open(hasty, &model, span(0, 3), None, 8).await;
    assert!(matches!(nobody, Err(FrozenError::Train(TrainError::NoRoute { .. }))));
    first.assert_no_errors();
}
