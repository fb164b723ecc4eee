//! The binary `umbel`, built with the tests of this package so that they never meet an old one.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbel_node::main()
}
