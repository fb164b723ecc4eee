//! Configurations of Hugging Face checkpoints.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    umbel_fuzz::checks::config_json(data);
});
