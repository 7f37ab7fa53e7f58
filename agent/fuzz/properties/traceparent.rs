//! W3C trace context: what is read is written again, and nothing else is read.

use isthmus_proxy::TraceParent;

/// `input` is a `traceparent` field. Says whether it is a proper one.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Some(parent) = TraceParent::parse(input) else { return false };
    let text = parent.to_string();
    assert_eq!(
        TraceParent::parse(text.as_bytes()),
        Some(parent),
        "{text} is read as it is written"
    );
    assert_eq!(text.as_bytes()[3..52], input[3..52], "the ids are passed on as they came");
    assert!(parent.trace.0 != [0; 16] && parent.span.0 != [0; 8], "{text}");
    true
}
