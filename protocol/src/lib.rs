//! What the peers of Umbel say to each other, and nothing else.
//!
//! This crate is pure: it reads no clock, opens no socket or file, and draws no randomness.
//!
//! Every message travels as one [`Frame`]: a protobuf header and, behind it, the raw bytes of the
//! tensor that the header describes. The wire types are generated from `proto/v1` and private;
//! the types here are made from them by checks, so that what holds of a type holds of every value
//! of it: a [`Span`] is not empty, a [`Tensor`] has the bytes that its shape asks for.
//!
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | frames, their limits, and a decoder that is fed bytes as they come |
//! | [`inference`] | what clients and servers say in a session |
//! | [`keeping`] | what keys and values take where sessions share pages of one size |
//! | [`prefix`] | names of texts that a server may have read before |
//! | [`training`] | what trainers and servers say to each other |
//! | [`averaging`] | what trainers who share a run say to each other |
//! | [`announcement`] | what a server says of itself, signed |
//! | [`directory`] | asking a peer which servers it knows |
//! | [`compression`] | large payloads in fewer bytes, without loss |
//! | [`error`] | error codes that say where a retry helps, and violations of the protocol |
//! | [`text`] | what strangers say in words of their own |
//! | [`version`] | the names of the link protocols and what each allows |

#![warn(missing_docs)]

pub mod announcement;
pub mod averaging;
pub mod compression;
pub mod directory;
pub mod error;
pub mod frame;
mod generated;
pub mod id;
pub mod inference;
pub mod keeping;
pub mod local;
pub mod prefix;
pub mod published;
pub mod span;
pub mod tensor;
pub mod text;
pub mod training;
pub mod version;
mod wire;

pub use announcement::{Announcement, SignedAnnouncement};
pub use error::{ErrorCode, ProtocolViolation, Retry};
pub use frame::Frame;
pub use id::{AdapterId, ModelId, PeerId, SessionId, StepId};
pub use span::Span;
pub use tensor::{DType, Tensor};
pub use version::LinkProtocol;
