//! GGUF files.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    umbel_fuzz::checks::gguf_header(data);
});
