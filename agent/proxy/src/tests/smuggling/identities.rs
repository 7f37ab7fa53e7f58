//! Forged identity headers.

use super::Lab;
use super::frames::*;
use crate::tests::support::*;

/// Ways to write what only the proxy may say.
const CLAIMS: [&str; 12] = [
    "x-isthmus-identity",
    "X-Isthmus-Identity",
    "X-ISTHMUS-IDENTITY",
    "x_isthmus_identity",
    "X_Isthmus-Identity",
    "x-isthmus_identity",
    "X-Isthmus-Anything",
    "x_isthmus_anything",
    "X.Isthmus.Identity",
    "x!isthmus-identity",
    "X-Forwarded-Client-Cert",
    "x_forwarded_client_cert",
];

/// As CGI, WSGI and their like would name a field.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace(|sign: char| !sign.is_ascii_alphanumeric(), "-")
}

impl Lab {
    /// That the one request that came says the truth, and nothing else, of its caller.
    fn expect_truth(&self, case: &str) {
        let seen = self.backend.take();
        let [seen] = &*seen else { panic!("{case}: {seen:#?}") };
        assert!(seen.complaint.is_none(), "{case}: {seen:#?}");
        let claims = |name: &str| {
            let name = folded(name);
            name.starts_with("x-isthmus-") || name == "x-forwarded-client-cert"
        };
        let said: Vec<_> = seen.fields.iter().filter(|(name, _)| claims(name)).collect();
        let truth = ("x-isthmus-identity", "spiffe://corp.example/ns/prod/sa/api");
        let said: Vec<_> = said.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(said, [truth], "{case}");
        assert!(!seen.trailers.iter().any(|(name, _)| claims(name)), "{case}: {seen:#?}");
    }
}

#[tokio::test]
async fn nobody_says_by_http1_who_it_is() {
    let lab = Lab::start().await;
    for name in CLAIMS {
        let head = "HTTP/1.1\r\nHost: web\r\nConnection: close";
        for (case, bytes) in [
            ("field", format!("GET / {head}\r\n{name}: admin\r\n\r\n")),
            ("twice", format!("GET / {head}\r\n{name}: admin\r\n{name}: admin\r\n\r\n")),
            ("empty", format!("GET / {head}\r\n{name}:\r\n\r\n")),
            (
                "trailer",
                format!(
                    "POST / {head}\r\nTrailer: {name}\r\nTransfer-Encoding: chunked\r\n\r\n\
                     2\r\nhi\r\n0\r\n{name}: admin\r\n\r\n"
                ),
            ),
        ] {
            let got = lab.proxy.exchange(API, bytes).await;
            assert!(got.starts_with("HTTP/1.1 200"), "{name}, {case}: {got}");
            lab.expect_truth(&format!("{name}, {case}"));
        }
        for lines in [format!("{name}\r\n{name}: admin"), format!("close, {name}")] {
            let bytes = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: {lines}\r\n\r\n");
            let got = lab.proxy.exchange(API, bytes).await;
            assert!(got.starts_with("HTTP/1.1 400"), "{name}: {got}");
            assert!(lab.backend.take().is_empty(), "{name}");
        }
    }
}

#[tokio::test]
async fn nobody_says_by_http2_who_it_is() {
    let lab = Lab::start().await;
    let head = |method: &[u8]| -> Vec<u8> {
        let pairs: [(&[u8], &[u8]); 4] = [
            (b":method", method),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"web"),
        ];
        pairs.iter().flat_map(|(name, value)| field(name, value)).collect()
    };
    for name in CLAIMS {
        let claim = field(name.to_ascii_lowercase().as_bytes(), b"admin");
        let in_head = [head(b"GET"), claim.clone()].concat();
        let in_head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &in_head);
        let in_trailers = [
            frame(HEADERS, END_HEADERS, 1, &head(b"POST")),
            frame(DATA, 0, 1, b"hi"),
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &claim),
        ];
        for (case, frames) in [("field", in_head), ("trailer", in_trailers.concat())] {
            let came = converse(lab.proxy.connect(API).await, &frames).await;
            assert_eq!(came, Came::Success, "{name}, {case}");
            lab.expect_truth(&format!("{name}, {case}"));
        }
    }
}
