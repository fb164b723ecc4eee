//! The binary `umbel`.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbel_node::main()
}
