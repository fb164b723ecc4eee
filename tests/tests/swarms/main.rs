//! Swarms of real processes: servers that come, go, fail, rest and hide, and the people who run them.

mod bad_input;
mod failover;
mod hidden_servers;
mod hours;
mod limits;
mod operators;
mod pause;
mod private_swarm;
mod processes;
mod shape;
mod shaped_swarm;
