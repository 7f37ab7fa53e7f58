#![no_main]

#[path = "../properties/traceparent.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    properties::hold(input);
});
