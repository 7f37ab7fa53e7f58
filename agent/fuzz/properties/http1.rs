//! HTTP/1: whatever is read as a request is read in one way, however its bytes are dealt, by a
//! second reader, and from what is passed on.

use isthmus_http::h1::probe::{ReadRequest, Reading, read_again, read_requests};

/// `input` is what a client sends. Says whether there is a request in it, and nothing else.
pub(crate) fn hold(input: &[u8]) -> bool {
    let reading = read_requests([input]);
    is_read_alike_in_pieces(input, &reading);
    let mut begin = 0;
    for request in &reading.requests {
        let second = second_reading(&input[begin..]);
        let (method, target, body, length) = second.expect("a strict reader reads it, too");
        assert_eq!((method, length), (request.method.as_bytes(), request.end - begin));
        assert_eq!(body, request.body, "the bodies differ");
        if target.starts_with(b"/") && !target.contains(&b'#') {
            assert_eq!(target, request.target.as_bytes());
        }
        is_passed_on_unchanged(request);
        begin = request.end;
    }
    !reading.refused && !reading.requests.is_empty() && begin == input.len()
}

/// Byte by byte, and in two pieces cut at many places.
fn is_read_alike_in_pieces(input: &[u8], reading: &Reading) {
    assert_eq!(meaning(&read_requests(input.chunks(1))), meaning(reading), "byte by byte");
    for at in (0..input.len()).step_by(1 + input.len() / 64) {
        let (one, other) = input.split_at(at);
        assert_eq!(meaning(&read_requests([one, other])), meaning(reading), "cut at {at}");
    }
}

type Meaning<'a> = (&'a str, &'a str, &'a [u8], usize);

/// A reading, but for how chunks are passed on, which is as they come.
fn meaning(reading: &Reading) -> (Vec<Meaning<'_>>, bool) {
    let requests = reading.requests.iter().map(|it| {
        let (method, target) = (it.method.as_str(), it.target.as_str());
        (method, target, it.body.as_slice(), it.end)
    });
    (requests.collect(), reading.refused)
}

/// Who reads what is passed on reads the same, once, and to its last byte.
fn is_passed_on_unchanged(request: &ReadRequest) {
    let again = read_again([&request.rewritten[..]]);
    let [read] = &again.requests[..] else { panic!("{again:?}") };
    assert!(!again.refused && read.end == request.rewritten.len(), "{again:?}");
    assert_eq!((&read.method, &read.body), (&request.method, &request.body));
    let second = second_reading(&request.rewritten).expect("a strict reader reads it, too");
    assert_eq!((second.2, second.3), (request.body.clone(), request.rewritten.len()));
}

/// Method, target, body and length.
type Second<'a> = (&'a [u8], &'a [u8], Vec<u8>, usize);

/// The request that bytes begin with, as RFC 9112 has it, by
/// somebody who refuses what isn't clear. None if there isn't a whole one.
fn second_reading(bytes: &[u8]) -> Option<Second<'_>> {
    let mut begin = 0;
    while bytes[begin..].starts_with(b"\r\n") {
        begin += 2;
    }
    let head = begin + find(&bytes[begin..], b"\r\n\r\n")? + 4;
    let text = &bytes[begin..head - 4];
    let mut lines = split(text, b"\r\n").into_iter();
    let words: Vec<&[u8]> = lines.next()?.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1" | b"HTTP/1.0"] = words[..] else { return None };
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return None;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (line[..colon].to_ascii_lowercase(), line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        match &name[..] {
            b"content-length" if length.is_some() || chunked => return None,
            b"content-length" => length = Some(number(value, 10)?),
            b"transfer-encoding" if length.is_some() || chunked => return None,
            b"transfer-encoding" => {
                chunked = value.eq_ignore_ascii_case(b"chunked").then_some(true)?;
            }
            _ => {}
        }
    }
    if !chunked {
        let end = head.checked_add(length.unwrap_or(0))?;
        return Some((method, target, bytes.get(head..end)?.to_vec(), end));
    }
    let (mut body, mut at) = (Vec::new(), head);
    loop {
        let line = at + find(&bytes[at..], b"\r\n")?;
        let size = bytes[at..line].split(|byte| matches!(byte, b';' | b' ' | b'\t')).next()?;
        let size = number(size, 16)?;
        at = line + 2;
        if size == 0 {
            let rest = &bytes[line..];
            let end = line + find(rest, b"\r\n\r\n")? + 4;
            return Some((method, target, body, end));
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

fn number(digits: &[u8], radix: u32) -> Option<usize> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.is_empty() || !text.bytes().all(|byte| char::from(byte).is_digit(radix)) {
        return None;
    }
    usize::from_str_radix(text, radix).ok()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn split<'a>(mut bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = find(bytes, by) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + by.len()..];
    }
    parts.push(bytes);
    parts
}
