//! HTTP/1, HTTP/2, TLS, or none of them?
//!
//! The answer is a function of the bytes so far, and more bytes never change it. What an application
//! might read as HTTP must not pass as something else, or it would pass unjudged; so in doubt it is
//! HTTP, and a request that isn't proper is refused where requests are read.
//!
//! Whoever speaks a binary protocol may wait for an answer after a few bytes, in a line that never ends.
//! So no more of them are waited for once they can't be a proper request's; but since there are servers
//! that take anything for a method, the rest of that line is looked at while it passes ([`FirstLine`]).

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// HTTP/1.1, or something near it.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// TLS.
    Tls,
    /// None of these.
    Tcp,
}

/// A first line that is longer is HTTP, unless it can't be.
pub const MAX_FIRST_LINE: usize = 8 * 1024;
/// Of a line that passes: lenient servers read no longer ones.
const MAX_WATCHED: usize = 64 * 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The beginnings of the PROXY protocol, of both versions. A server that takes it would believe any
/// address from a caller, and take a request behind it, so it counts as HTTP, where it is refused.
const INTRODUCTIONS: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];
const VERSION: &[u8] = b"HTTP/";
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// Detects the protocol from a client's first bytes. None while more bytes could decide.
#[must_use]
pub fn detect(bytes: &[u8]) -> Option<Kind> {
    match bytes.first()? {
        0x14..=0x18 => record(bytes),
        _ if bytes.starts_with(PREFACE) => Some(Kind::Http2),
        _ if INTRODUCTIONS.iter().any(|it| bytes.starts_with(it)) => Some(Kind::Http1),
        _ if PREFACE.starts_with(bytes) => None,
        _ if INTRODUCTIONS.iter().any(|it| it.starts_with(bytes)) => None,
        _ => {
            let first = bytes.get(..MAX_FIRST_LINE);
            request_line(first.unwrap_or(bytes)).or_else(|| first.map(|_| Kind::Http1))
        }
    }
}

/// What a client has sent that will send no more: to servers, its end is the line's.
#[must_use]
pub fn detect_whole(bytes: &[u8]) -> Kind {
    let whole = || detect(&[bytes, b"\n"].concat());
    detect(bytes).or_else(whole).unwrap_or(Kind::Tcp)
}

/// Whether what a server says first is HTTP: `SETTINGS`, with which HTTP/2 begins (RFC 9113, section
/// 3.4), or an answer that nobody asked for. None while more bytes could tell.
#[must_use]
pub fn is_http_server(bytes: &[u8]) -> Option<bool> {
    const SETTINGS: [Option<u8>; 9] =
        [Some(0), None, None, Some(4), Some(0), Some(0), Some(0), Some(0), Some(0)];
    let known = bytes.len().min(VERSION.len());
    let may_be_answer = bytes[..known].eq_ignore_ascii_case(&VERSION[..known]);
    let fits = |(is, byte): (&Option<u8>, &u8)| is.is_none_or(|is| is == *byte);
    let may_be_settings = SETTINGS.iter().zip(bytes).all(fits);
    if may_be_answer && bytes.len() >= VERSION.len() {
        return Some(true);
    }
    if may_be_settings && bytes.len() >= SETTINGS.len() {
        return Some(true);
    }
    (!may_be_answer && !may_be_settings).then_some(false)
}

/// The first line of what passes as something else than HTTP, looked at piece by piece. It is a request to
/// somebody once a word of it begins with a version, whatever comes before. Protocols that tell of requests
/// to others (FastCGI, SCGI, uwsgi, AJP) have no white space there.
#[derive(Debug, Default)]
pub struct FirstLine {
    seen: usize,
    /// Empty lines before the first one don't count.
    has_begun: bool,
    is_over: bool,
    /// The length of the part of white space and a version that came last.
    matched: usize,
}

impl FirstLine {
    /// Whether what came so far, and now `bytes`, is a request to a lenient server.
    pub fn becomes_request(&mut self, bytes: &[u8]) -> bool {
        !self.is_over && bytes.iter().any(|byte| self.ends_version(*byte))
    }

    fn ends_version(&mut self, byte: u8) -> bool {
        if self.is_over {
            return false;
        }
        self.seen += 1;
        self.is_over = self.seen > MAX_WATCHED || byte == b'\n' && self.has_begun;
        let is_blank = is_white(byte) || byte == b'\r';
        self.has_begun |= !is_blank && byte != b'\n';
        let expected = self.matched.checked_sub(1).map(|at| VERSION[at]);
        self.matched = match expected {
            _ if is_blank => 1,
            Some(expected) if byte.eq_ignore_ascii_case(&expected) => self.matched + 1,
            Some(_) | None => 0,
        };
        self.is_over |= self.matched > VERSION.len();
        self.matched > VERSION.len()
    }
}

/// A TLS record of any kind (RFC 8446, section 5.1). A client begins with a ClientHello, but there are servers
/// that skip empty records before it, or a change of ciphers: in doubt it is TLS, and refused where the
/// ClientHello is read.
fn record(bytes: &[u8]) -> Option<Kind> {
    let major = bytes.get(1)?;
    Some(if *major == 3 { Kind::Tls } else { Kind::Tcp })
}

/// As the most lenient servers would read it: they skip white space before a request, any number of it,
/// take any of it for a blank, and methods of any length.
fn request_line(bytes: &[u8]) -> Option<Kind> {
    let skipped = bytes.iter().take_while(|byte| is_white(**byte) || b"\r\n".contains(byte));
    let line = &bytes[skipped.count()..];
    let (method, rest) = line.split_at(line.iter().take_while(|byte| is_token(**byte)).count());
    let [blank, target @ ..] = rest else { return None };
    if METHODS.iter().any(|known| method == known.as_bytes()) {
        return Some(Kind::Http1);
    }
    if method.is_empty() || !is_white(*blank) {
        return Some(Kind::Tcp);
    }
    let is_known = METHODS.iter().any(|known| method.eq_ignore_ascii_case(known.as_bytes()));
    if is_known && matches!(target.first(), Some(b'/' | b'*')) {
        return Some(Kind::Http1);
    }
    rest_of_line(method, target)
}

/// Nothing but the version at its end tells whether this is a request.
fn rest_of_line(method: &[u8], target: &[u8]) -> Option<Kind> {
    let length = target.iter().take_while(|byte| **byte != b'\n').count();
    let line = &target[..length];
    let is_binary =
        || line.iter().any(|byte| byte.is_ascii_control() && !is_white(*byte) && *byte != b'\r');
    // Of such protocols hardly one begins with a word; but there are servers that take such targets.
    if !is_word(method) && is_binary() {
        return Some(Kind::Tcp);
    }
    target.get(length)?;
    let version = line.windows(VERSION.len()).any(|word| word.eq_ignore_ascii_case(VERSION));
    Some(if version { Kind::Http1 } else { Kind::Tcp })
}

/// Whether a word looks like a method.
fn is_word(method: &[u8]) -> bool {
    method.len() > 1 && method.iter().all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(byte))
}

/// White space on a line, to Python's too, which reads heads as Latin-1.
const fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// RFC 9110, section 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Input, its protocol, and the number of bytes after which that is clear.
    const CASES: &[(&[u8], Kind, usize)] = &[
        (b"GET / HTTP/1.1\r\n", Kind::Http1, 4),
        (b"HEAD /a HTTP/1.0\r\n", Kind::Http1, 5),
        (b"OPTIONS * HTTP/1.1\r\n", Kind::Http1, 8),
        (b"CONNECT a:1 HTTP/1.1\r\n", Kind::Http1, 8),
        (b"\r\n\nPOST /x HTTP/1.1\r\n", Kind::Http1, 8),
        (b"GET http://a/ HTTP/1.1\r\n", Kind::Http1, 4),
        (b"GET a\r\n", Kind::Http1, 4),
        (b"GET\x1c/admin\x1cHTTP/1.1\r\n", Kind::Http1, 4),
        (b"\x85GET /admin HTTP/1.1\r\n", Kind::Http1, 5),
        (b"get\t/admin HTTP/1.1\r\n", Kind::Http1, 5),
        (b"GET  /admin HTTP/1.1\r\n", Kind::Http1, 4),
        (b"GET /admin\r\n", Kind::Http1, 4),
        (b"BREW /pot HTTP/1.1\r\n", Kind::Http1, 20),
        (b"BREW /pot\x01 HTTP/1.1\r\n", Kind::Http1, 21),
        (b"BREW-A-VERY-LONG-POT-OF-COFFEE-NOW /pot HTTP/1.1\r\n", Kind::Http1, 50),
        (b" GET / HTTP/1.1\r\n", Kind::Http1, 5),
        (b"PRINT /a HTTP/1.1\n", Kind::Http1, 18),
        (
            b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET /admin HTTP/1.1",
            Kind::Http1,
            38,
        ),
        (PREFACE, Kind::Http2, 24),
        (b"\x16\x03\x01\x02\x00\x01\x00", Kind::Tls, 2),
        (b"\x16\x03\x29\x02\x00\x01\x00", Kind::Tls, 2),
        // Nginx, Python and `openssl s_server` go on to the record behind these, GnuTLS behind the last.
        (b"\x16\x03\x01\x00\x00\x16\x03\x01\x02\x00\x01\x00", Kind::Tls, 2),
        (b"\x14\x03\x03\x00\x00\x16\x03\x01\x02\x00\x01\x00", Kind::Tls, 2),
        (b"\x14\x03\x03\x00\x01\x01\x16\x03\x01\x02\x00\x01\x00", Kind::Tls, 2),
        (b"\x17\x02\x03", Kind::Tcp, 2),
        (b"\x16\x02\x01", Kind::Tcp, 2),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", Kind::Tcp, 32),
        (b"SSH-2.0-libssh\r\n", Kind::Tcp, 15),
        (b"EHLO client.example\r\n", Kind::Tcp, 21),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Kind::Tcp, 1),
        (b"*1\r\n$4\r\nPING\r\n", Kind::Tcp, 3),
        (b"get key\r\n", Kind::Tcp, 9),
        (b"\x10\x0c\x00\x04MQTT", Kind::Tcp, 1),
        (b"\x1f\x8b\x08", Kind::Tcp, 2),
        (b"0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\x00\x80\x00", Kind::Tcp, 3),
        (b"USER nobody\x01\n", Kind::Tcp, 13),
        (b"{\"jsonrpc\":1}", Kind::Tcp, 1),
        (b"PRI * HTTP/2.0\r\n\r\nSX", Kind::Http1, 20),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Kind::Http1, 6),
        (b"PROXYING\r\n", Kind::Tcp, 9),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", Kind::Http1, 12),
        (b"\r\n\r\n\0\r\nQUIET\n", Kind::Tcp, 11),
        (b"<?xml version='1.0'?><stream:stream>", Kind::Tcp, 1),
    ];

    #[test]
    fn it_is_clear_when_it_can_be_and_stays_so() {
        for (bytes, kind, after) in CASES {
            let shown = bytes.escape_ascii();
            for length in 0..=bytes.len() {
                let expected = (length >= *after).then_some(*kind);
                assert_eq!(detect(&bytes[..length]), expected, "{length} bytes of {shown}");
            }
        }
    }

    /// Whether it passes as something else than HTTP, whole or piece by piece.
    fn passes(bytes: &[u8]) -> bool {
        let becomes_request = |size| {
            let mut line = FirstLine::default();
            bytes.chunks(size).any(|piece| line.becomes_request(piece))
        };
        let whole = becomes_request(bytes.len());
        for size in 1..bytes.len() {
            assert_eq!(becomes_request(size), whole, "{}", bytes.escape_ascii());
        }
        let is_http = matches!(detect_whole(bytes), Kind::Http1 | Kind::Http2);
        !is_http && !whole
    }

    #[test]
    fn a_request_is_one_whatever_its_method() {
        for method in [
            &b"(GET)"[..],
            b"G=T",
            b"G\xc3T",
            b"M{}T",
            b"\"GET\"",
            b"\0GET",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\xef\xbb\xbfGET",
            b"<",
            b"\x16\x02",
            b"\x16\x03\x01\x02\x00\x01",
            b"\r\n\r\n\0",
            b"\n {",
        ] {
            for rest in [
                &b" /secret/a HTTP/1.1\r\n"[..],
                b"\t/secret/a\thttp/1.0\n",
                b" /\x01 HTTP/9",
                b"\r/secret/a\rHTTP/1.1\r\n",
                b"\xa0/secret/a\x85HTTP/1.1\n",
            ] {
                let line = [method, rest].concat();
                assert!(!passes(&line), "{}", line.escape_ascii());
            }
        }
        let long = [b"{", &[b'x'; MAX_WATCHED - 100][..]].concat();
        assert!(FirstLine::default().becomes_request(&[&long[..], b" / HTTP/1.1\r\n"].concat()));
    }

    #[test]
    fn what_only_tells_of_requests_passes() {
        for bytes in [
            &b"\x01\x01\0\x01\0\x08\0\0\x0f\x08SERVER_PROTOCOLHTTP/1.1"[..],
            b"24:CONTENT_LENGTH\x000\0SERVER_PROTOCOL\0HTTP/1.1\0,",
            b"\0\x1b\0\0\x0f\0SERVER_PROTOCOL\x08\0HTTP/1.1",
            b"\x124\x01\x0e\x02\x02\0\x08HTTP/1.1\0",
            b"{\"method\": \"GET\", \"version\": \"HTTP/1.1\"}",
            b"EHLO a\r\nDATA\r\nGET / HTTP/1.1\r\n",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n HTTP/1.1\r\n",
        ] {
            assert!(passes(bytes), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn nothing_is_waited_for_without_end_and_in_doubt_it_is_http() {
        for (start, fill) in [
            (&b""[..], b'\r'),
            (b"", b'A'),
            (b"BREW ", b'a'),
            (b"BREW /", b'a'),
            (b"BREW http://a/", b'a'),
            (b"\t", b'\t'),
        ] {
            let mut bytes = start.to_vec();
            bytes.resize(64 * 1024, fill);
            let decided = (0..bytes.len()).find(|length| detect(&bytes[..*length]).is_some());
            assert_eq!(decided, Some(MAX_FIRST_LINE), "{start:?} {fill}");
            assert_eq!(detect(&bytes), Some(Kind::Http1), "{start:?} {fill}");
        }
    }

    #[test]
    fn an_end_ends_the_line() {
        for (bytes, kind) in [
            (&b"hello"[..], Kind::Tcp),
            (b"PING", Kind::Tcp),
            (b"PUBLISH a b", Kind::Tcp),
            (b"\r\n", Kind::Tcp),
            (b"GET", Kind::Http1),
            (b"GET /admin", Kind::Http1),
            (b"BREW /admin HTTP/1.0", Kind::Http1),
            (b"PRI * HTTP/2.0\r\n", Kind::Http1),
        ] {
            assert_eq!(detect_whole(bytes), kind, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_server_that_begins_http_is_told_from_one_that_greets() {
        let settings = b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        for length in 0..9 {
            assert_eq!(is_http_server(&settings[..length]), None, "{length}");
        }
        assert_eq!(is_http_server(settings), Some(true));
        assert_eq!(is_http_server(b"HTTP/1.1 408 Request Timeout\r\n"), Some(true));
        assert_eq!(is_http_server(b"HTT"), None);
        for greeting in [
            &b"220 mail.example ESMTP"[..],
            b"SSH-2.0-OpenSSH_9.2p1",
            b"J\0\0\0\n8.0.36\0",
            b"* OK IMAP4rev1",
            b"RFB 003.008\n",
            b"> ",
            b"\xff\xfd\x18",
        ] {
            assert_eq!(is_http_server(greeting), Some(false), "{}", greeting.escape_ascii());
        }
    }
}
