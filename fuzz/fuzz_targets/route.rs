//! Any bytes as method, path and query, as a Host header, or as an audience: no panic, and what is accepted is what it must be.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = wrapdisk::vault::wire::fuzz_route(input);
});
