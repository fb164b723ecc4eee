//! Panels against binary64, and what their products must not depend on.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use proptest::prelude::*;
use umbel_shard::WeightType;

use super::*;
use crate::Device;
use crate::kernel::specimen::{Numbers, bits, weights, widened};

const FLOATS: [WeightType; 3] = [WeightType::F32, WeightType::F16, WeightType::BF16];

const ARITHMETICS: [Arithmetic; 2] = [Arithmetic::Usual, Arithmetic::Exact];

/// How far a sum in binary32 may be from the exact one, relative to the sum of the magnitudes of its
/// products: every product is rounded into it at most twice, by half a unit of the last of 24 bits,
/// and errors of either sign mostly cancel. A product that is missing, or is there twice, moves it by
/// a hundredth at the sizes below.
const SUM_ERROR_MAX: f64 = 32.0 * f32::EPSILON as f64;

/// Bytes of a matrix, with one before them, so that they begin at an odd address.
struct Unaligned(Vec<u8>);

fn pack(set: InstructionSet, kind: WeightType, bytes: &[u8], rows: usize) -> DenseMatrix {
    let columns = bytes.len() / rows / kind.block_bytes();
    let weight = Weight::new(kind, vec![rows, columns], bytes).unwrap();
    DenseMatrix::pack(set, &weight).unwrap()
}

fn multiply(matrix: &DenseMatrix, arithmetic: Arithmetic, input: &[f32]) -> Vec<f32> {
    // Not zeros, so that what is not written shows.
    let mut output = vec![f32::NAN; input.len() / matrix.columns * matrix.rows];
    let outputs = Outputs::new(&mut output, matrix.rows);
    let product = Product { matrix, input: 0, outputs: &outputs };
    super::multiply(&[product], &[input], arithmetic);
    output
}

/// Whether a unit for bfloat16 multiplies.
fn is_rounded(matrix: &DenseMatrix, arithmetic: Arithmetic) -> bool {
    matches!(matrix.format(arithmetic), Format::Bfloat16Pairs | Format::Bfloat16Tiles)
}

/// What `matrix` multiplies of these activations.
fn rounded(matrix: &DenseMatrix, arithmetic: Arithmetic, input: &[f32]) -> Vec<f64> {
    let is_rounded = is_rounded(matrix, arithmetic);
    let value = |&value: &f32| if is_rounded { bf16::from_f32(value).to_f32() } else { value };
    input.iter().map(value).map(f64::from).collect()
}

/// Checks every output against a sum in binary64 over the same weights and activations.
fn assert_exact(matrix: &DenseMatrix, weights: &[f64], arithmetic: Arithmetic, input: &[f32]) {
    let DenseMatrix { set, format, rows, columns, .. } = *matrix;
    let output = multiply(matrix, arithmetic, input);
    for (input, output) in input.chunks(columns).zip(output.chunks(rows)) {
        let input = rounded(matrix, arithmetic, input);
        for (row, &output) in weights.chunks(columns).zip(output) {
            let products = row.iter().zip(&input).map(|(weight, input)| weight * input);
            let (exact, size) =
                products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + f64::abs(p)));
            let error = (f64::from(output) - exact).abs();
            assert!(
                error <= SUM_ERROR_MAX * size,
                "{format:?} {rows}x{columns}, {set:?}: {output}, not {exact} of {size}"
            );
        }
    }
}

#[test]
fn every_type_is_multiplied_exactly_whatever_the_sizes() {
    let mut numbers = Numbers(31);
    for kind in FLOATS {
        for columns in [1, 2, 31, 32, 33, 100, 576] {
            for rows in [1, 3, 15, 16, 17, 33, 64, 65, 130] {
                let bytes = weights(kind, rows * columns, &mut numbers);
                let exact = widened(kind, &bytes);
                let input = numbers.floats(33 * columns + 1);
                for set in InstructionSet::all() {
                    let matrix = pack(set, kind, &bytes, rows);
                    for tokens in [1, 2, 3, 4, 5, 6, 7, 13, 33] {
                        for arithmetic in ARITHMETICS {
                            assert_exact(
                                &matrix,
                                &exact,
                                arithmetic,
                                &input[1..][..tokens * columns],
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_panel_of_several_blocks_is_multiplied_exactly() {
    let mut numbers = Numbers(32);
    for kind in FLOATS {
        let (rows, columns) = (70, 2 * BLOCK_BYTES / Format::Binary16.step_bytes() + 3);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let exact = widened(kind, &bytes);
        let input = numbers.floats(8 * columns);
        for set in InstructionSet::all() {
            let matrix = pack(set, kind, &bytes, rows);
            for tokens in [1, 8] {
                assert_exact(&matrix, &exact, Arithmetic::Usual, &input[..tokens * columns]);
            }
        }
    }
}

#[test]
fn a_file_at_any_address_is_packed_to_the_same() {
    let mut numbers = Numbers(33);
    for kind in FLOATS {
        let (rows, columns) = (67, 35);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let unaligned = Unaligned([&[0], &bytes[..]].concat());
        let format = Format::of(kind).unwrap();
        let (even, odd) = (
            pack::panels(format, &bytes, rows, columns),
            pack::panels(format, &unaligned.0[1..], rows, columns),
        );
        assert_eq!(even.bytes(), odd.bytes(), "{kind}");
        assert_eq!(even.bytes().as_ptr().align_offset(64), 0, "{kind}");
    }
}

#[test]
fn where_nothing_is_rounded_all_sets_and_arithmetics_give_the_same_bits() {
    let mut numbers = Numbers(34);
    for kind in FLOATS {
        let (rows, columns) = (100, 300);
        // Integers up to 8 times integers up to 8, whose sums are below 2^24.
        let mut integer = || f32::from(numbers.byte() % 17) - 8.0;
        let values: Vec<f32> = (0..rows * columns).map(|_| integer()).collect();
        let input: Vec<f32> = (0..7 * columns).map(|_| integer()).collect();
        let bytes = narrowed(kind, &values);
        let dot = |row: &[f32], token: &[f32]| row.iter().zip(token).map(|(w, i)| w * i).sum();
        let mut expected: Vec<f32> = Vec::new();
        for token in input.chunks(columns) {
            expected.extend(values.chunks(columns).map(|row| -> f32 { dot(row, token) }));
        }
        for set in InstructionSet::all() {
            let matrix = pack(set, kind, &bytes, rows);
            for arithmetic in ARITHMETICS {
                assert_eq!(multiply(&matrix, arithmetic, &input), expected, "{kind}, {set:?}");
            }
        }
    }
}

/// `values` as a file has them in `kind`.
fn narrowed(kind: WeightType, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match Format::of(kind).unwrap() {
        Format::Binary32 => value.to_le_bytes().to_vec(),
        Format::Binary16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Format::Bfloat16 | Format::Bfloat16Pairs | Format::Bfloat16Tiles => {
            bf16::from_f32(*value).to_le_bytes().to_vec()
        }
    };
    values.iter().flat_map(bytes).collect()
}

/// The products of weights that are all `weight` with activations that are all `input`, but for the
/// last weight of the second row and the last activation of the second token, which are `odd`.
fn products(set: InstructionSet, kind: WeightType, arithmetic: Arithmetic, odd: f32) -> Vec<f32> {
    let columns = 33;
    let mut values = vec![0.5; 3 * columns];
    values[2 * columns - 1] = odd;
    let mut input = vec![0.25; 2 * columns];
    input[2 * columns - 1] = odd;
    let matrix = pack(set, kind, &narrowed(kind, &values), 3);
    multiply(&matrix, arithmetic, &input)
}

#[test]
fn what_is_no_number_or_infinite_shows_where_it_belongs_and_nowhere_else() {
    for kind in FLOATS {
        for set in InstructionSet::all() {
            for arithmetic in ARITHMETICS {
                let what = format!("{kind}, {set:?}, {arithmetic:?}");
                // The least payload must not be rounded away and become an infinity.
                for nan in [f32::NAN, f32::from_bits(0x7f80_0001)] {
                    let nan = if kind == WeightType::F32 { nan } else { f32::NAN.max(nan) };
                    let found = products(set, kind, arithmetic, nan);
                    let shows = found.iter().map(|value| value.is_nan()).collect::<Vec<_>>();
                    assert_eq!(shows, [false, true, false, true, true, true], "{what}");
                }
                let found = products(set, kind, arithmetic, f32::NEG_INFINITY);
                assert_eq!(found[1], f32::NEG_INFINITY, "{what}");
                assert_eq!([found[3], found[5]], [f32::NEG_INFINITY; 2], "{what}");
                assert_eq!(found[4], f32::INFINITY, "{what}");
                assert_eq!([found[0], found[2]], [33.0 / 8.0; 2], "{what}");
            }
        }
    }
}

#[test]
fn activations_that_are_no_number_are_not_rounded_to_infinities() {
    let bytes = narrowed(WeightType::BF16, &[1.0; 2]);
    for set in InstructionSet::all() {
        let matrix = pack(set, WeightType::BF16, &bytes, 1);
        for bits in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff] {
            let input = [f32::from_bits(bits), 1.0];
            assert!(multiply(&matrix, Arithmetic::Usual, &input)[0].is_nan(), "{bits:#x}");
        }
    }
}

#[test]
fn the_smallest_numbers_are_not_flushed_to_zero_but_by_the_unit_for_bfloat16() {
    for kind in FLOATS {
        // The smallest denormal of each type.
        let smallest = match Format::of(kind).unwrap() {
            Format::Binary32 => f32::from_bits(1),
            Format::Binary16 => f16::from_bits(1).to_f32(),
            Format::Bfloat16 | Format::Bfloat16Pairs | Format::Bfloat16Tiles => {
                bf16::from_bits(1).to_f32()
            }
        };
        let bytes = narrowed(kind, &[smallest; 9]);
        for set in InstructionSet::all() {
            let matrix = pack(set, kind, &bytes, 1);
            for arithmetic in ARITHMETICS {
                let is_flushed = is_rounded(&matrix, arithmetic);
                let expected = if is_flushed { 0.0 } else { 9.0 * smallest };
                let what = format!("{kind}, {set:?}, {arithmetic:?}");
                assert_eq!(multiply(&matrix, arithmetic, &[1.0; 9]), [expected], "{what}");
            }
        }
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_bfloat16() {
    let mut numbers = Numbers(35);
    let special =
        [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::INFINITY, 1e-40, 1.001_953_1, 1.005_859_4];
    let drawn = (0..1000).map(|_| f32::from_bits(numbers.next().to_le_bytes()[0].into()));
    let values: Vec<f32> = special.into_iter().chain(drawn).chain(numbers_of_all_sizes()).collect();
    let mut pairs = vec![u32::MAX; values.len().div_ceil(2)];
    round_pairs(&values, &mut pairs);
    for (index, &value) in values.iter().enumerate() {
        let found = pairs[index / 2] >> (16 * (index % 2)) & 0xffff;
        assert_eq!(found, u32::from(bf16::from_f32(value).to_bits()), "{value:e}");
    }
    let upper = pairs.last().unwrap() >> 16;
    assert!(
        values.len().is_multiple_of(2) || upper == 0,
        "what is beyond the last column is a zero"
    );
}

fn numbers_of_all_sizes() -> impl Iterator<Item = f32> {
    let mut numbers = Numbers(36);
    let bits = move || u32::from_le_bytes(numbers.next().to_le_bytes()[..4].try_into().unwrap());
    std::iter::repeat_with(bits).map(f32::from_bits).filter(|value| !value.is_nan()).take(1000)
}

/// Both fuse their sums on this target.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_gives_the_bits_of_the_portable_loops() {
    let mut numbers = Numbers(37);
    for kind in FLOATS {
        let (rows, columns) = (100, 301);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let input = numbers.floats(9 * columns);
        let portable = pack(InstructionSet::Portable, kind, &bytes, rows);
        let expected = multiply(&portable, Arithmetic::Usual, &input);
        let all = InstructionSet::all();
        assert!(all.len() > 1, "this machine has NEON");
        for set in all {
            let found = multiply(&pack(set, kind, &bytes, rows), Arithmetic::Usual, &input);
            assert_eq!(bits(&found), bits(&expected), "{kind}, {set:?}");
        }
    }
}

#[test]
fn no_token_is_no_output_and_an_empty_matrix_is_not_packed() {
    for set in InstructionSet::all() {
        let matrix = pack(set, WeightType::BF16, &[0; 8], 2);
        assert_eq!(multiply(&matrix, Arithmetic::Usual, &[]), [0.0; 0]);
        let empty = Weight::new(WeightType::F32, vec![0, 4], vec![]).unwrap();
        assert!(DenseMatrix::pack(set, &empty).is_none());
    }
}

proptest! {
    // Each case multiplies with pools of 1, 2 and 3 threads, and starts them.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_bits_of_a_row_depend_on_nothing_but_itself(
        kind in proptest::sample::select(&FLOATS),
        set in proptest::sample::select(InstructionSet::all()),
        arithmetic in proptest::sample::select(&ARITHMETICS),
        tokens in 1usize..34,
        rows in 1usize..300,
        columns in 1usize..1200,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let bytes = weights(kind, rows * columns, &mut numbers);
        let matrix = pack(set, kind, &bytes, rows);
        let input = numbers.floats(tokens * columns);
        let alone: Vec<f32> =
            input.chunks(columns).flat_map(|token| multiply(&matrix, arithmetic, token)).collect();
        for threads in 1..=3 {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            let together = device.run(|| multiply(&matrix, arithmetic, &input));
            prop_assert_eq!(bits(&together), bits(&alone));
        }
        // Neither does it depend on which rows of weights are beside its own.
        let upper = rows / 2;
        let lower = pack(set, kind, &bytes[upper * columns * kind.block_bytes()..], rows - upper);
        let found = multiply(&lower, arithmetic, &input);
        for (found, all) in found.chunks(rows - upper).zip(alone.chunks(rows)) {
            prop_assert_eq!(bits(found), bits(&all[upper..]));
        }
    }
}
