//! Training through swarms of real processes, and what is done with the result.

mod command;
mod dora;
mod endings;
mod fakes;
mod frozen;
mod heads;
mod kept;
mod prompts;
mod prompts_command;
mod published;
mod refusals;
mod steps;
mod tenants;
mod together;
