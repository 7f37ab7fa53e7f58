//! By HTTP/2, towards a backend that speaks HTTP/1.1.

use super::Fate::{Passes, Refused, RefusedOr};
use super::frames::*;
use super::{Fate, Lab, expect_none};
use crate::tests::support::*;

type Pair = (&'static [u8], &'static [u8]);

const GET: &str = "GET /x HTTP/1.1";
const POST: &str = "POST /x HTTP/1.1";

const METHOD: Pair = (b":method", b"GET");
const SCHEME: Pair = (b":scheme", b"http");
const PATH: Pair = (b":path", b"/x");
const AUTHORITY: Pair = (b":authority", b"web");

fn block(pairs: &[Pair]) -> Vec<u8> {
    pairs.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A whole request in one frame.
fn whole(pairs: &[Pair]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(pairs))
}

/// `GET /x` with more fields behind.
fn with(more: &[Pair]) -> Vec<u8> {
    whole(&[&[METHOD, SCHEME, PATH, AUTHORITY], more].concat())
}

/// `POST /x` with more fields and a body.
fn post(more: &[Pair], body: &[u8]) -> Vec<u8> {
    let pairs = [&[(&b":method"[..], &b"POST"[..]), SCHEME, PATH, AUTHORITY], more].concat();
    let mut frames = frame(HEADERS, END_HEADERS, 1, &block(&pairs));
    frames.extend(frame(DATA, END_STREAM, 1, body));
    frames
}

fn cases() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let mut cases = pseudo();
    cases.extend(connection());
    cases.extend(injected());
    cases.extend(bodies());
    cases.extend(frames());
    cases
}

fn pseudo() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let x: Pair = (b"x", b"1");
    vec![
        ("plain", with(&[]), Passes(GET, "")),
        ("no method", whole(&[SCHEME, PATH, AUTHORITY]), Refused),
        ("no scheme", whole(&[METHOD, PATH, AUTHORITY]), Refused),
        ("no path", whole(&[METHOD, SCHEME, AUTHORITY]), Refused),
        ("no authority and no host", whole(&[METHOD, SCHEME, PATH]), Refused),
        (
            "a host for an authority",
            whole(&[METHOD, SCHEME, PATH, (b"host", b"web")]),
            Passes(GET, ""),
        ),
        ("another host", with(&[(b"host", b"other")]), Refused),
        ("the same host in capitals", with(&[(b"host", b"WEB.")]), Passes(GET, "")),
        ("another scheme", whole(&[METHOD, (b":scheme", b"ftp"), PATH, AUTHORITY]), Refused),
        (
            "https, which TLS before us ended",
            whole(&[METHOD, (b":scheme", b"https"), PATH, AUTHORITY]),
            Passes(GET, ""),
        ),
        ("two hosts", whole(&[METHOD, SCHEME, PATH, (b"host", b"a"), (b"host", b"b")]), Refused),
        ("two methods", whole(&[METHOD, (b":method", b"POST"), SCHEME, PATH, AUTHORITY]), Refused),
        ("two paths", whole(&[METHOD, SCHEME, PATH, (b":path", b"/admin"), AUTHORITY]), Refused),
        ("two schemes", whole(&[METHOD, SCHEME, SCHEME, PATH, AUTHORITY]), Refused),
        (
            "two authorities",
            whole(&[METHOD, SCHEME, PATH, AUTHORITY, (b":authority", b"b")]),
            Refused,
        ),
        ("a path behind a field", whole(&[METHOD, SCHEME, AUTHORITY, x, PATH]), Refused),
        ("an authority behind a field", whole(&[METHOD, SCHEME, PATH, x, AUTHORITY]), Refused),
        ("a status", whole(&[METHOD, SCHEME, PATH, AUTHORITY, (b":status", b"200")]), Refused),
        ("an unknown one", whole(&[METHOD, SCHEME, PATH, AUTHORITY, (b":x", b"1")]), Refused),
        ("an empty path", whole(&[METHOD, SCHEME, (b":path", b""), AUTHORITY]), Refused),
        ("a query for a path", whole(&[METHOD, SCHEME, (b":path", b"?x"), AUTHORITY]), Refused),
        ("a path without a slash", whole(&[METHOD, SCHEME, (b":path", b"x"), AUTHORITY]), Refused),
        (
            "a whole URI for a path",
            whole(&[METHOD, SCHEME, (b":path", b"http://web/admin"), AUTHORITY]),
            Refused,
        ),
        ("a star for a path", whole(&[METHOD, SCHEME, (b":path", b"*"), AUTHORITY]), Refused),
        ("CONNECT", whole(&[(b":method", b"CONNECT"), AUTHORITY]), Refused),
        (
            "CONNECT with a path",
            whole(&[(b":method", b"CONNECT"), SCHEME, PATH, AUTHORITY]),
            Refused,
        ),
        (
            "extended CONNECT",
            whole(&[
                (b":method", b"CONNECT"),
                (b":protocol", b"websocket"),
                SCHEME,
                PATH,
                AUTHORITY,
            ]),
            Refused,
        ),
        ("a name in capitals", with(&[(b"X-Y", b"1")]), Refused),
        ("an empty name", with(&[(b"", b"1")]), Refused),
        ("a name with a colon", with(&[(b"x:y", b"1")]), Refused),
        ("a name with a blank", with(&[(b"x y", b"1")]), Refused),
    ]
}

/// What only HTTP/1 has (RFC 9113, section 8.2.2).
fn connection() -> Vec<(&'static str, Vec<u8>, Fate)> {
    vec![
        ("connection", with(&[(b"connection", b"close")]), RefusedOr(GET, "")),
        ("keep-alive", with(&[(b"keep-alive", b"timeout=5")]), RefusedOr(GET, "")),
        ("proxy-connection", with(&[(b"proxy-connection", b"close")]), RefusedOr(GET, "")),
        ("upgrade", with(&[(b"upgrade", b"websocket")]), RefusedOr(GET, "")),
        (
            "transfer-encoding",
            post(
                &[(b"transfer-encoding", b"chunked")],
                b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: web\r\n\r\n",
            ),
            Refused,
        ),
        ("te other than trailers", with(&[(b"te", b"gzip")]), RefusedOr(GET, "")),
        ("te: trailers", with(&[(b"te", b"trailers")]), Passes(GET, "")),
        ("http2-settings", with(&[(b"http2-settings", b"AAMAAABkAAQAAP__")]), RefusedOr(GET, "")),
    ]
}

/// What would be another line, or another request, by HTTP/1.
fn injected() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let path = |path: &'static [u8]| whole(&[METHOD, SCHEME, (b":path", path), AUTHORITY]);
    let method = |name: &'static [u8]| whole(&[(b":method", name), SCHEME, PATH, AUTHORITY]);
    let host = |name: &'static [u8]| whole(&[METHOD, SCHEME, PATH, (b":authority", name)]);
    let scheme = |name: &'static [u8]| whole(&[METHOD, (b":scheme", name), PATH, AUTHORITY]);
    vec![
        ("CR LF in a value", with(&[(b"x", b"a\r\nY: b")]), Refused),
        (
            "a request in a value",
            with(&[(b"x", b"a\r\n\r\nGET /admin HTTP/1.1\r\nHost: web\r\n\r\n")]),
            Refused,
        ),
        ("LF in a value", with(&[(b"x", b"a\nY: b")]), Refused),
        ("CR in a value", with(&[(b"x", b"a\rY: b")]), Refused),
        ("NUL in a value", with(&[(b"x", b"a\0b")]), Refused),
        ("CR LF in a name", with(&[(b"x: a\r\ny", b"b")]), Refused),
        ("LF in a name", with(&[(b"x\ny", b"b")]), Refused),
        ("NUL in a name", with(&[(b"x\0y", b"b")]), Refused),
        ("a coding in a name", with(&[(b"transfer-encoding: chunked\r\nx", b"b")]), Refused),
        ("CR LF in a path", path(b"/x HTTP/1.1\r\nHost: web\r\n\r\nGET /admin"), Refused),
        ("a blank in a path", path(b"/x HTTP/1.1"), Refused),
        ("LF in a path", path(b"/x\n"), Refused),
        ("NUL in a path", path(b"/x\0"), Refused),
        ("a tab in a path", path(b"/x\ty"), Refused),
        ("a fragment in a path", path(b"/x#y"), RefusedOr(GET, "")),
        ("CR LF in a method", method(b"GET /admin HTTP/1.1\r\nX:"), Refused),
        ("a blank in a method", method(b"GET /admin"), Refused),
        ("an empty method", method(b""), Refused),
        ("CR LF in an authority", host(b"web\r\nX: y"), Refused),
        ("a blank in an authority", host(b"web other"), Refused),
        ("a user in an authority", host(b"u@web"), Refused),
        ("a path in an authority", host(b"web/admin"), Refused),
        ("an empty authority", host(b""), Refused),
        ("CR LF in a scheme", scheme(b"http\r\nX: y"), Refused),
        ("a target in a scheme", scheme(b"http://web/admin?"), Refused),
        ("blanks around a value", with(&[(b"x", b" a ")]), RefusedOr(GET, "")),
        ("a length in a cookie", with(&[(b"cookie", b"a\r\ncontent-length: 9")]), Refused),
    ]
}

fn bodies() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let admin = b"GET /admin HTTP/1.1\r\nHost: web\r\n\r\n";
    let mut late =
        frame(HEADERS, END_HEADERS, 1, &block(&[(b":method", b"POST"), SCHEME, PATH, AUTHORITY]));
    late.extend(frame(DATA, 0, 1, b"hi"));
    let trailing = |pairs: &[Pair]| {
        let mut frames = late.clone();
        frames.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(pairs)));
        frames
    };
    vec![
        ("a body", post(&[], b"hi"), Passes(POST, "hi")),
        ("a body with its length", post(&[(b"content-length", b"2")], b"hi"), Passes(POST, "hi")),
        ("a body that is longer", post(&[(b"content-length", b"0")], admin), Refused),
        ("a body that is shorter", post(&[(b"content-length", b"9")], b"hi"), Refused),
        (
            "two lengths",
            post(&[(b"content-length", b"2"), (b"content-length", b"34")], b"hi"),
            Refused,
        ),
        ("a length that is none", post(&[(b"content-length", b"+2")], b"hi"), Refused),
        ("a length list", post(&[(b"content-length", b"2, 2")], b"hi"), Refused),
        ("trailers", trailing(&[(b"x-sum", b"1")]), Passes(POST, "hi")),
        ("a path in the trailers", trailing(&[(b":path", b"/admin")]), RefusedOr(POST, "hi")),
        (
            "CR LF in the trailers",
            trailing(&[(b"x-sum", b"1\r\n\r\nGET /admin HTTP/1.1")]),
            Refused,
        ),
        (
            "a coding in the trailers",
            trailing(&[(b"transfer-encoding", b"chunked")]),
            RefusedOr(POST, "hi"),
        ),
        ("a length in the trailers", trailing(&[(b"content-length", b"9")]), RefusedOr(POST, "hi")),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let all = block(&[METHOD, SCHEME, PATH, AUTHORITY]);
    let (first, rest) = all.split_at(10);
    let split =
        [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat();
    let interleaved = [
        frame(HEADERS, END_STREAM, 1, first),
        frame(DATA, 0, 1, b"hi"),
        frame(CONTINUATION, END_HEADERS, 1, rest),
    ]
    .concat();
    let other =
        [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 3, rest)].concat();
    vec![
        ("a head in two frames", split, Passes(GET, "")),
        ("a body within a head", interleaved, Refused),
        ("a head over two streams", other, Refused),
        ("a stream of the server's", frame(HEADERS, END_STREAM | END_HEADERS, 2, &all), Refused),
        ("a head on no stream", frame(HEADERS, END_STREAM | END_HEADERS, 0, &all), Refused),
        ("a body on no stream", frame(DATA, END_STREAM, 1, b"hi"), Refused),
        (
            "a bad index",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0xff, 0x7f]),
            Refused,
        ),
        ("index 0", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]), Refused),
        (
            "a length beyond the block",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0, 9, b'x']),
            Refused,
        ),
    ]
}

#[tokio::test]
async fn frames_that_make_no_request_reach_no_backend() {
    let lab = Lab::start().await;
    let cases = cases();
    assert!(cases.len() > 80, "{}", cases.len());
    let mut wrong = Vec::new();
    for (case, frames, fate) in cases {
        let came = converse(lab.proxy.connect(API).await, &frames).await;
        let judged = lab.judge(fate, came == Came::Success).await;
        wrong.extend(judged.err().map(|why| format!("{case}: {why}")));
    }
    expect_none(&wrong);
}
