//! What the peers of Umbel say to each other, and nothing else.
//!
//! This crate is pure: it reads no clock, opens no socket or file, and draws no randomness.

#![warn(missing_docs)]

pub mod id;
pub mod span;
pub mod tensor;

pub use id::{ModelId, PeerId, SessionId, StepId};
pub use span::Span;
pub use tensor::{DType, Tensor};
