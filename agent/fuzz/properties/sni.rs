//! ClientHellos: what is said once is never said otherwise, and names are names.

use isthmus_http::detect::{Hello, Kind, MAX_HELLO, client_hello, detect};

/// `input` is what a client sends first. Says whether it is a ClientHello.
pub(crate) fn hold(input: &[u8]) -> bool {
    let whole = client_hello(input);
    for length in cuts(input.len()) {
        match client_hello(&input[..length]) {
            Hello::Incomplete => {}
            said @ (Hello::Wants(_) | Hello::Malformed) => {
                assert_eq!(said, whole, "more bytes changed what was said after {length}");
            }
        }
    }
    match &whole {
        Hello::Incomplete => assert!(input.len() < MAX_HELLO, "it waits without end"),
        Hello::Wants(Some(name)) => is_proper(name.as_str()),
        Hello::Wants(None) | Hello::Malformed => {}
    }
    if matches!(whole, Hello::Wants(_)) {
        // A record may hold no more than the type of a message, so that detection has to wait.
        assert!(matches!(detect(input), Some(Kind::Tls)), "a hello that isn't taken for TLS");
    }
    matches!(whole, Hello::Wants(_))
}

fn is_proper(name: &str) {
    assert!((1..=253).contains(&name.len()), "{name:?}");
    assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{name:?}");
    assert!(!name.bytes().any(|b| b.is_ascii_uppercase()), "{name:?}");
    assert!(name.split('.').all(|label| !label.is_empty()), "{name:?}");
}

/// Every length of short inputs, some of long ones.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(length / 512 + 1)
}
