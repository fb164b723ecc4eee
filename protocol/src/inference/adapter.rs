//! The adapter of a session.

use crate::training::AdapterSettings;
use crate::{AdapterId, SessionId, Tensor};

/// An adapter that a server holds for a client, or is given before it opens the session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionAdapter {
    /// Its name.
    pub id: AdapterId,
    /// What it is, beside its values.
    pub settings: AdapterSettings,
}

/// Consecutive values of a session's adapter in the session's blocks.
///
/// They stand in one row, as those of a [training](crate::training::StateValues).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterPart {
    /// Which session.
    pub session: SessionId,
    /// The first.
    pub offset: u64,
    /// `[values]`, finite ones in binary32: [`STATE_VALUES_MAX`](crate::training::STATE_VALUES_MAX), or
    /// as many as are left.
    pub values: Tensor,
}
