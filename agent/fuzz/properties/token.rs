//! Join tokens: what is read is what is written.

use isthmus_model::token::{Token, TokenId};

/// `input` is a token's text. Says whether it is one.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let token = text.parse::<Token>();
    if let Ok(token) = &token {
        survives_copying(text, token);
    }
    // Ids are read from the command line, apart from tokens.
    if let Ok(id) = text.parse::<TokenId>() {
        assert!(id.to_string().eq_ignore_ascii_case(text), "{text:?} reads as {id}");
    }
    token.is_ok()
}

fn survives_copying(text: &str, token: &Token) {
    let line = token.encode();
    assert_eq!(*line, text.trim(), "one token has one text");
    assert!(line.parse() == Ok(token.clone()), "a token reads back as written");
    assert_eq!(token.id.to_string().parse(), Ok(token.id));
    assert!(!token.controllers.is_empty());
    for address in &token.controllers {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        assert!(!host.is_empty());
        assert!(port.bytes().all(|digit| digit.is_ascii_digit()), "{address:?} has no port");
        assert_ne!(port.parse(), Ok(0_u16));
    }
}
