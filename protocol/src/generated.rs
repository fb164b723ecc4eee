//! The wire types. They stay in this crate: the domain types around them are what others see.

#[rustfmt::skip]
#[path = "generated/umbel.v1.rs"]
#[allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
mod v1;

pub(crate) use v1::*;
