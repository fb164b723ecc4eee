//! The arithmetic beneath the operations, on plain slices.
//!
//! # Batch invariance
//!
//! Every value that a kernel computes is computed in one fixed order of operations, which depends on
//! the instruction set and on how the weights are written, and on nothing else. A kernel that takes
//! many rows at once reuses what it has loaded, and never lets one row into the sums of another; the
//! work is divided among threads between values, never within one. So the bits of a row do not depend
//! on the rows beside it, on the number of threads, or on how a prompt is cut.
//!
//! | module | what it computes |
//! |---|---|
//! | [`mod@packed`] | a weight matrix, packed as this machine multiplies it fastest, times rows of activations |
//! | `transposed` | rows of gradients times a weight matrix itself |
//! | [`mod@dequantize`] | a row of weights in binary32 |
//! | [`mod@attention`] | attention to a paged cache |
//! | [`mod@rope`] | rotary positions |
//! | `normalize`, `swiglu` | what is computed value by value |
//! | `format`, `numbers` | how weights are written |
//! | `portable`, `x86`, `avx512`, `amx`, `neon` | the inner loops: on any machine; with AVX2, FMA and F16C; with AVX-512; with AMX beside it; with NEON |
//! | `limits` | loops that measure the machine |
//! | `parallel` | work that is divided among threads |

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dequantize;
mod exponential;
mod format;
pub mod instruction;
pub(crate) mod limits;
#[cfg(target_arch = "aarch64")]
mod neon;
mod normalize;
mod numbers;
pub mod packed;
pub(crate) mod parallel;
mod portable;
pub mod rope;
#[cfg(test)]
pub(crate) mod specimen;
mod swiglu;
mod transposed;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{
    Attending, AttentionShape, BLOCK_VALUES as KV_BLOCK_VALUES, KvPage, KvPages, PAGE_TOKENS, Side,
    attention, attention_with,
};
pub use dequantize::dequantize_row;
pub(crate) use exponential::exponential;
pub use instruction::{ChooseInstructionsError, InstructionSet};
pub use normalize::rms_norm;
pub(crate) use numbers::{NumberGroup, number_groups};
pub use packed::{Arithmetic, PackedMatrix};
pub(crate) use parallel::Pool;
pub use rope::{RopeTable, rope, rope_at};
pub use swiglu::{add, swiglu, swiglu_with};
pub(crate) use transposed::add_transposed;

/// Values that are computed side by side: the width of an AVX2 register.
///
/// The portable kernels keep as many sums, so that compilers find the vectors of other machines.
const LANES: usize = 8;

/// Multiplications and additions that are worth handing to another thread: about 5 µs of work, where
/// waking a thread of a busy pool costs about 1.
const PARALLEL_WORK_MIN: usize = 32 * 1024;
