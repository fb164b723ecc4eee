//! What AMX is asked for and computes, on a processor that has it or emulated.

use std::arch::asm;

use half::bf16;
use umbel_shard::{Weight, WeightType};

use super::*;
use crate::kernel::specimen::{Numbers, bits, weights};
use crate::kernel::{Arithmetic, InstructionSet, PackedMatrix};

/// AMX, where AVX-512 is beside it. Elsewhere it can neither be run nor be emulated.
fn amx() -> Option<Amx> {
    let amx = if cfg!(target_os = "linux") { Amx::emulated() } else { Amx::detect() };
    assert_eq!(amx.is_some(), Avx512::detect().is_some(), "whoever has AVX-512 tests AMX as well");
    amx
}

/// 16 rows of 64 bytes.
type Rows = [[u8; 64]; 16];

/// Lets `$instruction` add to `sum` the product of `left` and `right`, whose shapes are given.
macro_rules! product {
    ($instruction:literal, $shapes:expr, $sum:expr, $left:expr, $right:expr) => {{
        let [sum, left, right] = $shapes;
        let none = Shape::default();
        let configuration = Configuration::new([none, sum, none, none, left, none, none, right]);
        let (mut sum, left, right): (Rows, Rows, Rows) = ($sum, $left, $right);
        if amx().is_some() {
            // SAFETY: each tile is in an array that is as large as a tile can be.
            #[allow(unsafe_code, reason = "instructions that the compiler does not know")]
            unsafe {
                asm!(
                    "ldtilecfg [{configuration}]",
                    "tileloadd tmm1, [{sum} + {row}]",
                    "tileloadd tmm4, [{left} + {row}]",
                    "tileloadd tmm7, [{right} + {row}]",
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    "tilestored [{sum} + {row}], tmm1",
                    "tilerelease",
                    configuration = in(reg) &raw const configuration,
                    sum = in(reg) sum.as_mut_ptr(),
                    left = in(reg) left.as_ptr(),
                    right = in(reg) right.as_ptr(),
                    row = in(reg) 64_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
        sum
    }};
}

/// A row that begins with these numbers; the rest are zeros.
fn row_of(values: &[f32]) -> [u8; 64] {
    let mut row = [0; 64];
    for (place, value) in row.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *place = bf16::from_f32(*value).to_le_bytes();
    }
    row
}

/// What one row of numbers gives with ones in bfloat16, and a sum that was there before.
fn sum_of(values: &[f32], before: f32) -> f32 {
    let full = Shape::new(16, 64);
    let (mut sum, mut left) = ([[0; 64]; 16], [[0; 64]; 16]);
    sum[5][..4].copy_from_slice(&before.to_le_bytes());
    left[5] = row_of(values);
    let ones = [row_of(&[1.0; 32]); 16];
    let sum = product!("tdpbf16ps", [full; 3], sum, left, ones);
    f32::from_le_bytes(*sum[5].first_chunk().unwrap())
}

#[test]
fn even_columns_are_summed_then_odd_ones_then_what_was_before() {
    if amx().is_none() {
        return;
    }
    let large = 16_777_216.0;
    // The even columns lose both ones beside the large number; the odd ones keep theirs.
    assert_eq!(sum_of(&[large, 1.0, 1.0, 1.0, 1.0, 0.0, -large, 0.0], 0.5), 2.5);
    // What was before comes last, and so is not lost.
    assert_eq!(sum_of(&[large, -large], 0.25), 0.25);
    // Ties go to the even number.
    assert_eq!(sum_of(&[large, 0.0, 3.0], 0.0), 16_777_220.0);
    assert_eq!(sum_of(&[large, 0.0, 1.0], 0.0), large);
}

#[test]
fn denormal_numbers_of_bfloat16_are_zeros_before_and_after() {
    if amx().is_none() {
        return;
    }
    let full = Shape::new(16, 64);
    let of = |left: f32, right: f32, before: f32| {
        let (mut sum, mut tiles) = ([[0; 64]; 16], [[[0; 64]; 16]; 2]);
        sum[0][..4].copy_from_slice(&before.to_le_bytes());
        tiles[0][0] = row_of(&[left]);
        tiles[1][0] = row_of(&[right]);
        let sum = product!("tdpbf16ps", [full; 3], sum, tiles[0], tiles[1]);
        f32::from_le_bytes(*sum[0].first_chunk().unwrap())
    };
    let power = |exponent: i32| 2.0_f32.powi(exponent);
    assert_eq!(of(power(-126), 1.0, 0.0), power(-126));
    assert_eq!(of(power(-127), power(100), 0.0), 0.0, "an input");
    assert_eq!(of(power(-100), power(-27), 0.0), 0.0, "a product");
    assert_eq!(of(0.0, 0.0, power(-127)), 0.0, "a sum");
    assert!(of(f32::INFINITY, 0.0, 1.0).is_nan());
}

#[test]
fn signed_bytes_meet_unsigned_ones_and_sums_wrap_around() {
    if amx().is_none() {
        return;
    }
    let full = Shape::new(16, 64);
    let (left, right) = ([[0x80; 64]; 16], [[0xff; 64]; 16]);
    let of = |sum: Rows| -> [i32; 256] {
        let sum = product!("tdpbsud", [full; 3], sum, left, right);
        std::array::from_fn(|at| i32::from_le_bytes(sum.as_flattened().as_chunks().0[at]))
    };
    assert_eq!(of([[0; 64]; 16]), [-128 * 255 * 64; 256]);
    let least = std::array::from_fn(|at| i32::MIN.to_le_bytes()[at % 4]);
    assert_eq!(of([least; 16]), [i32::MIN.wrapping_add(-128 * 255 * 64); 256]);
}

#[test]
fn a_tile_has_no_more_rows_and_columns_than_it_was_given() {
    if amx().is_none() {
        return;
    }
    // 3 tokens, 2 groups of 4 columns, 5 rows of weights.
    let shapes = [Shape::new(3, 20), Shape::new(3, 8), Shape::new(2, 20)];
    let found = product!("tdpbsud", shapes, [[1; 64]; 16], [[1; 64]; 16], [[1; 64]; 16]);
    let before = i32::from_le_bytes([1; 4]);
    for (row, bytes) in found.iter().enumerate() {
        for (column, sum) in bytes.as_chunks().0.iter().enumerate() {
            let is_inside = row < 3 && column < 5;
            let expected = if is_inside { before + 8 } else { before };
            assert_eq!(i32::from_le_bytes(*sum), expected, "{row}, {column}");
        }
    }
}

/// A sum over bfloat16 in the order of tiles: 32 columns after 32, in each the even ones and the odd
/// ones by themselves.
fn in_order_of_tiles(weights: &[f32], inputs: &[f32]) -> f32 {
    let every_second = |first: usize, end: usize| {
        let columns = (first..end.min(weights.len())).step_by(2);
        columns.fold(0.0, |sum, at| weights[at].mul_add(bf16::from_f32(inputs[at]).to_f32(), sum))
    };
    let groups = (0..weights.len()).step_by(32);
    groups.fold(0.0, |sum, at| sum + (every_second(at, at + 32) + every_second(at + 1, at + 32)))
}

#[test]
fn bfloat16_is_summed_in_the_order_of_tiles_for_any_number_of_tokens() {
    let Some(amx) = amx() else { return };
    let mut numbers = Numbers(51);
    // Rows and columns that fill no tile, and twice as many columns as a block of a panel has.
    let (rows, columns) = (70, 2 * 512 + 45);
    let bytes = weights(WeightType::BF16, rows * columns, &mut numbers);
    let widen = |bytes: &[u8; 2]| bf16::from_le_bytes(*bytes).to_f32();
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(widen).collect();
    let weight = Weight::new(WeightType::BF16, vec![rows, columns], &bytes[..]).unwrap();
    let matrix = PackedMatrix::pack_for(InstructionSet::Amx(amx), &weight);
    for tokens in [1, 2, 15, 16, 17, 31, 32, 33, 50] {
        let input = numbers.activations(tokens * columns);
        let mut output = vec![f32::NAN; tokens * rows];
        matrix.multiply(Arithmetic::Usual, &input, &mut output);
        let expected: Vec<f32> = input
            .chunks(columns)
            .flat_map(|input| values.chunks(columns).map(|row| in_order_of_tiles(row, input)))
            .collect();
        assert_eq!(bits(&output), bits(&expected), "{tokens} tokens");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn only_a_system_that_shows_amx_has_it() {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let shows = |flag: &str| processor.split_ascii_whitespace().any(|word| word == flag);
    if !["amx_tile", "amx_bf16", "amx_int8"].into_iter().all(shows) {
        assert_eq!(Amx::detect(), None);
        assert!(!InstructionSet::all().is_empty());
    }
    assert!(
        !matches!(InstructionSet::detected(), InstructionSet::Amx(_)) || Amx::detect().is_some()
    );
}

/// Products of tiles that `work` makes in this thread, where they can be counted.
#[cfg(target_os = "linux")]
fn products_of(work: impl FnOnce()) -> usize {
    let before = emulator::products_done();
    work();
    emulator::products_done() - before
}

#[cfg(target_os = "linux")]
#[test]
fn tiles_take_all_of_bfloat16_and_many_tokens_of_the_quantized_types() {
    let Some(amx) = amx() else { return };
    if Amx::detect().is_some() {
        // Nothing is emulated, so nothing is counted.
        return;
    }
    let device = crate::Device::with_threads(std::num::NonZeroUsize::MIN).unwrap();
    let mut numbers = Numbers(52);
    let mut count = |kind: WeightType, arithmetic: Arithmetic, tokens: usize| {
        let bytes = weights(kind, 64 * 256, &mut numbers);
        let weight = Weight::new(kind, vec![64, 256], &bytes[..]).unwrap();
        let matrix = PackedMatrix::pack_for(InstructionSet::Amx(amx), &weight);
        let input = numbers.floats(tokens * 256);
        let mut output = vec![0.0; tokens * 64];
        device.run(|| products_of(|| matrix.multiply(arithmetic, &input, &mut output)))
    };
    // 8 times 32 columns, 4 times 16 rows.
    assert_eq!(count(WeightType::BF16, Arithmetic::Usual, 1), 8 * 4);
    assert_eq!(count(WeightType::BF16, Arithmetic::Usual, 16), 8 * 4);
    assert_eq!(count(WeightType::BF16, Arithmetic::Usual, 32), 2 * 8 * 4);
    assert_eq!(count(WeightType::BF16, Arithmetic::Exact, 32), 0);
    assert_eq!(count(WeightType::F32, Arithmetic::Usual, 32), 0);
    // Two digits of 8 blocks of 32 columns, 4 times 16 rows; one where no block is wide.
    assert_eq!(count(WeightType::Q4K, Arithmetic::Careful, 7), 0);
    assert_eq!(count(WeightType::Q4K, Arithmetic::Careful, 8), 2 * 8 * 4);
    assert_eq!(count(WeightType::Q8_0, Arithmetic::Usual, 16), 8 * 4);
    // Each half of a block by itself.
    assert_eq!(count(WeightType::Q6K, Arithmetic::Careful, 16), 2 * 2 * 8 * 4);
    assert_eq!(count(WeightType::Q4_0, Arithmetic::Exact, 16), 0);
    for unit in [Unit::Bfloat16, Unit::Integer8] {
        for rounds in [1, 5, 6, 13] {
            assert_eq!(products_of(|| amx.work(unit, rounds)), rounds, "{unit:?}");
        }
    }
}
