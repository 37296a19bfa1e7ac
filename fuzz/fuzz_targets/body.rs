//! Any bytes as the body of a request to the vault: no panic, no hang, and what is accepted is what it must be.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = wrapdisk::vault::wire::fuzz_body(input);
});
