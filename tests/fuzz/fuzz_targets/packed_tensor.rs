//! A packed payload of a tensor.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    umbel_fuzz::checks::packed_tensor(data);
});
