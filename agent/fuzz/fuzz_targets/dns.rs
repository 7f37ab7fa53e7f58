#![no_main]

#[path = "../properties/dns.rs"]
mod properties;
// The agent's own files rather than the agent, whose TLS and gRPC take many minutes to build.
#[path = "../../src/dns/wire.rs"]
#[allow(dead_code)]
mod wire;
#[path = "../../src/dns/zone.rs"]
mod zone;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    properties::hold(input);
});
