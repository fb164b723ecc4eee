//! The paged KV cache: keys and values of the tokens that a session has been through.
//!
//! Memory is counted and handed out in pages: the keys and values of [`PAGE_TOKENS`] consecutive
//! positions in one block, as in `vLLM` (Kwon et al. 2023, <https://arxiv.org/abs/2309.06180>,
//! section 4). An [`arena`] promises pages and never more than it has; a [`table`] belongs to one
//! session. What a session has read can be [`kept`]: other tables begin with the same pages, and
//! whoever writes into one that others hold copies it first.

pub mod arena;
pub mod kept;
mod page;
mod slots;
pub mod table;

pub use crate::kernel::PAGE_TOKENS;

// What a session of the protocol calls a page is one here.
const _: () = assert!(PAGE_TOKENS == umbel_protocol::prefix::PAGE_TOKENS as usize);
