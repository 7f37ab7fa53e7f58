//! By HTTP/1.1.

use tokio::time::timeout;

use super::Fate::{Passes, Refused, RefusedOr};
use super::{Fate, Lab, expect_none};
use crate::tests::support::*;

const X: &str = "POST /x HTTP/1.1";
const GET: &str = "GET /x HTTP/1.1";

/// What comes behind a request's head or body, for a backend that ends the body elsewhere.
const ADMIN: &str = "GET /admin HTTP/1.1\r\nHost: web\r\n\r\n";

/// `POST /x` with these lines, then what follows.
fn post(lines: &str, rest: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{lines}\r\n{rest}")
}

fn get(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{lines}\r\n")
}

/// With a field that is said to be for this hop only.
fn nominated(name: &str, value: &str) -> String {
    get(&format!("{name}: {value}\r\n")).replace("close", &format!("close, {name}"))
}

/// What a client sends, and what has to become of it.
fn cases() -> Vec<(&'static str, String, Fate)> {
    let mut cases = lengths();
    cases.extend(codings());
    cases.extend(chunks());
    cases.extend(lines());
    cases.extend(heads());
    cases
}

fn lengths() -> Vec<(&'static str, String, Fate)> {
    let two = "Content-Length: 2\r\n";
    vec![
        ("a length", post(two, "hi"), Passes(X, "hi")),
        ("no body", post("Content-Length: 0\r\n", ""), Passes(X, "")),
        ("CL.CL, differing", post("Content-Length: 2\r\nContent-Length: 30\r\n", "hi"), Refused),
        ("CL.CL, 0 first", post("Content-Length: 0\r\nContent-Length: 34\r\n", ADMIN), Refused),
        ("CL.CL, in one line", post("Content-Length: 2, 30\r\n", "hi"), Refused),
        ("CL.CL, the same", post(&format!("{two}{two}"), "hi"), RefusedOr(X, "hi")),
        ("CL.CL, the same in one line", post("Content-Length: 2, 2\r\n", "hi"), RefusedOr(X, "hi")),
        ("CL with a sign", post("Content-Length: +2\r\n", "hi"), Refused),
        ("CL below zero", post("Content-Length: -2\r\n", "hi"), Refused),
        ("CL in hexadecimal", post("Content-Length: 0x2\r\n", "hi"), Refused),
        ("CL with an exponent", post("Content-Length: 2e0\r\n", "hi"), Refused),
        ("CL with a point", post("Content-Length: 2.0\r\n", "hi"), Refused),
        ("CL empty", post("Content-Length: \r\n", "hi"), Refused),
        ("CL with a blank within", post("Content-Length: 2 2\r\n", "hi"), Refused),
        ("CL beyond 64 bits", post("Content-Length: 18446744073709551618\r\n", "hi"), Refused),
        ("CL in other digits", post("Content-Length: \u{662}\r\n", "hi"), Refused),
        ("CL with NUL", post("Content-Length: 2\0\r\n", "hi"), Refused),
        ("CL with a vertical tab", post("Content-Length: \x0b2\r\n", "hi"), Refused),
        ("CL with leading zeros", post("Content-Length: 0002\r\n", "hi"), RefusedOr(X, "hi")),
        ("a blank before the colon", post("Content-Length : 2\r\n", "hi"), Refused),
        ("a tab before the colon", post("Content-Length\t: 2\r\n", "hi"), Refused),
        ("a GET with a body", format!("{}hi", get(two)), Passes(GET, "hi")),
        ("a request in the body", post("Content-Length: 34\r\n", ADMIN), Passes(X, ADMIN)),
    ]
}

fn codings() -> Vec<(&'static str, String, Fate)> {
    let zero = format!("0\r\n\r\n{ADMIN}");
    let te = |value: &str| format!("Transfer-Encoding:{value}\r\n");
    let whole = "2\r\nhi\r\n0\r\n\r\n";
    let both = |te: &str| format!("Content-Length: 2\r\nTransfer-Encoding:{te}\r\n");
    vec![
        ("chunked", post(&te(" chunked"), whole), Passes(X, "hi")),
        ("chunked in capitals", post(&te(" Chunked"), whole), RefusedOr(X, "hi")),
        (
            "CL.TE",
            post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", &zero),
            RefusedOr(X, ""),
        ),
        (
            "TE.CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", &zero),
            RefusedOr(X, ""),
        ),
        ("CL.TE, TE unknown", post(&both(" xchunked"), "hi"), Refused),
        ("CL.TE, TE identity", post(&both(" identity"), "hi"), Refused),
        ("CL.TE, TE empty", post(&both(""), "hi"), Refused),
        ("CL.TE, TE with a vertical tab", post(&both("\x0bchunked"), &zero), Refused),
        ("CL.TE, TE with a quote", post(&both(" \"chunked\""), &zero), Refused),
        ("CL.TE, TE with a parameter", post(&both(" chunked;q=1"), &zero), Refused),
        ("CL.TE, TE with NUL", post(&both(" chunked\0"), &zero), Refused),
        (
            "CL.TE, blank before the colon",
            post("Content-Length: 2\r\nTransfer-Encoding : chunked\r\n", "hi"),
            Refused,
        ),
        (
            "CL.TE, TE in a folded line",
            post("Content-Length: 2\r\nTransfer-Encoding:\r\n chunked\r\n", "hi"),
            Refused,
        ),
        (
            "CL.TE, folded into another field",
            post("Content-Length: 2\r\nX: a\r\n Transfer-Encoding: chunked\r\n", "hi"),
            Refused,
        ),
        ("TE.TE", post(&format!("{}{}", te(" chunked"), te(" x")), &zero), Refused),
        (
            "TE.TE, the other first",
            post(&format!("{}{}", te(" x"), te(" chunked")), &zero),
            Refused,
        ),
        (
            "TE.TE, twice chunked",
            post(&format!("{}{}", te(" chunked"), te(" chunked")), &zero),
            Refused,
        ),
        (
            "TE.TE, identity",
            post(&format!("{}{}", te(" chunked"), te(" identity")), &zero),
            Refused,
        ),
        ("TE.TE, in one line", post(&te(" chunked, identity"), &zero), Refused),
        ("TE.TE, twice in one line", post(&te(" chunked, chunked"), &zero), Refused),
        ("TE.TE, gzip first", post(&te(" gzip, chunked"), &zero), Refused),
        ("TE.TE, commas only", post(&te(" ,chunked,"), whole), RefusedOr(X, "hi")),
        (
            "a coding by HTTP/1.0",
            post(&te(" chunked"), &zero)
                .replace("HTTP/1.1\r\nHost: web\r\nConn", "HTTP/1.0\r\nHost: web\r\nConn"),
            Refused,
        ),
        (
            "TE with an underscore",
            post("Content-Length: 2\r\nTransfer_Encoding: chunked\r\n", "hi"),
            RefusedOr(X, "hi"),
        ),
    ]
}

fn chunks() -> Vec<(&'static str, String, Fate)> {
    let chunked = |rest: &str| post("Transfer-Encoding: chunked\r\n", rest);
    // Of what breaks within the body, the head has passed already: the backend mustn't act on it.
    vec![
        ("two chunks", chunked("1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"), Passes(X, "hi")),
        (
            "digits in both cases",
            chunked("A\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n"),
            Passes(X, "01234567890123456789a"),
        ),
        ("leading zeros", chunked("002\r\nhi\r\n0\r\n\r\n"), RefusedOr(X, "hi")),
        ("an extension", chunked("2;a=b\r\nhi\r\n0\r\n\r\n"), RefusedOr(X, "hi")),
        ("trailers", chunked("2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"), RefusedOr(X, "hi")),
        ("a size below zero", chunked("-2\r\nhi\r\n0\r\n\r\n"), Refused),
        ("a size with a sign", chunked("+2\r\nhi\r\n0\r\n\r\n"), Refused),
        ("a size with 0x", chunked("0x2\r\nhi\r\n0\r\n\r\n"), Refused),
        ("no size", chunked("\r\nhi\r\n0\r\n\r\n"), Refused),
        ("a size beyond 64 bits", chunked("10000000000000002\r\nhi\r\n0\r\n\r\n"), Refused),
        ("a blank before the size", chunked(" 2\r\nhi\r\n0\r\n\r\n"), RefusedOr(X, "hi")),
        ("a size ended by LF alone", chunked("2\nhi\r\n0\r\n\r\n"), Refused),
        ("a size ended by CR alone", chunked("2\rhi\r\n0\r\n\r\n"), Refused),
        ("a chunk that is longer", chunked("2\r\nhix\r\n0\r\n\r\n"), Refused),
        ("a chunk ended by LF alone", chunked("2\r\nhi\n0\r\n\r\n"), Refused),
        ("an extension with LF", chunked("2;\nxx\r\nhi\r\n0\r\n\r\n"), Refused),
        ("the last chunk ended by LF alone", chunked(&format!("0\n\r\n{ADMIN}")), Refused),
    ]
}

fn lines() -> Vec<(&'static str, String, Fate)> {
    vec![
        ("plain", get(""), Passes(GET, "")),
        ("an obs-fold", get("X: a\r\n b\r\n"), Refused),
        ("an obs-fold with a tab", get("X: a\r\n\tb\r\n"), Refused),
        ("a first line that is folded", get("").replace("Host", " Host"), Refused),
        ("CR within a value", get("X: a\rb\r\n"), Refused),
        ("CR at a value's end", get("X: a\r\r\n"), Refused),
        ("NUL within a value", get("X: a\0b\r\n"), Refused),
        ("DEL within a value", get("X: a\x7fb\r\n"), Refused),
        ("ESC within a value", get("X: a\x1bb\r\n"), Refused),
        ("a line without a colon", get("X\r\n"), Refused),
        ("a line without a name", get(": a\r\n"), Refused),
        ("a blank within a name", get("X Y: a\r\n"), Refused),
        ("a NUL within a name", get("X\0Y: a\r\n"), Refused),
        ("a name in other letters", get("X\u{e9}: a\r\n"), Refused),
        ("a parenthesis within a name", get("X(y): a\r\n"), Refused),
        ("LF alone ends a field", get("X: a\nY: b\r\n"), RefusedOr(GET, "")),
        (
            "LF alone hides a length",
            post("X: a\nContent-Length: 34\r\n", ADMIN),
            RefusedOr(X, ADMIN),
        ),
        (
            "LF alone ends the head",
            "GET /x HTTP/1.1\nHost: web\nConnection: close\n\n".to_owned(),
            RefusedOr(GET, ""),
        ),
        ("LF CR ends a field", get("X: a\n\rY: b\r\n"), Refused),
        ("other bytes in a value", get("X: \u{e9}\r\n"), RefusedOr(GET, "")),
    ]
}

fn heads() -> Vec<(&'static str, String, Fate)> {
    let first = |line: &str| format!("{line}\r\nHost: web\r\nConnection: close\r\n\r\n");
    let hosts = |hosts: &str| format!("GET /x HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n");
    vec![
        ("two blanks", first("GET  /x HTTP/1.1"), Refused),
        ("a blank before the method", first(" GET /x HTTP/1.1"), Refused),
        ("a tab for a blank", first("GET\t/x\tHTTP/1.1"), Refused),
        ("a blank within the target", first("GET /x /y HTTP/1.1"), Refused),
        ("a blank at the end", first("GET /x HTTP/1.1 "), Refused),
        ("no version", first("GET /x"), Refused),
        ("version 1.2", first("GET /x HTTP/1.2"), Refused),
        ("version 2.0", first("GET /x HTTP/2.0"), Refused),
        ("version 0.9", first("GET /x HTTP/0.9"), Refused),
        ("version in small letters", first("GET /x http/1.1"), Refused),
        ("a method that is no token", first("G(T /x HTTP/1.1"), Refused),
        ("a method of its own", first("PURGE /x HTTP/1.1"), Passes("PURGE /x HTTP/1.1", "")),
        ("no target", first("GET  HTTP/1.1"), Refused),
        ("a target that is no path", first("GET x HTTP/1.1"), Refused),
        ("NUL within the target", first("GET /x\0 HTTP/1.1"), Refused),
        ("CR within the target", first("GET /x\rX: HTTP/1.1"), Refused),
        ("a fragment", first("GET /x#y HTTP/1.1"), RefusedOr(GET, "")),
        ("a star", first("GET * HTTP/1.1"), Refused),
        ("a star for OPTIONS", first("OPTIONS * HTTP/1.1"), RefusedOr("OPTIONS * HTTP/1.1", "")),
        ("CONNECT", first("CONNECT web:80 HTTP/1.1"), Refused),
        ("a whole URI", first("GET http://web/x HTTP/1.1"), Passes(GET, "")),
        (
            "a whole URI without a path",
            first("GET http://web?x HTTP/1.1"),
            RefusedOr("GET /?x HTTP/1.1", ""),
        ),
        ("a query for a target", first("GET ?x HTTP/1.1"), Refused),
        ("a whole URI of another scheme", first("GET ftp://web/x HTTP/1.1"), Refused),
        (
            "a whole URI without a Host",
            "GET http://web/x HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            Refused,
        ),
        (
            "a whole URI with a bad Host",
            first("GET http://web/x HTTP/1.1").replace(": web", ": w b"),
            Refused,
        ),
        ("a whole URI with a user", first("GET http://u@web/x HTTP/1.1"), Refused),
        ("no Host", hosts(""), Refused),
        ("an empty Host", hosts("Host: \r\n"), Refused),
        ("two Hosts", hosts("Host: web\r\nHost: other\r\n"), Refused),
        ("the same Host twice", hosts("Host: web\r\nHost: web\r\n"), Refused),
        ("a Host with a user", hosts("Host: u@web\r\n"), Refused),
        ("a Host with a path", hosts("Host: web/x\r\n"), Refused),
        ("a Host with a comma", hosts("Host: web, other\r\n"), Refused),
        ("a Host with a blank", hosts("Host: web other\r\n"), Refused),
        ("a Host with a bad port", hosts("Host: web:x\r\n"), Refused),
        ("a Host with an encoded dot", hosts("Host: web%2eexample\r\n"), Refused),
        ("a Host with another script's letter", hosts("Host: w\u{435}b\r\n"), Refused),
        ("a Host with an empty label", hosts("Host: web..example\r\n"), Refused),
        ("a Host with two dots at its end", hosts("Host: web..\r\n"), Refused),
        ("a Host that is a number", hosts("Host: 2130706433\r\n"), Refused),
        ("a Host with a dot at its end", hosts("Host: WEB.:80\r\n"), Passes(GET, "")),
        ("authorization taken away", nominated("authorization", "Bearer x"), Refused),
        ("a cookie taken away", nominated("Cookie", "a=b"), Refused),
        ("a length taken away", nominated("content-length", "0"), Refused),
        ("Host taken away", get("").replace("close", "close, HOST"), Refused),
        ("what is no name taken away", get("").replace("close", "close, a b"), Refused),
        ("something taken away", nominated("x-hop", "1"), Passes(GET, "")),
        (
            "the preface of HTTP/2 in the middle",
            format!("{}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", get("")),
            Passes(GET, ""),
        ),
    ]
}

#[tokio::test]
async fn bytes_that_can_be_read_in_two_ways_reach_no_backend() {
    let lab = Lab::start().await;
    let cases = cases();
    assert!(cases.len() > 100, "{}", cases.len());
    let mut wrong = Vec::new();
    for (case, bytes, fate) in cases {
        let asking = lab.proxy.exchange(API, &bytes);
        let Ok(got) = timeout(SOON / 2, asking).await else {
            wrong.push(format!("{case}: no answer, and no end"));
            continue;
        };
        let answers = got.matches("HTTP/1.1 ").count();
        if answers > 1 || !(got.is_empty() || got.starts_with("HTTP/1.1 ")) {
            wrong.push(format!("{case}: {got:?}"));
        }
        let judged = lab.judge(fate, got.starts_with("HTTP/1.1 200")).await;
        wrong.extend(judged.err().map(|why| format!("{case}: {why}")));
    }
    expect_none(&wrong);
}
