//! Umbel.
