//! Heads, from bytes.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};
use httparse::{ParserConfig, Status};

use crate::headers::{expects_continue, list};
use crate::limits::{Author, MAX_FIELDS};

/// Framing that ends a message's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// An answer that ends with its connection.
    UntilClose,
}

/// A request's head, and what it says about its connection.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) parts: http::request::Parts,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    pub(crate) wants_trailers: bool,
}

/// An answer's head, and what it says about its connection.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) parts: http::response::Parts,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    TooLarge,
    Malformed(&'static str),
}

/// Looks for a head's end, and at each byte once.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    seen: usize,
}

impl Refused {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "a head that is too large",
            Self::Malformed(reason) => reason,
        }
    }
}

impl Scan {
    /// The head's length, its last empty line with it; none if its end isn't here.
    pub(crate) fn find(&mut self, bytes: &[u8], author: Author) -> Result<Option<usize>, Refused> {
        let most_bytes = author.most_bytes();
        while let Some(offset) = memchr::memchr(b'\n', bytes.get(self.seen..).unwrap_or_default()) {
            let at = self.seen + offset;
            self.seen = at + 1;
            match &bytes[..at] {
                [.., b'\r', b'\n', b'\r'] if self.seen > most_bytes => break,
                [.., b'\r', b'\n', b'\r'] => return Ok(Some(self.seen)),
                [.., b'\r'] => {}
                _ => return Err(Refused::Malformed("a line that ends in a bare LF")),
            }
        }
        self.seen = self.seen.max(bytes.len());
        if self.seen > most_bytes { Err(Refused::TooLarge) } else { Ok(None) }
    }
}

/// Reads a request's head; `head` is all of it.
pub(crate) fn request(head: &Bytes, author: Author) -> Result<RequestHead, Refused> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut read = httparse::Request::new(&mut []);
    let config = ParserConfig::default();
    let status = config.parse_request_with_uninit_headers(&mut read, head, &mut lines);
    whole(status, head)?;
    let (Some(method), Some(target), Some(minor)) = (read.method, read.path, read.version) else {
        return Err(Refused::Malformed("an incomplete request line"));
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("a bad method"))?;
    let target = Uri::from_maybe_shared(head.slice_ref(target.as_bytes()));
    parts.uri = target.ok().and_then(with_path).ok_or(bad("a bad target"))?;
    parts.version = version(minor);
    parts.headers = fields(head, read.headers, author)?;
    let framing = framing(&parts.headers, parts.version)?;
    Ok(RequestHead {
        framing: framing.unwrap_or(Framing::Empty),
        keep_alive: keeps_alive(&parts.headers, parts.version),
        expects_continue: parts.version == Version::HTTP_11 && expects_continue(&parts.headers),
        wants_trailers: has(&parts.headers, &TE, "trailers"),
        parts,
    })
}

/// The empty path of a whole URI is `/` (RFC 9112, section 3.2.1), also before a query.
fn with_path(uri: Uri) -> Option<Uri> {
    let target = uri.path_and_query().filter(|target| target.as_str().starts_with('?'));
    let Some(target) = target.filter(|_| uri.scheme().is_some()) else { return Some(uri) };
    let target = format!("/{}", target.as_str());
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(target.try_into().ok()?);
    Uri::from_parts(parts).ok()
}

/// Reads the head of an answer to a request with a method; `head` is all of it.
pub(crate) fn response(
    head: &Bytes,
    asked: &Method,
    author: Author,
) -> Result<ResponseHead, Refused> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut read = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut read, head, &mut lines);
    whole(status, head)?;
    let (Some(code), Some(minor)) = (read.code, read.version) else {
        return Err(Refused::Malformed("an incomplete status line"));
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(code).map_err(|_| bad("a bad status"))?;
    parts.version = version(minor);
    parts.headers = fields(head, read.headers, author)?;
    let framed = framing(&parts.headers, parts.version)?;
    let framing = if asked == Method::HEAD || has_no_body(parts.status) {
        Framing::Empty
    } else {
        framed.unwrap_or(Framing::UntilClose)
    };
    let keep_alive = framing != Framing::UntilClose && keeps_alive(&parts.headers, parts.version);
    Ok(ResponseHead { parts, framing, keep_alive })
}

/// Reads the lines behind a chunked body; `lines` ends with an empty one.
pub(crate) fn trailers(lines: &Bytes) -> Result<HeaderMap, Refused> {
    let mut room = [httparse::EMPTY_HEADER; Author::Anybody.most_fields()];
    match httparse::parse_headers(lines, &mut room) {
        Ok(Status::Complete((length, read))) if length == lines.len() => {
            fields(lines, read, Author::Anybody)
        }
        Ok(_) => Err(bad("bad trailers")),
        Err(error) => Err(refused(error)),
    }
}

pub(crate) fn has_no_body(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// `Scan` and httparse must agree on where the head ends.
fn whole(read: httparse::Result<usize>, head: &Bytes) -> Result<(), Refused> {
    match read {
        Ok(Status::Complete(length)) if length == head.len() => Ok(()),
        Ok(_) => Err(bad("a head with an empty line within")),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: httparse::Error) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused::TooLarge,
        httparse::Error::HeaderName => bad("a bad field name"),
        httparse::Error::HeaderValue => bad("a bad field value"),
        httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token
        | httparse::Error::Version => bad("a malformed head"),
    }
}

const fn bad(reason: &'static str) -> Refused {
    Refused::Malformed(reason)
}

const fn version(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

fn fields(
    head: &Bytes,
    lines: &[httparse::Header<'_>],
    author: Author,
) -> Result<HeaderMap, Refused> {
    if lines.len() > author.most_fields() {
        return Err(Refused::TooLarge);
    }
    let mut fields = HeaderMap::with_capacity(lines.len() + 4);
    for line in lines {
        let name =
            HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| bad("a bad field name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(line.value))
            .map_err(|_| bad("a bad field value"))?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Body framing by the fields, if any. They must agree on one.
fn framing(fields: &HeaderMap, version: Version) -> Result<Option<Framing>, Refused> {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let (coding, length) = (codings.next(), lengths.next());
    if codings.next().is_some() {
        return Err(bad("more than one Transfer-Encoding"));
    }
    if lengths.next().is_some() {
        return Err(bad("more than one Content-Length"));
    }
    match (coding, length) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(bad("both a Transfer-Encoding and a Content-Length")),
        (Some(_), None) if version == Version::HTTP_10 => {
            Err(bad("a Transfer-Encoding in HTTP/1.0"))
        }
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        (Some(_), None) => Err(bad("a Transfer-Encoding other than chunked")),
        (None, Some(length)) => match decimal(length.as_bytes()) {
            Some(0) => Ok(Some(Framing::Empty)),
            Some(length) => Ok(Some(Framing::Length(length))),
            None => Err(bad("a Content-Length that isn't a number")),
        },
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

fn keeps_alive(fields: &HeaderMap, version: Version) -> bool {
    if version == Version::HTTP_10 {
        has(fields, &CONNECTION, "keep-alive") && !has(fields, &CONNECTION, "close")
    } else {
        !has(fields, &CONNECTION, "close")
    }
}

fn has(fields: &HeaderMap, name: &HeaderName, option: &str) -> bool {
    list(fields, name).any(|it| it.eq_ignore_ascii_case(option))
}
