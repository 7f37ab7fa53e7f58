#![no_main]

#[path = "../properties/node.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    properties::hold(input);
});
