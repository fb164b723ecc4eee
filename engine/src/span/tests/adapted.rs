//! Sessions with adapters: each row has its own, and no other's.

use std::cell::Cell;
use std::sync::Arc;

use super::batch::assert_the_same_with;
use super::*;
use crate::train::{Adapter, AdapterConfig, Sequence, TargetModule, TrainError, TrainingPass};

/// An adapter for all blocks and matrices, which changes results by about a tenth.
fn adapter(world: &World, rank: usize, seed: u32) -> Arc<Adapter> {
    let config = AdapterConfig {
        rank,
        alpha: 2.0,
        rank_stabilized: false,
        dropout: 0.5,
        target_modules: model::targets(&world.config),
        ..AdapterConfig::default()
    };
    let mut adapter = Adapter::blank(config, &world.config, span(0, 3)).unwrap();
    let count = u32::try_from(adapter.parameters().value_count()).unwrap();
    let value = |index: u32| {
        let bits = (index ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b) >> 16;
        (bits as f32 / 65_536.0 - 0.5) * 0.1
    };
    adapter.write(0, &(0..count).map(value).collect::<Vec<_>>()).unwrap();
    Arc::new(adapter)
}

/// The same whose rows are scaled to magnitudes a fifth above their norms.
fn decomposed(world: &World, rank: usize, seed: u32) -> Arc<Adapter> {
    let plain = adapter(world, rank, seed);
    let config = AdapterConfig { weight_decomposed: true, ..plain.config().clone() };
    let mut decomposed = Adapter::blank(config, &world.config, span(0, 3)).unwrap();
    let count = decomposed.magnitude_count(span(0, 3));
    let norms = world.host(span(0, 3)).first_magnitudes(&decomposed, 0..count, &|| ());
    let norms = norms.unwrap().unwrap();
    let values = decomposed.parameters().value_count();
    let value = |index: u64| {
        let bits = (index ^ u64::from(seed)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (bits as f32 / 65_536.0 - 0.5) * 0.1
    };
    decomposed.write(0, &(0..values).map(value).collect::<Vec<_>>()).unwrap();
    let above = norms.iter().map(|norm| norm * 1.2);
    decomposed.set_magnitudes(&above.collect::<Vec<_>>()).unwrap();
    Arc::new(decomposed)
}

/// Vectors that each block adds to the first tokens of a session.
fn prompts(world: &World, tokens: usize) -> Arc<Adapter> {
    let config = AdapterConfig { block_prompt_tokens: tokens, ..AdapterConfig::default() };
    let mut adapter = Adapter::blank(config, &world.config, span(0, 3)).unwrap();
    let count = u16::try_from(adapter.parameters().value_count()).unwrap();
    let values = (0..count).map(|index| f32::from(index.wrapping_mul(40_503)) / 65_536.0 - 0.5);
    adapter.write(0, &values.collect::<Vec<_>>()).unwrap();
    Arc::new(adapter)
}

#[test]
fn rows_with_several_adapters_and_without_give_the_bits_of_each_alone() {
    for family in FAMILIES {
        for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q4_1, WeightType::Q6K] {
            let world = World::new(family, weight_type);
            let (first, second) = (adapter(&world, 3, 1), adapter(&world, 8, 2));
            let prompts = prompts(&world, 5);
            let of_sessions = [Some(&first), None, Some(&prompts), Some(&second)];
            let blocks = [span(0, 3); 4];
            assert_the_same_with(&world, &blocks, of_sessions, &format!("{family} with prompts"));
            let scaled = decomposed(&world, 4, 3);
            let of_sessions = [Some(&scaled), None, Some(&first), Some(&scaled)];
            assert_the_same_with(
                &world,
                &blocks,
                of_sessions,
                &format!("{family} with magnitudes"),
            );
            let of_sessions = [Some(&first), None, Some(&first), Some(&second)];
            assert_the_same_with(&world, &blocks, of_sessions, &format!("{family} {weight_type}"));
            let blocks = [span(0, 2), span(1, 3), span(1, 2), span(0, 3)];
            assert_the_same_with(&world, &blocks, of_sessions, &format!("{family} in parts"));
        }
    }
}

/// Of the largest value: attention of a pass of training adds in another order.
const DIFFERENCE_MAX: f32 = 1e-5;

#[test]
fn a_session_gives_what_a_pass_of_training_gives() {
    for family in FAMILIES {
        let world = World::new(family, WeightType::F32);
        assert_session_trains_alike(&world, adapter(&world, 4, 3), &format!("{family}"));
        let what = format!("{family}, magnitudes");
        assert_session_trains_alike(&world, decomposed(&world, 4, 3), &what);
        // Steps that begin in the prompt, end in it, and stand behind it.
        for tokens in [4, 9, 12, 30] {
            let what = format!("{family}, a prompt of {tokens}");
            assert_session_trains_alike(&world, prompts(&world, tokens), &what);
        }
    }
}

fn assert_session_trains_alike(world: &World, adapter: Arc<Adapter>, what: &str) {
    let (hosted, input) = (world.host(span(0, 3)), model::hidden(23, 5));
    let sequences = [Sequence { tokens: 23, dropout_seed: 0 }];
    let pass = TrainingPass::new(&hosted, span(0, 3), Some(&adapter), &sequences).unwrap();
    let trained = pass.without_dropout().forward(&input).unwrap().output;
    let mut table = world.open(span(0, 3));
    hosted.adapt(&mut table, adapter).unwrap();
    let mut found = Vec::new();
    for rows in [0..9, 9..10, 10..23] {
        let output = hosted.forward(&mut table, &input.rows(rows).unwrap()).unwrap();
        found.extend(output.to_values());
    }
    let largest = |values: &[f32]| values.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    let away = |other: &HiddenStates| -> f32 {
        let pairs = found.iter().zip(other.to_values());
        largest(&pairs.map(|(found, other)| found - other).collect::<Vec<_>>())
    };
    let difference = away(&trained) / largest(&found);
    assert!(difference < DIFFERENCE_MAX, "{what}: {difference}");
    let mut plain = world.open(span(0, 3));
    let without = hosted.forward(&mut plain, &input).unwrap();
    assert!(away(&without) > 0.01, "{what}: the adapter changes something");
}

#[test]
fn what_was_prepared_is_what_passes_compute_with_and_none_waits_for_it() {
    let world = World::new(Family::Llama, WeightType::Q4_1);
    let (hosted, input) = (world.host(span(0, 3)), model::hidden(7, 5));
    let forward = |adapter: &Arc<Adapter>| {
        let mut table = world.open(span(0, 3));
        hosted.adapt(&mut table, Arc::clone(adapter)).unwrap();
        hidden_bits(&hosted.forward(&mut table, &input).unwrap())
    };
    let expected = forward(&decomposed(&world, 4, 3));
    let prepared = decomposed(&world, 4, 3);
    for block in 0..3 {
        assert!(!hosted.is_prepared(span(block, block + 1), &prepared));
        hosted.prepare(block, &prepared, &|| ());
        assert!(hosted.is_prepared(span(0, block + 1), &prepared));
    }
    assert_eq!(forward(&prepared), expected);
    assert!(!world.host(span(0, 3)).is_prepared(span(0, 3), &prepared), "of other weights");
    assert!(hosted.is_prepared(span(0, 3), &adapter(&world, 4, 3)), "it has no magnitudes");
    // A pass with the same adapter, between two parts of the work.
    let (early, passes) = (decomposed(&world, 4, 3), Cell::new(0));
    hosted.prepare(0, &early, &|| {
        assert_eq!(forward(&early), expected);
        passes.set(passes.get() + 1);
    });
    assert!(passes.get() > 0);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(0, 3));
    let whole = adapter(&world, 2, 1);
    let mut table = world.open(span(0, 3));
    let part = Arc::new(whole.part(span(0, 2)).unwrap());
    let refused = hosted.adapt(&mut table, part);
    assert!(matches!(refused, Err(TrainError::NotAdapted { .. })), "{refused:?}");
    let other = umbel_shard::ModelConfig { intermediate_size: 128, ..world.config.clone() };
    let other = Adapter::blank(whole.config().clone(), &other, span(0, 3)).unwrap();
    let refused = hosted.adapt(&mut table, Arc::new(other));
    assert!(matches!(refused, Err(TrainError::OtherModel { .. })), "{refused:?}");
    let sparse = World::new(Family::Mixtral, WeightType::F32);
    let mut of_sparse = sparse.open(span(0, 3));
    let refused = sparse.host(span(0, 3)).adapt(&mut of_sparse, Arc::clone(&whole));
    let module = TargetModule::Gate;
    assert_eq!(refused, Err(TrainError::Experts { block: 0, module }), "no MLP to add to");
    let narrow = umbel_shard::ModelConfig { hidden_size: 64, ..world.config.clone() };
    let config = prompts(&world, 3).config().clone();
    let narrow = Adapter::blank(config, &narrow, span(0, 3)).unwrap();
    let refused = hosted.adapt(&mut table, Arc::new(narrow));
    assert!(matches!(refused, Err(TrainError::OtherWidth { found: 64, .. })), "{refused:?}");
    let elsewhere = world.host(span(1, 3));
    let refused = elsewhere.adapt(&mut table, whole);
    assert!(matches!(refused, Err(TrainError::NotHosted { .. })), "{refused:?}");
    // It is as it was.
    hosted.forward(&mut table, &model::hidden(2, 1)).unwrap();
}
