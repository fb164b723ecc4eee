//! Products against binary64, and what they must not depend on.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::kernel::activation::ROUNDING_MAX;
use crate::kernel::specimen::{
    ALL_TYPES, Numbers, bits, instruction_sets, weights, weights_with_scales, widened,
};

/// How far a sum in binary32 may be from the exact one, relative to the sum of the activations'
/// magnitudes times the largest weight. A single integer that is wrong by one step in a row of 576
/// values of 8 bits moves it by 14e-6, seven times as much.
const SUM_ERROR_MAX: f64 = 16.0 * f32::EPSILON as f64;

fn multiply(set: InstructionSet, weight: WeightView<'_>, input: &[f32]) -> Vec<f32> {
    // Not zeros, so that what is not written shows.
    let mut output = vec![f32::NAN; input.len() / weight.columns * weight.rows];
    matmul_with(set, weight, input, &mut output);
    output
}

/// The activations that the kernels for `kind` multiply, as they are after rounding.
fn rounded(set: InstructionSet, kind: WeightType, input: &[f32]) -> Vec<f64> {
    let value = |scale: f32, integer: i8| f64::from(scale) * f64::from(integer);
    match Activations::prepare(set, kind, input, input.len()) {
        Activations::Floats { values, .. } => values.iter().copied().map(f64::from).collect(),
        Activations::Blocks { values, factors, .. } => {
            let blocks = values.iter().zip(&factors);
            blocks.flat_map(|(v, f)| v.0.map(|integer| value(f.scale, integer))).collect()
        }
        Activations::SuperBlocks { values, .. } => {
            values.iter().flat_map(|v| v.values.map(|integer| value(v.scale, integer))).collect()
        }
    }
}

/// Checks every dot product against one in binary64 over the same weights and activations.
fn assert_exact(set: InstructionSet, weight: WeightView<'_>, input: &[f32]) {
    let WeightView { kind, bytes, rows, columns } = weight;
    let output = multiply(set, weight, input);
    for (input, output) in input.chunks(columns).zip(output.chunks(rows)) {
        let rounded = rounded(set, kind, input);
        for (row, &output) in bytes.chunks(weight.row_bytes()).zip(output) {
            let row = widened(kind, row);
            let largest = row.iter().fold(0.0, |largest: f64, weight| largest.max(weight.abs()));
            let magnitude = largest * rounded.iter().map(|input| input.abs()).sum::<f64>();
            let exact: f64 = row.iter().zip(&rounded).map(|(weight, input)| weight * input).sum();
            let error = (f64::from(output) - exact).abs();
            assert!(
                error <= SUM_ERROR_MAX * magnitude,
                "{kind} {rows}x{columns}, {set:?}: {output}, not {exact} of {magnitude}"
            );
        }
    }
}

fn columns_of_kind(kind: WeightType) -> Vec<usize> {
    match kind.block_values() {
        1 => vec![1, 7, 8, 9, 63, 576],
        32 => vec![32, 96, 576],
        _ => vec![256, 768],
    }
}

#[test]
fn every_type_is_multiplied_exactly_whatever_the_sizes() {
    let mut numbers = Numbers(5);
    for kind in ALL_TYPES {
        for columns in columns_of_kind(kind) {
            for rows in [1, 3, 7, 29] {
                // One byte before the weights, so that they begin at an odd address.
                let mut bytes = vec![0];
                bytes.extend(weights(kind, rows * columns, &mut numbers));
                let weight = WeightView { kind, bytes: &bytes[1..], rows, columns };
                for tokens in [1, 2, 3, 4, 5, 17] {
                    let input = numbers.floats(tokens * columns);
                    for set in instruction_sets() {
                        assert_exact(set, weight, &input);
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_the_activations_costs_at_most_half_a_step_of_each() {
    let mut numbers = Numbers(6);
    for kind in ALL_TYPES.into_iter().filter(|kind| !kind.is_float()) {
        let columns = 1536;
        let bytes = weights(kind, columns, &mut numbers);
        let weight = WeightView { kind, bytes: &bytes, rows: 1, columns };
        let input = numbers.floats(columns);
        let row = widened(kind, &bytes);
        let exact: f64 =
            row.iter().zip(&input).map(|(weight, &input)| weight * f64::from(input)).sum();
        // No activation is above 1, so no step is above 1/127.
        let error_max = row.iter().map(|weight| weight.abs()).sum::<f64>() * ROUNDING_MAX * 1.01;
        for set in instruction_sets() {
            let error = (f64::from(multiply(set, weight, &input)[0]) - exact).abs();
            assert!(error <= error_max, "{kind}: {error}, above {error_max}");
        }
    }
}

#[test]
fn where_nothing_has_to_be_rounded_every_instruction_set_gives_the_same_bits() {
    let mut numbers = Numbers(7);
    for kind in ALL_TYPES.into_iter().filter(|kind| !kind.is_float()) {
        // Scales that are powers of two, and integers whose sums have less than 24 bits.
        let bytes = weights_with_scales(kind, 7 * 512, &mut numbers, |_| 0.25);
        let weight = WeightView { kind, bytes: &bytes, rows: 7, columns: 512 };
        let small = |numbers: &mut Numbers| f32::from(numbers.byte() % 7) - 3.0;
        let mut input: Vec<f32> = (0..5 * 512).map(|_| small(&mut numbers)).collect();
        // The largest value decides the scale: 127 makes it 1.
        input.chunks_mut(32).for_each(|block| block[11] = 127.0);
        let [portable, own] = instruction_sets().map(|set| multiply(set, weight, &input));
        assert_eq!(bits(&portable), bits(&own), "{kind}");
        let row = widened(kind, &bytes[..weight.row_bytes()]);
        let exact: f64 =
            row.iter().zip(&input).map(|(weight, &input)| weight * f64::from(input)).sum();
        assert_eq!(f64::from(own[0]), exact, "{kind}");
    }
}

#[test]
fn zeros_stay_zeros_and_what_is_no_number_shows() {
    for kind in ALL_TYPES {
        let bytes = weights(kind, 3 * 256, &mut Numbers(8));
        let weight = WeightView { kind, bytes: &bytes, rows: 3, columns: 256 };
        for set in instruction_sets() {
            assert_eq!(multiply(set, weight, &[0.0; 256]), [0.0; 3], "{kind}");
            let mut input = [0.5; 512];
            input[300] = f32::NAN;
            let output = multiply(set, weight, &input);
            assert!(output[..3].iter().all(|value| value.is_finite()), "{kind}");
            assert!(output[3..].iter().all(|value| value.is_nan()), "{kind}");
        }
    }
}

#[test]
fn the_smallest_numbers_are_not_flushed_to_zero() {
    let smallest = f32::from_bits(3);
    let bytes = smallest.to_le_bytes().repeat(9);
    let weight = WeightView { kind: WeightType::F32, bytes: &bytes, rows: 1, columns: 9 };
    for set in instruction_sets() {
        assert_eq!(multiply(set, weight, &[1.0; 9]), [f32::from_bits(27)]);
    }
}

#[test]
fn no_token_is_no_output() {
    let weight = WeightView { kind: WeightType::F32, bytes: &[0; 8], rows: 2, columns: 1 };
    matmul(weight, &[], &mut []);
}

proptest! {
    // Each case multiplies with pools of 1, 2 and 3 threads, and starts them.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_bits_of_a_row_depend_on_nothing_but_itself(
        kind in proptest::sample::select(&ALL_TYPES),
        set in proptest::sample::select(instruction_sets().to_vec()),
        tokens in 1usize..20,
        rows in 1usize..100,
        blocks in 1usize..4,
        seed: u64,
    ) {
        let columns = if kind.is_float() { 100 * blocks + 1 } else { 256 * blocks };
        let mut numbers = Numbers(seed);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let weight = WeightView { kind, bytes: &bytes, rows, columns };
        let input = numbers.floats(tokens * columns);
        let alone: Vec<f32> =
            input.chunks(columns).flat_map(|token| multiply(set, weight, token)).collect();
        for threads in 1..=3 {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            let together = device.run(|| multiply(set, weight, &input));
            prop_assert_eq!(bits(&together), bits(&alone));
        }
        // Neither does it depend on which rows of weights are beside its own.
        let half = WeightView { bytes: &bytes[rows / 2 * weight.row_bytes()..], rows: rows - rows / 2, ..weight };
        let lower = multiply(set, half, &input);
        for (lower, all) in lower.chunks(half.rows).zip(alone.chunks(rows)) {
            prop_assert_eq!(bits(lower), bits(&all[rows / 2..]));
        }
    }
}
