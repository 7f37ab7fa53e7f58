//! HTTP/1, HTTP/2, TLS, or none of them?
//!
//! The answer is a function of the bytes so far, and more bytes never change it. What an application
//! might read as HTTP must not pass as something else, or it would pass unjudged; so in doubt it is
//! HTTP, and a request that isn't proper is refused where requests are read.

/// What a connection carries.
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

/// A first line that is longer is decided by what stands in it so far.
pub const MAX_FIRST_LINE: usize = 8 * 1024;

/// Servers skip empty lines before a request.
const MAX_EMPTY: usize = 16;
const MAX_METHOD: usize = 32;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// What the first bytes of a client are. None while more of them could tell.
#[must_use]
pub fn detect(bytes: &[u8]) -> Option<Kind> {
    match bytes.first()? {
        0x16 => handshake(bytes),
        _ if bytes.starts_with(PREFACE) => Some(Kind::Http2),
        _ if PREFACE.starts_with(bytes) => None,
        _ => request_line(bytes),
    }
}

/// A TLS record with the beginning of a ClientHello (RFC 8446, section 5.1).
fn handshake(bytes: &[u8]) -> Option<Kind> {
    const FITS: [fn(u8) -> bool; 6] = [
        |kind| kind == 0x16,
        |major| major == 3,
        // Whatever it says is to be ignored.
        |_| true,
        |_| true,
        |_| true,
        |message| message == 1,
    ];
    if !FITS.iter().zip(bytes).all(|(fits, byte)| fits(*byte)) {
        return Some(Kind::Tcp);
    }
    (bytes.len() >= FITS.len()).then_some(Kind::Tls)
}

fn request_line(bytes: &[u8]) -> Option<Kind> {
    let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if empty > MAX_EMPTY {
        return Some(Kind::Tcp);
    }
    let line = &bytes[empty..];
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    let (method, rest) = line.split_at(method);
    if method.len() > MAX_METHOD {
        return Some(Kind::Tcp);
    }
    // Lenient servers take other white space for a space, and lines may begin with it.
    let [space, target @ ..] = rest else { return None };
    if !matches!(space, b' ' | b'\t' | 0x0b | 0x0c) {
        return Some(Kind::Tcp);
    }
    let is_method = METHODS.iter().any(|known| method.eq_ignore_ascii_case(known.as_bytes()));
    match target.first() {
        Some(b'/' | b'*') if is_method => Some(Kind::Http1),
        _ if method.eq_ignore_ascii_case(b"CONNECT") => Some(Kind::Http1),
        _ => rest_of_line(target),
    }
}

/// Nothing but the version at its end tells whether this is a request.
fn rest_of_line(target: &[u8]) -> Option<Kind> {
    let line = target.iter().take(MAX_FIRST_LINE).take_while(|byte| **byte != b'\n');
    let length = line.count();
    let line = &target[..length];
    let is_binary =
        line.iter().any(|byte| byte.is_ascii_control() && !b"\t\r\x0b\x0c".contains(byte));
    if is_binary {
        return Some(Kind::Tcp);
    }
    if length == MAX_FIRST_LINE {
        return Some(if target.trim_ascii_start().starts_with(b"/") {
            Kind::Http1
        } else {
            Kind::Tcp
        });
    }
    target.get(length)?;
    let version = line.windows(5).any(|word| word.eq_ignore_ascii_case(b"HTTP/"));
    Some(if version { Kind::Http1 } else { Kind::Tcp })
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

    /// What comes, what it is, and after how many bytes that is clear.
    const CASES: &[(&[u8], Kind, usize)] = &[
        (b"GET / HTTP/1.1\r\n", Kind::Http1, 5),
        (b"HEAD /a HTTP/1.0\r\n", Kind::Http1, 6),
        (b"OPTIONS * HTTP/1.1\r\n", Kind::Http1, 9),
        (b"CONNECT a:1 HTTP/1.1\r\n", Kind::Http1, 8),
        (b"\r\n\nPOST /x HTTP/1.1\r\n", Kind::Http1, 9),
        (b"GET http://a/ HTTP/1.1\r\n", Kind::Http1, 24),
        (b"get\t/admin HTTP/1.1\r\n", Kind::Http1, 5),
        (b"GET  /admin HTTP/1.1\r\n", Kind::Http1, 22),
        (b"GET /admin\r\n", Kind::Http1, 5),
        (b"BREW /pot HTTP/1.1\r\n", Kind::Http1, 20),
        (b" GET / HTTP/1.1\r\n", Kind::Http1, 17),
        (b"PRINT /a HTTP/1.1\n", Kind::Http1, 18),
        (PREFACE, Kind::Http2, 24),
        (b"\x16\x03\x01\x02\x00\x01\x00", Kind::Tls, 6),
        (b"\x16\x03\x29\x02\x00\x01\x00", Kind::Tls, 6),
        (b"\x16\x03\x03\x02\x00\x02", Kind::Tcp, 6),
        (b"\x16\x02\x01", Kind::Tcp, 2),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", Kind::Tcp, 32),
        (b"SSH-2.0-libssh\r\n", Kind::Tcp, 15),
        (b"EHLO client.example\r\n", Kind::Tcp, 21),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Kind::Tcp, 1),
        (b"*1\r\n$4\r\nPING\r\n", Kind::Tcp, 3),
        (b"get key\r\n", Kind::Tcp, 9),
        (b"\x10\x0c\x00\x04MQTT", Kind::Tcp, 1),
        (b"USER nobody\x01\n", Kind::Tcp, 12),
        (b"{\"jsonrpc\":1}", Kind::Tcp, 1),
        (b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r", Kind::Tcp, 17),
        (b"PRI * HTTP/2.0\r\n\r\nSX", Kind::Http1, 20),
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

    #[test]
    fn nothing_is_waited_for_without_end() {
        let long = |start: &[u8], fill: u8| {
            let mut bytes = start.to_vec();
            bytes.resize(64 * 1024, fill);
            (0..bytes.len()).find(|length| detect(&bytes[..*length]).is_some())
        };
        for (start, fill) in
            [(&b""[..], b'\r'), (b"", b'A'), (b"BREW ", b'a'), (b"BREW /", b'a'), (b"\t", b'\t')]
        {
            let decided = long(start, fill).unwrap();
            assert!(decided < MAX_FIRST_LINE + 64, "{start:?} {fill}: {decided}");
        }
        assert_eq!(detect(&[b"BREW /".to_vec(), vec![b'a'; 9000]].concat()), Some(Kind::Http1));
    }
}
