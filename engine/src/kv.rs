//! The paged KV cache: keys and values of the tokens that a session has been through.
//!
//! Memory is counted and handed out in pages: the keys and values of [`PAGE_TOKENS`] consecutive
//! positions in one block, as in `vLLM` (Kwon et al. 2023, <https://arxiv.org/abs/2309.06180>,
//! section 4). An [`arena`] promises pages and never more than it has; a [`table`] belongs to one
//! session and owns its pages, so that no two sessions can ever meet in one.

pub mod arena;
mod page;
pub mod table;

pub use crate::kernel::PAGE_TOKENS;
