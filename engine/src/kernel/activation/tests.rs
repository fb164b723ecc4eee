//! Rounding the activations of one multiplication.

use super::*;
use crate::kernel::specimen::{Numbers, bits, instruction_sets};

/// Relative: the product with the inverse scale and the scale itself are rounded.
const ARITHMETIC: f64 = 1e-6;

fn blocks(set: InstructionSet, input: &[f32]) -> (Vec<Integers>, Vec<Factors>) {
    match Activations::prepare(set, WeightType::Q4_1, input, input.len()) {
        Activations::Blocks { values, factors, .. } => (values, factors),
        Activations::Floats { .. } | Activations::SuperBlocks { .. } => unreachable!(),
    }
}

fn super_blocks(set: InstructionSet, input: &[f32]) -> Vec<SuperIntegers> {
    match Activations::prepare(set, WeightType::Q6K, input, input.len()) {
        Activations::SuperBlocks { values, .. } => values,
        Activations::Floats { .. } | Activations::Blocks { .. } => unreachable!(),
    }
}

fn assert_near(input: &[f32], integers: &[i8], scale: f32) {
    let largest = input.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    for (&value, &integer) in input.iter().zip(integers) {
        let error = (f64::from(scale) * f64::from(integer) - f64::from(value)).abs();
        assert!(error <= f64::from(largest) * (ROUNDING_MAX + ARITHMETIC), "{value}");
    }
}

#[test]
fn a_value_is_rounded_by_at_most_half_a_step() {
    let input = Numbers(3).floats(2048);
    for set in instruction_sets() {
        let (values, factors) = blocks(set, &input);
        for ((input, values), factors) in input.chunks(32).zip(&values).zip(&factors) {
            assert_near(input, &values.0, factors.scale);
            let sum: i32 = values.0.iter().map(|&value| i32::from(value)).sum();
            assert_eq!(factors.eighth_sum, factors.scale * (sum as f32 / 8.0));
        }
        for (input, block) in input.chunks(256).zip(super_blocks(set, &input)) {
            assert_near(input, &block.values, block.scale);
            for (sum, group) in block.group_sums.iter().zip(block.values.chunks(16)) {
                let exact: i16 = group.iter().map(|&value| i16::from(value)).sum();
                assert_eq!(*sum, exact);
            }
        }
    }
}

#[test]
fn every_instruction_set_rounds_to_the_same_bits() {
    let mut numbers = Numbers(4);
    // Magnitudes from the smallest numbers to the largest.
    let input: Vec<f32> = (0..65_536)
        .map(|_| {
            f32::from_bits(
                numbers.next().to_le_bytes()[..4].try_into().map(u32::from_le_bytes).unwrap(),
            )
        })
        .map(|value| if value.is_finite() { value } else { 1.0 })
        .collect();
    let [portable, own] = instruction_sets().map(|set| blocks(set, &input));
    assert_eq!(portable.0, own.0);
    let scales = |factors: &[Factors]| {
        bits(&factors.iter().flat_map(|f| [f.scale, f.eighth_sum]).collect::<Vec<_>>())
    };
    assert_eq!(scales(&portable.1), scales(&own.1));
    let [portable, own] = instruction_sets().map(|set| super_blocks(set, &input));
    assert_eq!(portable, own);
}

#[test]
fn ties_go_to_even_and_the_ends_are_reached() {
    let mut input = [0.0; 32];
    input[..6].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, -2.5, 2.500_001]);
    for set in instruction_sets() {
        let (values, factors) = blocks(set, &input);
        assert_eq!(values[0].0[..6], [127, -127, 0, 2, -2, 3]);
        assert_eq!(factors[0].scale, 1.0);
    }
}

#[test]
fn zeros_and_what_is_nearly_zero_become_zeros() {
    for set in instruction_sets() {
        for smallest in [0.0, -0.0, f32::from_bits(1), 1e-38] {
            let (values, factors) = blocks(set, &[smallest; 32]);
            assert_eq!(values, [Integers([0; 32])]);
            assert_eq!(factors, [Factors { scale: 0.0, eighth_sum: 0.0 }]);
        }
        let (values, _) = blocks(set, &[LARGEST_MIN; 32]);
        assert_eq!(values, [Integers([127; 32])]);
    }
}

#[test]
fn what_is_no_number_shows_in_the_scale() {
    for set in instruction_sets() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = [1.0; 256];
            input[77] = wrong;
            let (_, factors) = blocks(set, &input);
            assert!(factors[2].scale.is_nan() && factors[2].eighth_sum.is_nan());
            assert_eq!(factors[1].scale, 1.0 / 127.0);
            assert!(super_blocks(set, &input)[0].scale.is_nan());
        }
    }
}
