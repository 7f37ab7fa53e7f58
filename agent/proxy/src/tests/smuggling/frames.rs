//! HTTP/2 frames, written and read by hand: no library would send what these tests send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tests::support::SOON;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A field, as HPACK's literal without indexing and without Huffman's code.
pub(super) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        let length = u8::try_from(text.len()).ok().filter(|it| *it < 127);
        bytes.push(length.expect("short texts only"));
        bytes.extend(text);
    }
    bytes
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// An answer of status 200, to its end.
    Success,
    /// An answer of another status.
    Failure,
    /// The stream or the connection was ended without one.
    Nothing,
}

/// Sends frames on a connection of their own, and waits for what becomes of stream 1.
pub(super) async fn converse(mut stream: TcpStream, frames: &[u8]) -> Came {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frames);
    if stream.write_all(&bytes).await.is_err() {
        return Came::Nothing;
    }
    timeout(SOON, outcome(&mut stream)).await.unwrap_or(Came::Nothing)
}

async fn outcome(stream: &mut TcpStream) -> Came {
    let mut came = Came::Nothing;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return came;
        }
        let [a, b, c, kind, flags, number @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return came;
        }
        let ours = number == [0, 0, 0, 1];
        match kind {
            // 0x88 is `:status: 200` in HPACK's static table; a change of the table's size may precede.
            HEADERS if ours => {
                let status = payload.iter().find(|byte| **byte >> 5 != 1);
                came = if status == Some(&0x88) { Came::Success } else { Came::Failure };
            }
            RESET if ours => return if came == Came::Failure { came } else { Came::Nothing },
            GOAWAY if payload[4..8] != [0; 4] => return came,
            _ => {}
        }
        if ours && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            return came;
        }
    }
}
