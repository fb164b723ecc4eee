//! Products against binary64, and what they must not depend on.

use std::num::NonZeroUsize;

use half::f16;
use proptest::prelude::*;

use super::tokens::STEPS;
use super::*;
use crate::Device;
use crate::kernel::format::BLOCK_VALUES;
use crate::kernel::specimen::{ALL_TYPES, Numbers, bits, weights, weights_with_scales, widened};

/// How far a sum in binary32 may be from the exact one, relative to the sum of the activations'
/// magnitudes times the largest weight: some roundings of each block, and of each value where
/// activations stay in binary32.
const SUM_ERROR_MAX: f64 = 16.0 * f32::EPSILON as f64;

fn types() -> Vec<WeightType> {
    ALL_TYPES.into_iter().filter(|kind| !kind.is_float()).collect()
}

fn weight(kind: WeightType, bytes: &[u8], rows: usize, columns: usize) -> Weight {
    Weight::new(kind, vec![rows, columns], bytes).unwrap()
}

fn multiply(
    set: InstructionSet,
    weight: &Weight,
    arithmetic: Arithmetic,
    input: &[f32],
) -> Vec<f32> {
    // Not zeros, so that what is not written shows.
    let mut output = vec![f32::NAN; input.len() / weight.columns() * weight.rows()];
    let matrix = QuantizedMatrix::pack(set, weight);
    let outputs = Outputs::new(&mut output, weight.rows());
    let product = Product { matrix: &matrix, input: 0, outputs: &outputs };
    super::multiply(&[product], &[input], arithmetic);
    output
}

/// The largest magnitude of a block.
fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

/// Steps up to the largest value of each block of a row, where activations are rounded.
fn steps(arithmetic: Arithmetic, input: &[f32]) -> Vec<f32> {
    let blocks = input.chunks(BLOCK_VALUES);
    let average = blocks.clone().map(largest).sum::<f32>() / blocks.len() as f32;
    let is_wide =
        |block: &[f32]| arithmetic == Arithmetic::Careful || largest(block) > 2.0 * average;
    blocks.map(|block| if is_wide(block) { STEPS } else { 127.0 }).collect()
}

/// The activations as the kernels see them, by a rounding that is written again.
fn rounded(arithmetic: Arithmetic, input: &[f32]) -> Vec<f64> {
    if arithmetic == Arithmetic::Exact {
        return input.iter().copied().map(f64::from).collect();
    }
    let round = |(block, steps): (&[f32], f32)| {
        let largest = largest(block);
        let round = |value: &f32| f64::from((value * (steps / largest)).round_ties_even());
        let scale = f64::from(largest / STEPS) * f64::from(STEPS / steps);
        block.iter().map(|value| round(value) * scale).collect::<Vec<_>>()
    };
    input.chunks(BLOCK_VALUES).zip(steps(arithmetic, input)).flat_map(round).collect()
}

/// The exact products of one row of activations, and how large their terms may be.
fn products(weight: &Weight, input: &[f64]) -> Vec<(f64, f64)> {
    let row_bytes = weight.bytes().len() / weight.rows();
    let product = |row: &[u8]| {
        let row = widened(weight.weight_type(), row);
        let largest = row.iter().fold(0.0, |largest: f64, weight| largest.max(weight.abs()));
        let magnitude = largest * input.iter().map(|input| input.abs()).sum::<f64>();
        (row.iter().zip(input).map(|(weight, input)| weight * input).sum(), magnitude)
    };
    weight.bytes().chunks(row_bytes).map(product).collect()
}

fn columns_of(kind: WeightType) -> Vec<usize> {
    if kind.block_values() == 256 { vec![256, 768] } else { vec![32, 96, 256, 576] }
}

#[test]
fn every_type_is_multiplied_exactly_whatever_the_sizes() {
    let mut numbers = Numbers(31);
    for kind in types() {
        for columns in columns_of(kind) {
            for rows in [1, 3, 15, 16, 17, 33] {
                let bytes = weights(kind, rows * columns, &mut numbers);
                let weight = weight(kind, &bytes, rows, columns);
                let input = numbers.activations(1 + 2 * columns);
                for (arithmetic, set) in Arithmetic::ALL
                    .into_iter()
                    .flat_map(|a| InstructionSet::all().into_iter().map(move |s| (a, s)))
                {
                    // Not from the beginning, so that no wider load is aligned.
                    let output = multiply(set, &weight, arithmetic, &input[1..]);
                    for (input, output) in input[1..].chunks(columns).zip(output.chunks(rows)) {
                        let exact = products(&weight, &rounded(arithmetic, input));
                        for ((exact, magnitude), &output) in exact.into_iter().zip(output) {
                            assert!(
                                (f64::from(output) - exact).abs() <= SUM_ERROR_MAX * magnitude,
                                "{kind} {rows}x{columns}, {arithmetic:?}, {set:?}: {output}, not {exact} of {magnitude}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits_for_any_number_of_tokens() {
    let mut numbers = Numbers(32);
    for kind in types() {
        let (rows, columns) = (33, 512);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let weight = weight(kind, &bytes, rows, columns);
        let input = numbers.activations(33 * columns);
        for arithmetic in Arithmetic::ALL {
            let all = multiply(InstructionSet::Portable, &weight, arithmetic, &input);
            for set in InstructionSet::all() {
                for tokens in 1..=33 {
                    let some = multiply(set, &weight, arithmetic, &input[..tokens * columns]);
                    let expected = bits(&all[..tokens * rows]);
                    assert_eq!(bits(&some), expected, "{kind}, {arithmetic:?}, {set:?}, {tokens}");
                }
            }
        }
    }
}

#[test]
fn rounding_the_activations_costs_at_most_half_a_step_of_each() {
    let mut numbers = Numbers(33);
    for kind in types() {
        let columns = 1536;
        let bytes = weights(kind, columns, &mut numbers);
        let weight = weight(kind, &bytes, 1, columns);
        let mut input = numbers.floats(columns);
        // One activation among its neighbours as it is met in models.
        input[77] = 400.0;
        let wide: Vec<f64> = input.iter().copied().map(f64::from).collect();
        let (exact, magnitude) = products(&weight, &wide)[0];
        let row = widened(kind, &bytes);
        for arithmetic in Arithmetic::ALL {
            let lost: f64 = row
                .chunks(BLOCK_VALUES)
                .zip(input.chunks(BLOCK_VALUES).zip(steps(arithmetic, &input)))
                .map(|(weights, (input, steps))| {
                    let half_a_step = f64::from(largest(input)) / f64::from(steps) / 2.0;
                    weights.iter().map(|weight| weight.abs()).sum::<f64>() * half_a_step
                })
                .sum();
            let lost = if arithmetic == Arithmetic::Exact { 0.0 } else { lost };
            let error_max = lost + SUM_ERROR_MAX * magnitude;
            for set in InstructionSet::all() {
                let error = f64::from(multiply(set, &weight, arithmetic, &input)[0]) - exact;
                assert!(error.abs() <= error_max, "{kind}, {arithmetic:?}: {error}");
            }
        }
    }
}

#[test]
fn where_nothing_has_to_be_rounded_the_result_is_exact() {
    let mut numbers = Numbers(34);
    for kind in types() {
        // Scales that are powers of two, and integers whose sums have less than 24 bits.
        let bytes = weights_with_scales(kind, 7 * 256, &mut numbers, |_| 0.25);
        let weight = weight(kind, &bytes, 7, 256);
        let small = |numbers: &mut Numbers| f32::from(numbers.byte() % 7) - 3.0;
        let mut input: Vec<f32> = (0..5 * 256).map(|_| small(&mut numbers)).collect();
        // The largest value decides the scale: 127 makes it a power of two.
        input.chunks_mut(32).for_each(|block| block[11] = 127.0);
        for (arithmetic, set) in
            Arithmetic::ALL.into_iter().zip(InstructionSet::all().into_iter().cycle())
        {
            let output = multiply(set, &weight, arithmetic, &input);
            for (input, output) in input.chunks(256).zip(output.chunks(7)) {
                let input: Vec<f64> = input.iter().copied().map(f64::from).collect();
                let exact: Vec<f64> =
                    products(&weight, &input).into_iter().map(|(product, _)| product).collect();
                let output: Vec<f64> = output.iter().copied().map(f64::from).collect();
                assert_eq!(output, exact, "{kind}, {arithmetic:?}, {set:?}");
            }
        }
    }
}

#[test]
fn zeros_stay_zeros_and_what_is_no_number_shows() {
    for kind in types() {
        let bytes = weights(kind, 3 * 256, &mut Numbers(35));
        let weight = weight(kind, &bytes, 3, 256);
        for arithmetic in Arithmetic::ALL {
            for set in InstructionSet::all() {
                assert_eq!(multiply(set, &weight, arithmetic, &[0.0; 256]), [0.0; 3], "{kind}");
                for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut input = [0.5; 3 * 256];
                    input[300] = wrong;
                    let output = multiply(set, &weight, arithmetic, &input);
                    let finite: Vec<bool> = output.iter().map(|value| value.is_finite()).collect();
                    let expected = [[true; 3], [false; 3], [true; 3]].concat();
                    assert_eq!(finite, expected, "{kind}, {arithmetic:?}, {set:?}, {wrong}");
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_no_number_shows_in_its_row_only() {
    for kind in types() {
        for wrong in [f16::NAN, f16::INFINITY] {
            let mut bytes = weights(kind, 18 * 256, &mut Numbers(36));
            let row_bytes = bytes.len() / 18;
            let place = if kind == WeightType::Q6K { 208 } else { 0 };
            bytes[row_bytes + place..][..2].copy_from_slice(&wrong.to_le_bytes());
            let weight = weight(kind, &bytes, 18, 256);
            for (arithmetic, set) in
                Arithmetic::ALL.into_iter().zip(InstructionSet::all().into_iter().cycle())
            {
                let output = multiply(set, &weight, arithmetic, &[1.0; 256]);
                for (row, value) in output.into_iter().enumerate() {
                    assert_eq!(value.is_finite(), row != 1, "{kind}, {arithmetic:?}: {value}");
                }
            }
        }
    }
}

#[test]
fn denormal_numbers_count() {
    let mut numbers = Numbers(37);
    for kind in types() {
        // The smallest scales that binary16 has.
        let smallest = f16::from_bits(3).to_f32();
        let bytes = weights_with_scales(kind, 256, &mut numbers, |_| smallest);
        let weight = weight(kind, &bytes, 1, 256);
        let input = numbers.floats(256);
        for (arithmetic, set) in
            Arithmetic::ALL.into_iter().zip(InstructionSet::all().into_iter().cycle())
        {
            let (exact, magnitude) = products(&weight, &rounded(arithmetic, &input))[0];
            let output = f64::from(multiply(set, &weight, arithmetic, &input)[0]);
            assert!(output != 0.0 && (output - exact).abs() <= SUM_ERROR_MAX * magnitude, "{kind}");
        }
        // Activations that are denormal are zeros, unless they are exact.
        let input = [f32::from_bits(0x7f_ffff); 256];
        for set in InstructionSet::all() {
            assert_eq!(multiply(set, &weight, Arithmetic::Usual, &input), [0.0], "{kind}");
        }
    }
    let bytes = [&f16::ONE.to_le_bytes()[..], &[1; 32]].concat();
    let ones = weight(WeightType::Q8_0, &bytes, 1, 32);
    for set in InstructionSet::all() {
        let output = multiply(set, &ones, Arithmetic::Exact, &[f32::from_bits(3); 32]);
        assert_eq!(output, [f32::from_bits(96)]);
    }
}

#[test]
fn a_packed_matrix_is_hardly_larger_than_its_file() {
    for kind in types() {
        let bytes = weights(kind, 64 * 512, &mut Numbers(38));
        let weight = weight(kind, &bytes, 64, 512);
        let matrix = QuantizedMatrix::pack(InstructionSet::Portable, &weight);
        let packed = size_of_val(&*matrix.quants)
            + size_of_val(&*matrix.factors)
            + size_of_val(&*matrix.supers);
        assert!(packed >= bytes.len() && packed * 100 <= bytes.len() * 103, "{kind}: {packed}");
    }
}

#[test]
fn no_token_is_no_output() {
    let bytes = weights(WeightType::Q4_0, 64, &mut Numbers(39));
    let weight = weight(WeightType::Q4_0, &bytes, 2, 32);
    assert!(multiply(InstructionSet::detected(), &weight, Arithmetic::Usual, &[]).is_empty());
}

proptest! {
    // Each case multiplies with pools of 1, 2 and 3 threads, and starts them.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_bits_of_a_row_depend_on_nothing_but_itself(
        kind in proptest::sample::select(types()),
        set in proptest::sample::select(InstructionSet::all()),
        arithmetic in proptest::sample::select(&Arithmetic::ALL),
        tokens in 1usize..40,
        rows in 2usize..150,
        blocks in 1usize..4,
        seed: u64,
    ) {
        let columns = 256 * blocks;
        let mut numbers = Numbers(seed);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let all = weight(kind, &bytes, rows, columns);
        let input = numbers.activations(tokens * columns);
        let alone: Vec<f32> = input
            .chunks(columns)
            .flat_map(|token| multiply(set, &all, arithmetic, token))
            .collect();
        for threads in 1..=3 {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            let together = device.run(|| multiply(set, &all, arithmetic, &input));
            prop_assert_eq!(bits(&together), bits(&alone));
        }
        // Neither does it depend on which rows of weights are beside its own.
        let first = rows / 2;
        let lower = &bytes[bytes.len() / rows * first..];
        let lower = multiply(set, &weight(kind, lower, rows - first, columns), arithmetic, &input);
        for (lower, all) in lower.chunks(rows - first).zip(alone.chunks(rows)) {
            prop_assert_eq!(bits(lower), bits(&all[first..]));
        }
    }
}
