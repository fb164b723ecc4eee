//! What the tests of the whole have in common.
//!
//! | module | what it holds |
//! |---|---|
//! | [`adapted`] | what is asked with adapters, and what must come of it |
//! | [`process`] | the `umbel` binary as child processes that never outlive their test |
//! | [`swarm`] | servers on loopback, and commands that ask them |
//! | [`shape`] | links between those servers with delay, loss and partitions |
//! | [`faults`] | swarms whose servers are killed, frozen and cut off while they answer |
//! | [`gateway`] | gateways, and requests over HTTP |
//! | [`browser`] | a browser with a page |
//! | [`soak`] | a gateway under many streaming clients: what they noticed, and what is left behind |
//! | [`clients`] | clients that ask a swarm again and again whatever is done to it |
//! | [`prometheus`] | what a process tells Prometheus |
//! | [`thinned`] | a model without some of its blocks, to draft for the whole one |
//! | [`training`] | trainings whose servers are killed |
//! | [`workload`] | what is asked of a swarm, and what one process answers |
//! | [`fuzz`] | what the fuzz targets check of each decoder of foreign bytes |

pub mod adapted;
pub mod browser;
pub mod clients;
pub mod faults;
pub mod fuzz;
pub mod gateway;
pub mod process;
pub mod prometheus;
pub mod shape;
pub mod soak;
pub mod swarm;
pub mod thinned;
pub mod training;
pub mod workload;

/// How a program for developers ends: what failed goes to stderr, in a line.
#[must_use]
pub fn exit_code(outcome: anyhow::Result<()>) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
