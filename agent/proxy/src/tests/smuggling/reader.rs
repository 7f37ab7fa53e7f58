//! A backend that reads strictly.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::tests::support::WEB;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Method, target and version.
    pub(super) line: String,
    /// Name and value of each field, as they came.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
    /// What another reader might have read otherwise.
    pub(super) complaint: Option<String>,
}

pub(super) struct Backend {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind((WEB, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let record = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&record)));
            }
        });
        Self { port, seen }
    }

    /// What came since the last time.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock())
    }
}

async fn serve(stream: TcpStream, record: Arc<Mutex<Vec<Seen>>>) {
    let mut reader = Reader { stream, bytes: Vec::new() };
    while let Some(head) = reader.until(b"\r\n\r\n").await {
        let mut seen = Seen::of_head(&head);
        let lines: Vec<String> = seen.all("content-length").map(str::to_owned).collect();
        let codings: Vec<String> = seen.all("transfer-encoding").map(str::to_owned).collect();
        let whole = match (&*lines, &*codings) {
            ([], []) => true,
            ([length], []) => reader.body(length, &mut seen).await,
            ([], [coding]) if coding == "chunked" => reader.chunks(&mut seen).await,
            (lengths, codings) => {
                seen.complain(format!("framed by {lengths:?} and {codings:?}"));
                true
            }
        };
        if !whole {
            // Broken off: no application would have acted on it.
            return;
        }
        let target = seen.line.rsplit_once(' ').map_or("", |(target, _)| target).to_owned();
        let bad = seen.complaint.is_some();
        record.lock().push(seen);
        let length = target.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}");
        if bad || reader.stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
    if !reader.bytes.is_empty() {
        let line = String::from_utf8_lossy(&reader.bytes).into_owned();
        let mut seen = Seen::of_head(b"");
        seen.complain(format!("bytes that are no request: {line:?}"));
        record.lock().push(seen);
    }
}

struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Reader {
    async fn more(&mut self) -> bool {
        self.stream.read_buf(&mut self.bytes).await.is_ok_and(|read| read > 0)
    }

    /// Bytes up to a mark, without it.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(mark.len()).position(|part| part == mark) {
                let rest = self.bytes.split_off(at + mark.len());
                let mut found = std::mem::replace(&mut self.bytes, rest);
                found.truncate(at);
                return Some(found);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < length {
            if !self.more().await {
                return None;
            }
        }
        let rest = self.bytes.split_off(length);
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    async fn body(&mut self, length: &str, seen: &mut Seen) -> bool {
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let Some(length) = length.parse().ok().filter(|_| digits) else {
            seen.complain(format!("a length of {length:?}"));
            return true;
        };
        let Some(body) = self.exactly(length).await else { return false };
        seen.body = body;
        true
    }

    async fn chunks(&mut self, seen: &mut Seen) -> bool {
        loop {
            let Some(line) = self.until(b"\r\n").await else { return false };
            let line = String::from_utf8_lossy(&line).into_owned();
            let digits = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
            let Some(size) = usize::from_str_radix(&line, 16).ok().filter(|_| digits) else {
                seen.complain(format!("a chunk of {line:?}"));
                return true;
            };
            if size == 0 {
                return self.trailers(seen).await;
            }
            let Some(chunk) = self.exactly(size + 2).await else { return false };
            if !chunk.ends_with(b"\r\n") {
                seen.complain(format!("a chunk that ends in {chunk:?}"));
                return true;
            }
            seen.body.extend(&chunk[..size]);
        }
    }

    async fn trailers(&mut self, seen: &mut Seen) -> bool {
        loop {
            let Some(line) = self.until(b"\r\n").await else { return false };
            if line.is_empty() {
                return true;
            }
            let field = seen.field(&line);
            seen.trailers.extend(field);
        }
    }
}

impl Seen {
    fn of_head(head: &[u8]) -> Self {
        let mut seen = Self {
            line: String::new(),
            fields: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            complaint: None,
        };
        let mut lines = split(head, b"\r\n").into_iter();
        seen.read_line(lines.next().unwrap_or_default());
        for line in lines {
            let field = seen.field(line);
            seen.fields.extend(field);
        }
        if seen.all("host").count() != 1 {
            seen.complain("not one Host".to_owned());
        }
        seen
    }

    fn read_line(&mut self, line: &[u8]) {
        self.line = String::from_utf8_lossy(line).into_owned();
        let parts: Vec<&str> = self.line.split(' ').collect();
        let token = |text: &str| !text.is_empty() && text.bytes().all(is_token);
        let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let fine = match &*parts {
            [method, target, "HTTP/1.1"] => {
                token(method) && target.starts_with(['/', '*']) && graphic(target)
            }
            _ => false,
        };
        if !fine {
            self.complain(format!("a request line {:?}", self.line));
        }
    }

    fn field(&mut self, line: &[u8]) -> Option<(String, String)> {
        let text = String::from_utf8_lossy(line).into_owned();
        let fine = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        match text.split_once(':') {
            Some((name, value))
                if !name.is_empty() && name.bytes().all(is_token) && line.iter().all(fine) =>
            {
                Some((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
            }
            _ => {
                self.complain(format!("a line {text:?}"));
                None
            }
        }
    }

    /// All values of a field, over all lines.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let fields = self.fields.iter().filter(move |(known, _)| known == name);
        fields.map(|(_, value)| value.as_str())
    }

    fn complain(&mut self, why: String) {
        self.complaint.get_or_insert(why);
    }
}

fn split<'a>(bytes: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(mark.len()).position(|part| part == mark) {
        parts.push(&rest[..at]);
        rest = &rest[at + mark.len()..];
    }
    parts.push(rest);
    parts
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
