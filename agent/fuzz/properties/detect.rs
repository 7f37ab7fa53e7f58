//! Detection: a decision stands, comes in time, and nothing that might be a request passes for
//! something else.

use isthmus_http::detect::{FirstLine, Kind, MAX_FIRST_LINE, detect};

/// `input` is what a client sends first. Says whether that was decided.
pub(crate) fn hold(input: &[u8]) -> bool {
    let whole = detect(input);
    for length in (0..input.len()).step_by(input.len() / 512 + 1) {
        if let Some(kind) = detect(&input[..length]) {
            assert_eq!(Some(kind), whole, "more bytes changed the decision after {length}");
        }
    }
    assert!(whole.is_some() || input.len() < MAX_FIRST_LINE + 64, "it waits without end");
    let mut line = FirstLine::default();
    let is_stopped = input.chunks(input.len() / 512 + 1).any(|piece| line.becomes_request(piece));
    let in_one_piece = FirstLine::default().becomes_request(input);
    assert_eq!(is_stopped, in_one_piece, "pieces changed what passes");
    if is_request(input) {
        let is_http = matches!(whole, Some(Kind::Http1 | Kind::Http2));
        assert!(is_http || is_stopped, "a request that isn't seen");
    }
    whole.is_some()
}

/// A request, to a lenient server: empty lines, anything up to white space, and somewhere in the line
/// a version.
fn is_request(input: &[u8]) -> bool {
    let start = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let Some(end) = input[start..].iter().position(|byte| *byte == b'\n') else { return false };
    // No server reads longer lines.
    let line = &input[start..start + end.min(4 * MAX_FIRST_LINE)];
    let mut words = line.split(|byte| b" \t".contains(byte));
    let has_method = words.next().is_some_and(|method| !method.is_empty());
    has_method && words.any(|word| word.starts_with(b"HTTP/1."))
}
