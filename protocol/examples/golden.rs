//! Writes the frames of messages that have none yet under `tests/golden`; never changes one.
//!
//! `cargo run -p umbel-protocol --example golden`

#[path = "../tests/frames/samples.rs"]
mod samples;

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for sample in samples::samples() {
        match File::create_new(folder.join(format!("{}.bin", sample.name))) {
            Ok(mut file) => file.write_all(&sample.message.on_the_link())?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
