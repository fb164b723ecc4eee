//! What changes no bit.

use std::num::NonZeroUsize;

use super::dora::decomposed;
use super::*;
use crate::device::Device;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn all_bits((output, back): &(HiddenStates, Backward)) -> [Vec<u32>; 3] {
    let parameters: Vec<f32> = back.parameters.rows().flat_map(|(_, row)| row.to_vec()).collect();
    [&output.to_values(), &back.input.to_values(), &parameters].map(|values| bits(values))
}

/// A model and an adapter with dropout, in two types that are packed in different ways.
fn worlds() -> impl Iterator<Item = (World, Adapter)> {
    [(Family::Qwen3, WeightType::F32), (Family::Mistral, WeightType::Q4_1)].into_iter().map(
        |(family, weight_type)| {
            let world = World::new(family, weight_type);
            let adapter = adapter(&world.config, 0.2);
            (world, adapter)
        },
    )
}

/// The same, magnitudes too in the blocks of a third, and prompts in those of a fourth, of which one
/// sequence has as many tokens as they.
fn worlds_and_prompts() -> impl Iterator<Item = (World, Adapter)> {
    let with_magnitudes = World::new(Family::Qwen2, WeightType::Q4_1);
    let magnitudes = decomposed(&with_magnitudes, 0.2);
    let world = World::new(Family::Llama, WeightType::Q4K);
    let adapter = prompts(&world.config, 7).part(span(0, 3)).unwrap();
    worlds().chain([(with_magnitudes, magnitudes), (world, adapter)])
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (world, adapter) in worlds_and_prompts() {
        let on = |threads| {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            let hosted = world.host(span(0, 3)).on(device);
            all_bits(&world.train(&hosted, Some(&adapter)))
        };
        let alone = on(1);
        assert!([2, 3, 7].into_iter().all(|threads| on(threads) == alone));
    }
}

#[test]
fn a_split_into_spans_changes_no_bit() {
    for (world, adapter) in worlds_and_prompts() {
        let whole = all_bits(&world.train(&world.host(span(0, 3)), Some(&adapter)));
        let spans = [span(0, 2), span(2, 3)].map(|blocks| (world.host(blocks), blocks));
        let parts = spans.map(|(hosted, blocks)| (hosted, adapter.part(blocks).unwrap()));
        let mut inputs = Vec::new();
        let mut hidden = world.input.clone();
        for (hosted, adapter) in &parts {
            let forward = world.pass(hosted, Some(adapter)).forward(&hidden).unwrap();
            inputs.push(forward.inputs);
            hidden = forward.output;
        }
        let mut gradient = world.gradient.clone();
        let mut parameters = Parameters::default();
        for ((hosted, adapter), inputs) in parts.iter().zip(&inputs).rev() {
            let pass = world.pass(hosted, Some(adapter));
            let back = pass.backward(inputs, &gradient).unwrap();
            gradient = back.input;
            parameters.extend(back.parameters);
        }
        let joined = Adapter::join(&parts.map(|(_, adapter)| adapter)).unwrap();
        assert_eq!(joined, adapter);
        assert_eq!(all_bits(&(hidden, Backward { input: gradient, parameters })), whole);
    }
}

#[test]
fn the_sequences_beside_one_change_no_bit_of_it() {
    for (world, adapter) in worlds_and_prompts() {
        let hosted = world.host(span(0, 3));
        let [together, gradients, _] = all_bits(&world.train(&hosted, Some(&adapter)));
        let rows = world.sequences[0].tokens..TOKENS;
        let pass =
            TrainingPass::new(&hosted, span(0, 3), Some(&adapter), &world.sequences[1..]).unwrap();
        let forward = pass.forward(&world.input.rows(rows.clone()).unwrap()).unwrap();
        let gradient = world.gradient.rows(rows.clone()).unwrap();
        let back = pass.backward(&forward.inputs, &gradient).unwrap();
        let start = rows.start * world.input.hidden_size();
        assert_eq!(bits(&forward.output.to_values()), together[start..]);
        assert_eq!(bits(&back.input.to_values()), gradients[start..]);
    }
}

#[test]
fn a_replay_draws_the_same_masks_and_another_seed_does_not() {
    for (mut world, adapter) in worlds() {
        let first = all_bits(&world.train(&world.host(span(0, 3)), Some(&adapter)));
        let again = all_bits(&world.train(&world.host(span(0, 3)), Some(&adapter)));
        assert_eq!(first, again);
        world.sequences[0].dropout_seed += 1;
        let other = all_bits(&world.train(&world.host(span(0, 3)), Some(&adapter)));
        assert!(first.iter().zip(&other).all(|(first, other)| first != other));
    }
}

#[test]
fn without_dropout_nothing_is_dropped() {
    for (world, dropping) in worlds() {
        let hosted = world.host(span(0, 3));
        let output = |adapter, drops: bool| {
            let pass = world.pass(&hosted, Some(adapter));
            let pass = if drops { pass } else { pass.without_dropout() };
            bits(&pass.forward(&world.input).unwrap().output.to_values())
        };
        let without = adapter(&world.config, 0.0);
        let never = output(&without, true);
        assert_eq!(output(&dropping, false), never);
        assert_ne!(output(&dropping, true), never);
    }
}

#[test]
fn pauses_are_many_and_change_no_bit() {
    for (world, adapter) in worlds() {
        let hosted = world.host(span(0, 3));
        let expected = all_bits(&world.train(&hosted, Some(&adapter)));
        let pauses = std::cell::Cell::new(0);
        let count = || pauses.set(pauses.get() + 1);
        let pass = world.pass(&hosted, Some(&adapter)).pausing(&count);
        let forward = pass.forward(&world.input).unwrap();
        // Seven matrices with two of the adapter each, and attention, in each of three blocks.
        assert_eq!(pauses.replace(0), 3 * (7 * 3 + 1));
        let back = pass.backward(&forward.inputs, &world.gradient).unwrap();
        // All but the last matrix once more, then each of them back with five products of the adapter.
        assert_eq!(pauses.get(), 3 * (6 * 3 + 1) + 3 * (7 * 6 + 1));
        assert_eq!(all_bits(&(forward.output, back)), expected);
    }
}
