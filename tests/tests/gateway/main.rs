//! The gateway over swarms of real processes: its interfaces, its page, and what it bears.

mod fine_tuning;
mod interfaces;
mod limits;
mod malformed;
mod page;
mod requests;
mod soak;
