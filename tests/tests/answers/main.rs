//! What is answered: by one process and by swarms of real ones, plain and with all that a session may ask.
//!
//! Tests of one subject share a program: each program holds the whole of Umbel, and takes its time to link.

mod adapters;
mod bench;
mod chat;
mod exact;
mod prefix;
mod smollm2;
mod speculation;
mod thin;
