//! What the tests of the whole have in common.
//!
//! | module | what it holds |
//! |---|---|
//! | [`process`] | the `umbel` binary as child processes that never outlive their test |
//! | [`swarm`] | servers on loopback, and commands that ask them |
//! | [`fuzz`] | what the fuzz targets check of each decoder of foreign bytes |

pub mod faults;
pub mod fuzz;
pub mod process;
pub mod swarm;
