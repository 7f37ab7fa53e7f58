//! The server name in a ClientHello (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! ```text
//!  record     22 | version (2) | length (2) | a part of a handshake message …
//!  handshake   1 | length (3) | version (2) | random (32) | session <1> | ciphers <2>
//!                | compressions <1> | extensions <2> of: kind (2) | body <2>
//!  kind 0      list <2> of: type (1), 0 for a host's name | name <2>
//! ```
//!
//! `<n>` is a length of n bytes, and as many bytes.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use isthmus_host::canonical;

/// More is not waited for: post-quantum key shares make a few kilobytes.
pub const MAX_HELLO: usize = 32 * 1024;

const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
const MAX_FRAGMENT: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// The name of the server that a client wants, in lower case. Letters, digits, `-`, `_` and `.` only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerName(Arc<str>);

/// Result of reading a TLS client's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// It wants this server, or doesn't say.
    Wants(Option<ServerName>),
    /// It is no ClientHello, or one that two programs could read in two ways.
    Malformed,
}

/// Reads the server's name from the first bytes of a client.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(Some(message)) => server_name(&message).map_or(Hello::Malformed, Hello::Wants),
        Ok(None) if bytes.len() < MAX_HELLO => Hello::Incomplete,
        Ok(None) | Err(Broken) => Hello::Malformed,
    }
}

struct Broken;

/// The handshake message without its header, put together from its records. None while it isn't all
/// there.
fn message(mut bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Broken> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        if let Some(length) = length_of(&message)? {
            if message.len() > length + 4 {
                return Err(Broken);
            }
            if message.len() == length + 4 {
                return Ok(Some(match message {
                    Cow::Borrowed(whole) => Cow::Borrowed(&whole[4..]),
                    Cow::Owned(mut whole) => Cow::Owned(whole.split_off(4)),
                }));
            }
        }
        let Some((fragment, rest)) = record(bytes)? else { return Ok(None) };
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        bytes = rest;
    }
}

/// Length in a handshake message's header, once that is there.
fn length_of(message: &[u8]) -> Result<Option<usize>, Broken> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Broken);
    }
    let [_, high, middle, low, ..] = message else { return Ok(None) };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    if length < MAX_HELLO { Ok(Some(length)) } else { Err(Broken) }
}

/// A record's fragment, and what comes behind it.
type Record<'a> = (&'a [u8], &'a [u8]);

fn record(bytes: &[u8]) -> Result<Option<Record<'_>>, Broken> {
    let kind = bytes.first().is_none_or(|kind| *kind == HANDSHAKE);
    let major = bytes.get(1).is_none_or(|major| *major == 3);
    if !kind || !major {
        return Err(Broken);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_FRAGMENT {
        return Err(Broken);
    }
    Ok(rest.split_at_checked(length))
}

/// None if the message is malformed, or says it twice.
fn server_name(message: &[u8]) -> Option<Option<ServerName>> {
    let mut reader = Reader(message);
    let _version_and_random = reader.take(34)?;
    let session = reader.short()?;
    let ciphers = reader.long()?;
    let compressions = reader.short()?;
    if session.0.len() > 32 || ciphers.0.len() < 2 || compressions.0.is_empty() {
        return None;
    }
    if reader.0.is_empty() {
        return Some(None);
    }
    let mut extensions = reader.long()?;
    if !reader.0.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let body = extensions.long()?;
        if kind == SERVER_NAME {
            let found = host_name(body)?;
            if name.replace(found).is_some() {
                return None;
            }
        }
    }
    Some(name)
}

/// The only name of the list; what else it could hold was never defined.
fn host_name(mut body: Reader<'_>) -> Option<ServerName> {
    let mut list = body.long()?;
    let kind = list.take(1)?;
    let name = list.long()?;
    let is_all = body.0.is_empty() && list.0.is_empty() && *kind == [HOST_NAME];
    if is_all { ServerName::new(name.0) } else { None }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn short(&mut self) -> Option<Self> {
        let length = self.take(1)?[0];
        self.take(length.into()).map(Self)
    }

    fn long(&mut self) -> Option<Self> {
        let length = self.number()?;
        self.take(length.into()).map(Self)
    }
}

impl ServerName {
    fn new(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        // Names end without a dot here (RFC 6066, section 3), and addresses are none.
        let form = canonical(name).ok().filter(|form| form.len() == name.len());
        form.filter(|form| !form.starts_with('[')).map(|form| Self((*form).into()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn long(body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&length, body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &long(body)].concat()
    }

    pub(crate) fn name(name: &str) -> Vec<u8> {
        let entry = [&[HOST_NAME][..], &long(name.as_bytes())].concat();
        extension(SERVER_NAME, &long(&entry))
    }

    /// A handshake message.
    pub(crate) fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[0], &long(&[0x13, 1]), &[1, 0]].concat();
        if !extensions.is_empty() {
            body.extend(long(&extensions.concat()));
        }
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO][..], &length[1..], &body].concat()
    }

    /// In records of at most `size` bytes.
    pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &long(part)].concat();
        message.chunks(size).flat_map(record).collect()
    }

    fn wants(name: &str) -> Hello {
        Hello::Wants(Some(ServerName(name.into())))
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let message =
            hello(&[extension(43, &[2, 3, 4]), name("API.Example.com"), extension(21, &[0; 600])]);
        for size in [1, 2, 3, 5, 100, 16_000] {
            let bytes = records(&message, size);
            for length in 0..bytes.len() {
                assert_eq!(client_hello(&bytes[..length]), Hello::Incomplete, "{size}: {length}");
            }
            assert_eq!(client_hello(&bytes), wants("api.example.com"));
            // What comes behind it (early data) is none of our business.
            assert_eq!(client_hello(&[&bytes[..], b"\x17\x03"].concat()), wants("api.example.com"));
        }
    }

    #[test]
    fn a_client_may_not_say_it() {
        for extensions in [vec![], vec![extension(43, &[2, 3, 4])]] {
            assert_eq!(client_hello(&records(&hello(&extensions), 999)), Hello::Wants(None));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let malformed = |message: &[u8]| client_hello(&records(message, 9999)) == Hello::Malformed;
        assert!(malformed(&hello(&[name("a"), name("b")])));
        assert!(malformed(&hello(&[extension(0, &[])])));
        let two = [&[0][..], &long(b"a"), &[0], &long(b"b")].concat();
        assert!(malformed(&hello(&[extension(0, &long(&two))])));
        for bad in ["", ".", "a..b", ".a", "a.", "a b", "a\0", "ä", "a/b", &"a".repeat(254)] {
            assert!(malformed(&hello(&[name(bad)])), "{bad:?}");
        }
        let behind = [hello(&[name("a")]), vec![1]].concat();
        assert!(malformed(&behind));
        let mut short = hello(&[name("a")]);
        short.pop();
        short[3] -= 1;
        assert!(malformed(&short));
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"\x15",
            b"\x16\x02",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\0\x01\x02",
        ] {
            assert_eq!(client_hello(bytes), Hello::Malformed, "{bytes:?}");
        }
    }

    #[test]
    fn a_hello_without_end_is_not_waited_for() {
        let endless =
            |length: u8| records(&[&[1, 0, length, 0][..], &[0; 40_000]].concat(), 10_000);
        assert_eq!(client_hello(&endless(0xff)), Hello::Malformed);
        let slow = [0x16, 3, 1, 0, 1, 1].repeat(6000);
        assert_eq!(client_hello(&slow), Hello::Malformed);
    }
}
