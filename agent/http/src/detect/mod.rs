//! Protocol detection from a connection's first bytes: HTTP, TLS, or something that nobody looks
//! into. No clock, no IO. Everything here reads what strangers send.

mod hello;
mod kind;

pub use hello::{Hello, MAX_HELLO, ServerName, client_hello};
pub use kind::{FirstLine, Kind, MAX_FIRST_LINE, detect, detect_whole, is_http_server};
