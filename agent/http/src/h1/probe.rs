//! Requests as the proxy reads and writes them, without connections: for fuzz targets, which compare
//! this with other readings.

use bytes::Bytes;

use super::decode::{Decoder, Piece};
use super::encode::{self, Encoder};
use super::head::{self, Framing};
use super::reader::Reader;
use crate::limits::Author;

/// Result of parsing bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Whole requests, in order.
    pub requests: Vec<ReadRequest>,
    /// Something behind them is no proper HTTP/1.
    pub refused: bool,
}

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadRequest {
    /// The method.
    pub method: String,
    /// The target.
    pub target: String,
    /// The body, without what frames it.
    pub body: Vec<u8>,
    /// Number of bytes read until its end, from the start of the first request.
    pub end: usize,
    /// The request as it is passed on.
    pub rewritten: Vec<u8>,
}

/// A request whose body is being read.
struct Open {
    request: ReadRequest,
    decoder: Decoder,
    encoder: Encoder,
}

/// Reads requests that arrive in pieces.
#[must_use]
pub fn read_requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Reading {
    read(pieces, Author::Anybody)
}

/// Likewise, behind another proxy.
#[must_use]
pub fn read_again<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Reading {
    read(pieces, Author::Proxy)
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, author: Author) -> Reading {
    let mut reading = Reading::default();
    let (mut reader, mut open) = (Reader::new(author), None);
    let mut arrived = 0;
    for piece in pieces {
        arrived += piece.len();
        let mut rest = Bytes::copy_from_slice(piece);
        while !rest.is_empty() {
            if step((&mut reader, author), &mut open, &mut rest).is_none() {
                reading.refused = true;
                return reading;
            }
            if let Some(Open { mut request, .. }) = open.take_if(|it| it.decoder.is_done()) {
                request.end = arrived - rest.len();
                reading.requests.push(request);
            }
        }
    }
    reading
}

/// Reads on. None if it can't be read.
fn step(
    (reader, author): (&mut Reader, Author),
    open: &mut Option<Open>,
    rest: &mut Bytes,
) -> Option<()> {
    if let Some(open) = open {
        return open.read(rest);
    }
    let (head, behind) = reader.take(std::mem::take(rest)).ok()?;
    *rest = behind;
    if let Some(head) = head {
        *open = Some(Open::new(&head, author)?);
    }
    Some(())
}

impl Open {
    fn new(head: &Bytes, author: Author) -> Option<Self> {
        let read = head::request(head, author).ok()?;
        let (parts, framing) = (read.parts, read.framing);
        let target = (&parts.method, &parts.uri);
        let encoder = Encoder::new(framing, true);
        let rewritten = encode::request(target, &parts.headers, Some(head), framing, encoder);
        let request = ReadRequest {
            method: parts.method.to_string(),
            target: parts.uri.to_string(),
            rewritten: rewritten.to_vec(),
            ..ReadRequest::default()
        };
        let mut open = Self { request, decoder: Decoder::new(framing), encoder };
        if framing == Framing::Empty {
            open.end(None);
        }
        Some(open)
    }

    fn read(&mut self, rest: &mut Bytes) -> Option<()> {
        let piece = self.decoder.decode(rest).ok()?;
        let mut trailers = None;
        match piece {
            Some(Piece::Data(data)) => {
                self.request.body.extend_from_slice(&data);
                let mut out = Vec::new();
                self.encoder.data(data, &mut out).ok()?;
                self.request.rewritten.extend(out.concat());
            }
            Some(Piece::Trailers(read)) => trailers = Some(read),
            None => {}
        }
        if self.decoder.is_done() {
            self.end(trailers.as_ref());
        }
        Some(())
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) {
        let mut out = Vec::new();
        if self.encoder.end(trailers, &mut out).is_ok() {
            self.request.rewritten.extend(out.concat());
        }
    }
}
