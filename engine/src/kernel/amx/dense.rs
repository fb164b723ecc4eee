//! Panels of weights in bfloat16: 16 steps of a panel are four tiles side by side.
//!
//! With more than 16 tokens, two tiles of them meet two of weights, so that each is loaded once for two
//! products. With fewer, one tile meets all four, so that the weights are read from the first byte to
//! the last. Neither changes the order in which a sum is made: 32 columns after 32.

use std::arch::asm;

use super::{Configuration, Shape};
use crate::kernel::packed::dense::{PANEL_ROWS, Sums, TILE_STEPS, Tile};

/// Tokens of a tile register.
const TOKENS: usize = 16;

/// Bytes of a step, which are from one row of a tile of weights to the next.
const STEP_BYTES: usize = PANEL_ROWS * 4;

/// Bytes of the steps of one product.
const GROUP_BYTES: usize = TILE_STEPS * STEP_BYTES;

/// Bytes that one token has of them, which is a row of a tile.
const ROW_BYTES: usize = TILE_STEPS * 4;

/// Adds the products of `tile` to the sums of its tokens, of which there are up to 32.
///
/// # Safety
/// The processor has AMX, and the system permits it.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
pub(super) unsafe fn multiply(tile: Tile<'_>, sums: &mut [Sums]) {
    let (groups, rest) = tile.weights.as_chunks::<GROUP_BYTES>();
    let input_words = groups.len() * TILE_STEPS * sums.len();
    let (inputs, last_inputs) = tile.inputs.split_at(input_words);
    // SAFETY: the caller's promise.
    unsafe { multiply_groups(groups, inputs, tile.ahead, sums) };
    if !rest.is_empty() {
        // What is missing counts as zeros, as it does in the inputs.
        let mut group = [0; GROUP_BYTES];
        group[..rest.len()].copy_from_slice(rest);
        // SAFETY: the caller's promise.
        unsafe { multiply_groups(&[group], last_inputs, &[], sums) };
    }
}

/// `inputs` are `[groups, tokens, 16 words]`.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
unsafe fn multiply_groups(
    groups: &[[u8; GROUP_BYTES]],
    inputs: &[u32],
    ahead: &[u8],
    sums: &mut [Sums],
) {
    if groups.is_empty() {
        return;
    }
    let tokens = sums.len();
    assert!((1..=2 * TOKENS).contains(&tokens), "as many tokens as two tiles hold");
    assert_eq!(inputs.len(), groups.len() * tokens * TILE_STEPS, "each token has its words");
    if tokens <= TOKENS {
        // SAFETY: the caller's promise; sizes as asserted.
        unsafe { one_by_four(groups, inputs, ahead, sums) };
        return;
    }
    let (first, second) = ahead.split_at(ahead.len() / 2);
    for (half, ahead) in [first, second].into_iter().enumerate() {
        // SAFETY: the caller's promise; sizes as asserted, and a panel has two halves.
        unsafe { two_by_two(groups, inputs, ahead, half, sums) };
    }
}

/// Fetches a few lines of what comes next, up to `limit`; then `limit` moves on.
macro_rules! fetch {
    () => {
        concat!(
            "3:\n",
            "cmp {ahead}, {limit}\n",
            "jae 4f\n",
            "prefetcht1 byte ptr [{ahead}]\n",
            "add {ahead}, 64\n",
            "jmp 3b\n",
            "4:\n",
            "add {limit}, {ahead_step}\n",
        )
    };
}

/// Up to 16 tokens and all rows of a panel.
///
/// # Safety
/// The processor has AMX, and the system permits it; there is a group, there are 1 to 16 sums, and
/// for each group and sum 16 words in `inputs`.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
unsafe fn one_by_four(
    groups: &[[u8; GROUP_BYTES]],
    inputs: &[u32],
    ahead: &[u8],
    sums: &mut [Sums],
) {
    let tokens = Shape::new(sums.len(), ROW_BYTES);
    let weights = Shape::new(TILE_STEPS, ROW_BYTES);
    let configuration =
        Configuration::new([tokens, tokens, tokens, tokens, tokens, weights, weights, weights]);
    let ahead_step = lines_of_turn(ahead, groups.len());
    // SAFETY: the tiles of inputs and weights are what the slices hold, group by group; those of sums
    // are 4 parts of 64 bytes of each token's. Prefetches read nothing. The tiles are released.
    unsafe {
        asm!(
            "ldtilecfg [{configuration}]",
            "tileloadd tmm0, [{sums} + {step}]",
            "tileloadd tmm1, [{sums} + {step} + 64]",
            "tileloadd tmm2, [{sums} + {step} + 128]",
            "tileloadd tmm3, [{sums} + {step} + 192]",
            "2:",
            "tileloadd tmm4, [{inputs} + {row}]",
            "tileloadd tmm5, [{weights} + {step}]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{weights} + {step} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{weights} + {step} + 128]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{weights} + {step} + 192]",
            "tdpbf16ps tmm3, tmm4, tmm5",
            fetch!(),
            "add {inputs}, {inputs_step}",
            "add {weights}, {group_bytes}",
            "dec {groups}",
            "jnz 2b",
            "tilestored [{sums} + {step}], tmm0",
            "tilestored [{sums} + {step} + 64], tmm1",
            "tilestored [{sums} + {step} + 128], tmm2",
            "tilestored [{sums} + {step} + 192], tmm3",
            "tilerelease",
            configuration = in(reg) &raw const configuration,
            sums = in(reg) sums.as_mut_ptr(),
            inputs = inout(reg) inputs.as_ptr() => _,
            weights = inout(reg) groups.as_ptr() => _,
            groups = inout(reg) groups.len() => _,
            inputs_step = in(reg) sums.len() * ROW_BYTES,
            ahead = inout(reg) ahead.as_ptr() => _,
            limit = inout(reg) ahead.as_ptr().wrapping_add(ahead_step) => _,
            ahead_step = in(reg) ahead_step,
            step = in(reg) STEP_BYTES,
            row = in(reg) ROW_BYTES,
            group_bytes = const GROUP_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 17 to 32 tokens and one half of a panel's rows.
///
/// # Safety
/// The processor has AMX, and the system permits it; there is a group, there are 17 to 32 sums, for
/// each group and sum 16 words in `inputs`, and `half` is 0 or 1.
#[allow(unsafe_code, reason = "instructions that the compiler does not know")]
unsafe fn two_by_two(
    groups: &[[u8; GROUP_BYTES]],
    inputs: &[u32],
    ahead: &[u8],
    half: usize,
    sums: &mut [Sums],
) {
    let [first, second] = [TOKENS, sums.len() - TOKENS].map(|rows| Shape::new(rows, ROW_BYTES));
    let weights = Shape::new(TILE_STEPS, ROW_BYTES);
    let configuration =
        Configuration::new([first, first, second, second, first, second, weights, weights]);
    let ahead_step = lines_of_turn(ahead, groups.len());
    let half_bytes = half * STEP_BYTES / 2;
    // SAFETY: the tiles of inputs and weights are what the slices hold, group by group, or half of the
    // rows of weights; those of sums are 2 parts of 64 bytes of each token's, of which 16 tokens come
    // first. Prefetches read nothing. The tiles are released.
    unsafe {
        asm!(
            "ldtilecfg [{configuration}]",
            "tileloadd tmm0, [{sums} + {step}]",
            "tileloadd tmm1, [{sums} + {step} + 64]",
            "tileloadd tmm2, [{sums} + {step} + {second_sums}]",
            "tileloadd tmm3, [{sums} + {step} + {second_sums} + 64]",
            "2:",
            "tileloadd tmm4, [{inputs} + {row}]",
            "tileloadd tmm6, [{weights} + {step}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{weights} + {step} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{inputs} + {row} + {second_inputs}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            fetch!(),
            "add {inputs}, {inputs_step}",
            "add {weights}, {group_bytes}",
            "dec {groups}",
            "jnz 2b",
            "tilestored [{sums} + {step}], tmm0",
            "tilestored [{sums} + {step} + 64], tmm1",
            "tilestored [{sums} + {step} + {second_sums}], tmm2",
            "tilestored [{sums} + {step} + {second_sums} + 64], tmm3",
            "tilerelease",
            configuration = in(reg) &raw const configuration,
            sums = in(reg) sums.as_mut_ptr().cast::<u8>().add(half_bytes),
            inputs = inout(reg) inputs.as_ptr() => _,
            weights = inout(reg) groups.as_ptr().cast::<u8>().add(half_bytes) => _,
            groups = inout(reg) groups.len() => _,
            inputs_step = in(reg) sums.len() * ROW_BYTES,
            ahead = inout(reg) ahead.as_ptr() => _,
            limit = inout(reg) ahead.as_ptr().wrapping_add(ahead_step) => _,
            ahead_step = in(reg) ahead_step,
            step = in(reg) STEP_BYTES,
            row = in(reg) ROW_BYTES,
            second_sums = const TOKENS * size_of::<Sums>(),
            second_inputs = const TOKENS * ROW_BYTES,
            group_bytes = const GROUP_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Bytes of `ahead` to be fetched in each of `turns`: whole lines, none where there are none.
fn lines_of_turn(ahead: &[u8], turns: usize) -> usize {
    ahead.len().div_ceil(turns).next_multiple_of(64)
}
