//! What a connection carries, seen from its first bytes: HTTP, TLS, or something that nobody looks
//! into. No clock, no IO. Everything here reads what strangers send.

mod detect;
mod hello;

pub use detect::{FirstLine, Kind, MAX_FIRST_LINE, detect, detect_whole, is_http_server};
pub use hello::{Hello, MAX_HELLO, ServerName, client_hello};
