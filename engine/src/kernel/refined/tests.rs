//! Rounding twice costs nearly nothing, and no row meets another.

use super::*;
use crate::kernel::specimen::{ALL_TYPES, Numbers, bits, weights, widened};

/// Share of the largest activation that two roundings to 127 steps lose, and what summing 1,536
/// products in binary32 adds to it.
const LOSS_MAX: f64 = 0.5 / (127.0 * 127.0) + 1e-5;

fn refined(weight: WeightView<'_>, input: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; input.len() / weight.columns * weight.rows];
    matmul_refined(weight, input, &mut output);
    output
}

#[test]
fn rounding_twice_costs_a_hundredth_of_rounding_once() {
    let mut numbers = Numbers(21);
    for kind in ALL_TYPES {
        let columns = 1536;
        let bytes = weights(kind, columns, &mut numbers);
        let weight = WeightView { kind, bytes: &bytes, rows: 1, columns };
        let mut input = numbers.floats(columns);
        // One activation among its neighbours as it is met in models.
        input[77] = 400.0;
        let row = widened(kind, &bytes);
        let exact: f64 = row.iter().zip(&input).map(|(w, &value)| w * f64::from(value)).sum();
        let size: f64 = row.iter().map(|weight| weight.abs()).sum::<f64>() * 400.0;
        let error = (f64::from(refined(weight, &input)[0]) - exact).abs();
        assert!(error <= size * LOSS_MAX, "{kind}: {error} of {size}");
    }
}

#[test]
fn the_bits_of_a_row_depend_on_nothing_but_itself() {
    let mut numbers = Numbers(22);
    for kind in ALL_TYPES {
        let (rows, columns) = (5, 512);
        let bytes: Vec<u8> = (0..rows).flat_map(|_| weights(kind, columns, &mut numbers)).collect();
        let weight = WeightView { kind, bytes: &bytes, rows, columns };
        let input = numbers.floats(7 * columns);
        let together = refined(weight, &input);
        for (token, expected) in input.chunks(columns).zip(together.chunks(rows)) {
            assert_eq!(bits(&refined(weight, token)), bits(expected), "{kind}");
        }
    }
}

#[test]
fn what_is_no_number_shows() {
    let mut numbers = Numbers(23);
    for kind in ALL_TYPES {
        let bytes = weights(kind, 256, &mut numbers);
        let weight = WeightView { kind, bytes: &bytes, rows: 1, columns: 256 };
        let mut input = numbers.floats(256);
        input[9] = f32::NAN;
        assert!(refined(weight, &input)[0].is_nan(), "{kind}");
        assert_eq!(bits(&refined(weight, &[0.0; 256])), bits(&[0.0]), "{kind}");
    }
}
