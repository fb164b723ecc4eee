//! A deterministic world in which the machines of Umbel run in virtual time.
//!
//! One seed gives one trace, byte for byte. The accelerator is a toy whose answers are hashes of
//! everything that they should depend on, so a lost token, a wrong route or a stale cache changes
//! them.

pub mod averaging;
pub mod host;
pub mod link;
pub mod oracle;
pub mod placement;
pub mod plot;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod seed;
pub mod table;
pub mod workload;
pub mod world;
