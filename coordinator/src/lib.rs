//! Every decision of Umbel that involves more than one peer, without I/O.
//!
//! Each role is a state machine with one shape: `handle` an input, `poll` outputs until there are
//! none, then arm the timer that `poll_timeout` names and call `handle_timeout` when it fires. A server is
//! also asked to `begin_pass`, when it has been told of all that has come.
//! The node, the client and the simulator are bodies for the same machines.

#![warn(missing_docs)]

pub mod journal;
pub mod prefill;
pub mod random;
pub mod route;
pub mod server;
pub mod session;
pub mod shelf;
pub mod swarm;
pub mod time;
pub mod training;

pub use route::{Hop, Route};
pub use time::Time;
