//! Heads and bodies, to bytes.

use std::cell::RefCell;
use std::io::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::Error;
use super::date;
use super::head::Framing;
use crate::marks::OURS;

/// Framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoder {
    /// There is none, whatever the fields say.
    Empty,
    /// So many bytes are left.
    Length(u64),
    Chunked {
        trailers: bool,
    },
    UntilClose,
}

/// What trailers may not change: where a message ends, for whom it is, who sent it
/// (RFC 9110, section 6.5.1).
const NO_TRAILERS: [&str; 8] = [
    "transfer-encoding",
    "content-length",
    "host",
    "connection",
    "trailer",
    "te",
    "authorization",
    "set-cookie",
];

impl Encoder {
    pub(crate) const fn new(framing: Framing, trailers: bool) -> Self {
        match framing {
            Framing::Empty => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked { trailers },
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Part of the body. An empty one isn't written: as a chunk it would be the last.
    pub(crate) fn data(&mut self, data: Bytes, out: &mut Vec<Bytes>) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Self::Empty => {}
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Error::WrongLength)?;
                out.push(data);
            }
            Self::Chunked { .. } => {
                let size = format!("{:x}\r\n", data.len());
                out.extend([size.into(), data, Bytes::from_static(b"\r\n")]);
            }
            Self::UntilClose => out.push(data),
        }
        Ok(())
    }

    /// The body's end.
    pub(crate) fn end(
        &mut self,
        trailers: Option<&HeaderMap>,
        out: &mut Vec<Bytes>,
    ) -> Result<(), Error> {
        match (self, trailers) {
            (Self::Length(1..), _) => return Err(Error::WrongLength),
            (Self::Chunked { trailers: true }, Some(trailers)) => {
                let mut text = b"0\r\n".to_vec();
                for (name, value) in trailers {
                    if !NO_TRAILERS.contains(&name.as_str()) {
                        line(&mut text, name.as_str().as_bytes(), value);
                    }
                }
                text.extend_from_slice(b"\r\n");
                out.push(text.into());
            }
            (Self::Chunked { .. }, _) => out.push(Bytes::from_static(b"0\r\n\r\n")),
            (Self::Empty | Self::Length(0) | Self::UntilClose, _) => {}
        }
        Ok(())
    }
}

/// A request's head, whose body `encoder` will write. `spelled` is the head that it came with, whose spelling of names is kept.
pub(crate) fn request(
    (method, uri): (&Method, &Uri),
    fields: &HeaderMap,
    spelled: Option<&Bytes>,
    framing: Framing,
    encoder: Encoder,
) -> Bytes {
    into_bytes(|head| write_request((method, uri), fields, spelled, (framing, encoder), head))
}

fn write_request(
    (method, uri): (&Method, &Uri),
    fields: &HeaderMap,
    spelled: Option<&Bytes>,
    (framing, encoder): (Framing, Encoder),
    head: &mut Vec<u8>,
) {
    head.extend_from_slice(method.as_str().as_bytes());
    head.push(b' ');
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    // Who gets no trailers isn't told of any.
    let announces = encoder == Encoder::Chunked { trailers: true };
    lines(head, fields, spelled, |name| !is_framing(name) && (announces || *name != TRAILER));
    let may_have_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    match framing {
        Framing::Empty if may_have_body => length(head, 0),
        Framing::Empty | Framing::UntilClose => {}
        Framing::Length(bytes) => length(head, bytes),
        Framing::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    head.extend_from_slice(b"\r\n");
}

/// Facts about a request that its answer's head depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) version: Version,
    pub(crate) is_head: bool,
    pub(crate) keep_alive: bool,
}

/// An answer's head.
pub(crate) fn response(
    status: StatusCode,
    fields: &HeaderMap,
    spelled: Option<&Bytes>,
    framing: Framing,
    asked: Asked,
) -> Bytes {
    into_bytes(|head| write_response(status, fields, spelled, (framing, asked), head))
}

fn write_response(
    status: StatusCode,
    fields: &HeaderMap,
    spelled: Option<&Bytes>,
    (framing, asked): (Framing, Asked),
    head: &mut Vec<u8>,
) {
    // The version is the proxy's own, whatever the caller's is (RFC 9110, section 2.5).
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.extend_from_slice(b"\r\n");
    if status == StatusCode::SWITCHING_PROTOCOLS {
        lines(head, fields, spelled, |_| true);
        head.extend_from_slice(b"\r\n");
        return;
    }
    lines(head, fields, spelled, |name| !is_framing(name));
    let is_bodiless = status == StatusCode::NO_CONTENT || status.is_informational();
    match (framing, fields.get(CONTENT_LENGTH)) {
        // What the length would be.
        (_, Some(told)) if asked.is_head || status == StatusCode::NOT_MODIFIED => {
            line(head, b"content-length", told);
        }
        (_, None) if asked.is_head || status == StatusCode::NOT_MODIFIED => {}
        (Framing::Empty, _) if is_bodiless => {}
        (Framing::Empty, _) => length(head, 0),
        (Framing::Length(bytes), _) => length(head, bytes),
        (Framing::Chunked, _) => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        (Framing::UntilClose, _) => {}
    }
    if !asked.keep_alive {
        head.extend_from_slice(b"connection: close\r\n");
    } else if asked.version == Version::HTTP_10 {
        head.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !fields.contains_key(DATE) {
        date::with_now(|now| {
            head.extend_from_slice(b"date: ");
            head.extend_from_slice(now);
            head.extend_from_slice(b"\r\n");
        });
    }
    head.extend_from_slice(b"\r\n");
}

/// An answer before the answer.
pub(crate) fn interim(status: StatusCode, fields: &HeaderMap, spelled: &Bytes) -> Bytes {
    into_bytes(|head| {
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend_from_slice(status.as_str().as_bytes());
        head.push(b' ');
        head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        head.extend_from_slice(b"\r\n");
        lines(head, fields, Some(spelled), |name| !is_framing(name));
        head.extend_from_slice(b"\r\n");
    })
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is written into a buffer of the thread's, in as many bytes as it takes.
fn into_bytes(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        write(scratch);
        Bytes::copy_from_slice(scratch)
    })
}

fn is_framing(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING
}

fn lines(
    head: &mut Vec<u8>,
    fields: &HeaderMap,
    spelled: Option<&Bytes>,
    wanted: impl Fn(&HeaderName) -> bool,
) {
    for (name, value) in fields {
        if wanted(name) {
            let plain = name.as_str().as_bytes();
            let spelt = spelled.and_then(|head| spelling(head, plain, value));
            line(head, spelt.unwrap_or(plain), value);
        }
    }
}

fn line(head: &mut Vec<u8>, name: &[u8], value: &HeaderValue) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value.as_bytes());
    head.extend_from_slice(b"\r\n");
}

fn length(head: &mut Vec<u8>, bytes: u64) {
    head.extend_from_slice(b"content-length: ");
    // Into memory that never fails.
    let _ = write!(head, "{bytes}\r\n");
}

/// Spelling of a name in a head, whose first line isn't a field.
fn spelling<'a>(head: &'a [u8], name: &[u8], value: &HeaderValue) -> Option<&'a [u8]> {
    beside(head, name, value).or_else(|| {
        // No sender may say these.
        let line = if name.starts_with(OURS.as_bytes()) { None } else { line_of(name, head) };
        line?.get(..name.len())
    })
}

/// What came with a head lies in it still, behind its name.
fn beside<'a>(head: &'a [u8], name: &[u8], value: &HeaderValue) -> Option<&'a [u8]> {
    let at = value.as_bytes().as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    let line = match head.get(..at)? {
        [line @ .., b':', b' '] => line,
        line => line.trim_ascii_end().strip_suffix(b":")?,
    };
    let spelt = &line[line.len().checked_sub(name.len())?..];
    // But for the bit that tells lower case from upper; a whole loop is quicker than one that ends early.
    let differ = spelt.iter().zip(name).fold(0, |differ, (a, b)| differ | (a ^ b) & !0x20);
    (differ == 0).then_some(spelt)
}

/// The lines of a head from the first on that is about a name.
fn line_of<'a>(name: &[u8], head: &'a [u8]) -> Option<&'a [u8]> {
    let mut lines = behind_line(head);
    while !begins(lines, name) {
        lines = behind_line(lines);
        if lines.is_empty() {
            return None;
        }
    }
    Some(lines)
}

fn begins(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':')
        && line.get(..name.len()).is_some_and(|it| it.eq_ignore_ascii_case(name))
}

fn behind_line(bytes: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', bytes).map_or(&[], |at| &bytes[at + 1..])
}
