//! Bytes from a link.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    umbel_fuzz::checks::frames(data);
});
