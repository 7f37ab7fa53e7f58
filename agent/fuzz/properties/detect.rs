//! Detection: a decision stands, comes in time, and nothing that might be a request passes for
//! something else.

use isthmus_proxy::sniff::{Kind, MAX_FIRST_LINE, detect};

/// `input` is what a client sends first. Says whether that was decided.
pub(crate) fn hold(input: &[u8]) -> bool {
    let whole = detect(input);
    for length in (0..input.len()).step_by(input.len() / 512 + 1) {
        if let Some(kind) = detect(&input[..length]) {
            assert_eq!(Some(kind), whole, "more bytes changed the decision after {length}");
        }
    }
    assert!(whole.is_some() || input.len() < MAX_FIRST_LINE + 64, "it waits without end");
    if is_request(input) {
        assert!(matches!(whole, Some(Kind::Http1 | Kind::Http2)), "a request that isn't seen");
    }
    whole.is_some()
}

/// What a lenient server takes for a request: empty lines, a word of any length, white space, and
/// somewhere in the line a version.
fn is_request(input: &[u8]) -> bool {
    let start = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let Some(end) = input[start..].iter().position(|byte| *byte == b'\n') else { return false };
    let line = &input[start..start + end];
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let mut words = line.split([' ', '\t']);
    let method = words.next().unwrap_or_default();
    let proper = !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic());
    let rest: Vec<&str> = words.collect();
    let version = rest.iter().any(|word| word.trim_end().starts_with("HTTP/1."));
    let printable = line.bytes().all(|byte| !byte.is_ascii_control() || b"\t\r".contains(&byte));
    proper && version && printable
}
