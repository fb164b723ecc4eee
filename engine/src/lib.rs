//! Tensor mathematics of one span of transformer blocks: synchronous, no network, no clock.
//!
//! A server loads a [`HostedSpan`] and a [`KvArena`], opens a [`KvTable`] for each session and takes
//! [`HiddenStates`] through [`HostedSpan::forward`]. A client keeps the [`Ends`]: ids to hidden
//! states, hidden states to logits, and a [`Sampler`] for the next token.
//!
//! | module | what it holds |
//! |---|---|
//! | [`span`] | the blocks of one server |
//! | [`ends`] | embedding, final norm and head: what the client keeps, or the servers at the ends |
//! | [`hidden`] | what flows between blocks |
//! | [`kv`] | the paged cache of keys and values |
//! | [`train`] | gradients through the blocks, adapters and their optimizer |
//! | [`sample`] | from logits to a token |
//! | [`device`] | the threads that compute |
//! | [`cuda`] | blocks on GPUs |
//! | [`checkpoint`] | tensors by name, with their shapes checked |
//! | `block`, `model` | the trait of a block; one file for each family |
//! | `operation` | what a block is made of, as candle's custom operations |
//! | [`kernel`] | the arithmetic beneath, on slices |
//! | `noise` | random bits as a function of seeds and places |
//! | [`heap`] | giving freed memory back to the system |
//! | `large_pages` | memory for what is read all the time: weights, keys and values |
//! | [`limits`] | what this machine can do at best, by measurement |
//! | [`mod@reference`] | the same mathematics, slow and obvious: the oracle of the tests |
//!
//! # Batch invariance
//!
//! The bits computed for a token depend on the weights and on the tokens before it, and on nothing
//! else: not on which other tokens share its pass, on the number of threads, on how the prompt is cut
//! into chunks, or on how the model is split in spans. So prefill in one step, in chunks, and token by
//! token are the same, and a replay after a failure rebuilds the very cache that was lost.

mod block;
pub mod checkpoint;
pub mod cuda;
pub mod device;
pub mod ends;
pub mod heap;
pub mod hidden;
pub mod kernel;
pub mod kv;
mod large_pages;
pub mod limits;
mod model;
mod noise;
mod operation;
pub mod reference;
pub mod sample;
pub mod span;
pub mod train;

pub use checkpoint::LoadTensorError;
pub use cuda::{CudaError, Gpu, Kernels, OpenGpuError};
pub use device::{ChooseThreadsError, Device, StartThreadsError};
pub use ends::{Embedding, Ends, EndsError, GpuHead, Head, LoadHeadError};
pub use hidden::{HiddenStates, NoSuchRows, WrongHiddenStates};
pub use kernel::Arithmetic;
pub use kv::PAGE_TOKENS;
pub use kv::arena::{KvArena, OpenTableError};
pub use kv::kept::{KeptPage, WrongPrefixError};
pub use kv::table::{KvTable, TruncateError};
pub use sample::{InvalidSampling, NotNumbers, Sampler, Sampling, check_numbers, top_logits};
pub use span::{ForwardError, GpuError, HostedSpan, LoadSpanError};
