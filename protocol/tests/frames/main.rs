//! Frames: the bytes of each message, as they were when it was released, and their properties.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod adapters;
mod local;
mod properties;
mod samples;
mod words;

use std::fs;
use std::path::Path;

use samples::{Sample, samples};
use umbel_protocol::frame::{Frame, FrameDecoder, Limits};

const ANY: Limits = Limits { header_bytes_max: u32::MAX, payload_bytes_max: u32::MAX };

#[test]
fn todays_code_reads_and_writes_the_frames_of_each_release() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for Sample { name, message } in samples() {
        let file = format!("{name}.bin");
        let golden = fs::read(folder.join(&file)).unwrap_or_else(|error| {
            panic!("{file}: {error}: run `cargo run -p umbel-protocol --example golden`")
        });
        let frames = FrameDecoder::new(ANY).push(&golden).unwrap();
        let [frame]: [Frame; 1] = frames.try_into().unwrap();
        assert_eq!(message.decode_like(frame), Ok(message.clone()), "{name} is read otherwise");
        assert!(message.on_the_link() == golden, "{name} is written otherwise");
        names.retain(|of| *of != file);
    }
    assert!(names.is_empty(), "frames without a message: {names:?}");
}
