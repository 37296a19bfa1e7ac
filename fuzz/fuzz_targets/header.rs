//! Any bytes as a container: no panic, no hang, and what is accepted can be written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    wrapdisk::luks2::fuzz_load(input);
});
