//! Rows that are scaled to learned norms: against sums of matrices put together, and where they begin.

use umbel_shard::Weight;

use super::oracle::{ERROR_MAX, reference};
use super::*;
use crate::kernel::specimen::{ALL_TYPES, Numbers, weights};
use crate::kernel::{InstructionSet, PackedMatrix, dequantize_row};
use crate::reference::widen;
use crate::train::adapter::LoraMatrices;
use crate::train::state::WriteError;

/// The adapter of other tests with magnitudes up to a fifth beside the norms of the frozen rows.
pub(super) fn decomposed(world: &World, dropout: f32) -> Adapter {
    let mut adapter = begun(world, dropout);
    let magnitudes: Vec<f32> = magnitudes(&adapter);
    let noise = Stream::of(9, 6);
    let beside = magnitudes.iter().zip(0..);
    let beside = beside.map(|(magnitude, index)| magnitude * (1.0 + noise.signed(index) * 0.2));
    adapter.set_magnitudes(&beside.collect::<Vec<_>>()).unwrap();
    adapter
}

/// The same with the norms of the frozen rows for magnitudes.
fn begun(world: &World, dropout: f32) -> Adapter {
    let plain = adapter(&world.config, dropout);
    let config = AdapterConfig { weight_decomposed: true, ..plain.config().clone() };
    let mut adapter = Adapter::blank(config, &world.config, plain.blocks()).unwrap();
    for (place, matrices) in &mut adapter.parameters.matrices {
        let LoraMatrices { a, b, .. } = &plain.parameters.matrices[place];
        (matrices.a, matrices.b) = (a.clone(), b.clone());
    }
    assert!(adapter.lacks_magnitudes());
    let count = adapter.magnitude_count(adapter.blocks());
    let hosted = world.host(span(0, 3));
    let norms = hosted.first_magnitudes(&adapter, 0..count, &|| ()).unwrap().unwrap();
    adapter.set_magnitudes(&norms).unwrap();
    assert!(!adapter.lacks_magnitudes());
    adapter
}

fn magnitudes(adapter: &Adapter) -> Vec<f32> {
    adapter.parameters().iter().flat_map(|(_, of)| of.magnitudes().to_vec()).collect()
}

/// Rows of `values` with `scale B A` added.
fn add_product(values: &mut [f32], matrices: &LoraMatrices, scale: f32) {
    let columns = values.len() / (matrices.b().len() / matrices.rank());
    for (row, b) in values.chunks_exact_mut(columns).zip(matrices.b().chunks_exact(matrices.rank()))
    {
        for (factor, a) in b.iter().zip(matrices.a().chunks_exact(columns)) {
            row.iter_mut().zip(a).for_each(|(value, a)| *value += scale * factor * a);
        }
    }
}

fn norm(row: &[f32]) -> f64 {
    product(row, row).sqrt()
}

/// Scaled rows in the place of each matrix.
fn merged(world: &World, adapter: &Adapter) -> Weights {
    let merge = |(name, weight): (&str, &Weight)| {
        let mut values: Vec<f32> = widen(weight).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let place = adapter.parameters().iter().find(|((block, module), _)| {
            name.starts_with(&format!("model.layers.{block}."))
                && name.ends_with(&format!("{}.weight", module.name()))
        });
        if let Some((_, matrices)) = place {
            add_product(&mut values, matrices, adapter.config().scale());
            let rows = values.chunks_exact_mut(weight.columns());
            for (row, magnitude) in rows.zip(matrices.magnitudes()) {
                #[expect(clippy::cast_possible_truncation, reason = "weights are binary32")]
                let factor = (f64::from(*magnitude) / norm(row)) as f32;
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = weight.shape().to_vec();
        (name.to_owned(), Weight::new(WeightType::F32, shape, bytes).unwrap())
    };
    world.weights.iter().map(merge).collect()
}

#[test]
fn magnitudes_are_the_norms_of_rows_of_the_weights_and_what_is_added() {
    for family in Family::ALL {
        let world = World::new(family, WeightType::F32);
        let adapter = decomposed(&world, 0.0);
        let (output, back) = world.train(&world.host(span(0, 3)), Some(&adapter));
        let [outputs, gradients] = reference(&world, &merged(&world, &adapter));
        let error = relative_error(&output.to_values(), &outputs);
        assert!(error < ERROR_MAX, "{family}, output: {error}");
        let error = relative_error(&back.input.to_values(), &gradients);
        assert!(error < ERROR_MAX, "{family}, gradient: {error}");
    }
}

/// Of every type, in as many panels as there are, and with edges of tiles.
#[test]
fn norms_are_those_of_whole_rows_and_the_same_for_every_processor() {
    let mut numbers = Numbers(7);
    for kind in ALL_TYPES {
        let columns = if kind.is_float() { 129 } else { kind.block_values() * 3 };
        for (rows, rank) in [(70, 3), (31, 70)] {
            let bytes = weights(kind, rows * columns, &mut numbers);
            let mut values = vec![0.0; rows * columns];
            dequantize_row(kind, &bytes, &mut values);
            let mut draw = |count: usize| -> Vec<f32> {
                (0..count).map(|_| f32::from(numbers.byte()) / 1024.0 - 0.1).collect()
            };
            let matrices = LoraMatrices::new(draw(rank * columns), draw(rows * rank), rank);
            let weight = Weight::new(kind, vec![rows, columns], &bytes[..]).unwrap();
            let of = |set, lora| {
                crate::train::dora::row_norms(&PackedMatrix::pack_for(set, &weight), lora, &|| ())
            };
            for lora in [None, Some((&matrices, 0.5))] {
                if let Some((matrices, scale)) = lora {
                    add_product(&mut values, matrices, scale);
                }
                let norms = of(InstructionSet::Portable, lora);
                for (row, found) in values.chunks_exact(columns).zip(&norms) {
                    let error = (f64::from(*found) / norm(row) - 1.0).abs();
                    assert!(error < 1e-6, "{kind}: {found}, not {}", norm(row));
                }
                for set in InstructionSet::all() {
                    assert_eq!(of(set, lora), norms, "{kind} {set:?}");
                }
            }
        }
    }
}

#[test]
fn magnitudes_change_no_bit_where_they_begin() {
    for (family, weight_type) in
        [(Family::Qwen2, WeightType::F32), (Family::Llama, WeightType::Q4K)]
    {
        let world = World::new(family, weight_type);
        let mut new = begun(&world, 0.0);
        new.parameters.matrices.values_mut().for_each(|matrices| matrices.b.fill(0.0));
        let hosted = world.host(span(0, 3));
        let [with, without] = [Some(&new), None].map(|adapter| world.train(&hosted, adapter));
        assert_eq!(with.0.to_values(), without.0.to_values());
        assert_eq!(with.1.input.to_values(), without.1.input.to_values());
        let learns = |of: &LoraMatrices| of.magnitudes().iter().all(|gradient| *gradient != 0.0);
        assert!(with.1.parameters.iter().all(|(_, matrices)| learns(matrices)));
    }
}

#[test]
fn scales_follow_the_values_and_the_weights() {
    let world = World::new(Family::Llama, WeightType::F32);
    let other = World::new(Family::Llama, WeightType::BF16);
    let mut adapter = decomposed(&world, 0.0);
    let hosted = world.host(span(0, 3));
    let copy = |adapter: &Adapter| {
        let mut copy =
            Adapter::blank(adapter.config().clone(), &world.config, adapter.blocks()).unwrap();
        let count = copy.parameters().value_count();
        copy.write(0, &adapter.values(span(0, 3), 0..count).unwrap()).unwrap();
        copy
    };
    let output = |hosted: &HostedSpan, adapter: &Adapter| {
        world.pass(hosted, Some(adapter)).forward(&world.input).unwrap().output.to_values()
    };
    let before = output(&hosted, &adapter);
    let (_, back) = world.train(&hosted, Some(&adapter));
    let mut optimizer = Optimizer::new(AdamW::default(), &adapter);
    optimizer.step(&mut adapter, &back.parameters, 0.01, 1.0).unwrap();
    let after = output(&hosted, &adapter);
    assert_ne!(after, before);
    assert_eq!(after, output(&hosted, &copy(&adapter)), "none is left from before the step");
    let elsewhere = other.host(span(0, 3));
    assert_eq!(output(&elsewhere, &adapter), output(&elsewhere, &copy(&adapter)));
    let norms: Vec<f32> = magnitudes(&adapter).iter().map(|magnitude| magnitude.abs()).collect();
    adapter.set_magnitudes(&norms.iter().map(|norm| norm * 2.0).collect::<Vec<_>>()).unwrap();
    assert_eq!(output(&hosted, &adapter), output(&hosted, &copy(&adapter)));
}

#[test]
fn a_row_of_zeros_stays_one() {
    let mut world = World::new(Family::Llama, WeightType::F32);
    let zero = |(name, weight): (&str, &Weight)| {
        let mut bytes = weight.bytes().to_vec();
        if name.ends_with("up_proj.weight") {
            bytes[..weight.columns() * 4].fill(0);
        }
        (name.to_owned(), Weight::new(WeightType::F32, weight.shape().to_vec(), bytes).unwrap())
    };
    world.weights = world.weights.iter().map(zero).collect();
    let mut new = begun(&world, 0.0);
    new.parameters.matrices.values_mut().for_each(|matrices| matrices.b.fill(0.0));
    let (output, back) = world.train(&world.host(span(0, 3)), Some(&new));
    assert!(output.to_values().iter().all(|value| value.is_finite()));
    assert!(back.parameters.sum_of_squares().is_finite());
    let up = back.parameters.at(0, TargetModule::Up).unwrap();
    assert_eq!((up.magnitudes()[0], &up.b()[..3]), (0.0, &[0.0; 3][..]));
}

#[test]
fn magnitudes_that_do_not_fit_are_refused() {
    let world = World::new(Family::Llama, WeightType::F32);
    let mut adapter = begun(&world, 0.0);
    let right = magnitudes(&adapter);
    let count = right.len() as u64;
    assert_eq!(adapter.magnitude_count(span(0, 3)), count);
    assert_eq!(adapter.magnitude_count(span(1, 2)), count / 3);
    let refused =
        |adapter: &mut Adapter, values: &[f32]| adapter.set_magnitudes(values).unwrap_err();
    let too_many = WriteError::TooMany { count };
    assert_eq!(refused(&mut adapter, &right[1..]), too_many);
    assert_eq!(refused(&mut adapter, &[&right[..], &[1.0]].concat()), too_many);
    for value in [-1.0, f32::NAN, f32::INFINITY] {
        let mut wrong = right.clone();
        wrong[3] = value;
        assert_eq!(refused(&mut adapter, &wrong), WriteError::NotFinite);
    }
    assert_eq!(magnitudes(&adapter), right, "nothing has changed");

    let hosted = world.host(span(1, 3));
    let refused = hosted.row_norms(0, TargetModule::Key, &|| ()).unwrap_err();
    assert!(matches!(refused, TrainError::NotHosted { .. }), "{refused}");
    let part = adapter.part(span(1, 3)).unwrap();
    let range = |start, end| hosted.first_magnitudes(&part, start..end, &|| ()).unwrap();
    let all = range(0, count / 3 * 2).unwrap();
    assert_eq!(all, right[right.len() / 3..]);
    assert_eq!(range(100, 3_000).unwrap(), all[100..3_000]);
    assert_eq!(range(0, count), None);
    assert_eq!(range(u64::MAX, u64::MAX), Some(Vec::new()));

    let mut wider = world.config.clone();
    wider.intermediate_size *= 2;
    let wider = Adapter::blank(adapter.config().clone(), &wider, span(0, 3)).unwrap();
    let hosted = world.host(span(0, 3));
    let count = wider.magnitude_count(span(0, 3));
    let refused = hosted.first_magnitudes(&wider, 0..count, &|| ()).unwrap_err();
    assert!(matches!(refused, TrainError::OtherModel { .. }), "{refused}");
}
