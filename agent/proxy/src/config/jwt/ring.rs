//! The key sets of all providers that rules name, kept fresh in the background. Requests only look.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::KeySource;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::fetch::fetch;
use super::keys::KeySet;
use crate::config::view::ProxySnapshot;

/// The largest key set.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Between two looks at a file.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two fetches.
const URL_INTERVAL: Duration = Duration::from_secs(300);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Key sets, by where they come from.
#[derive(Debug, Default)]
pub(crate) struct KeyRing {
    held: Mutex<BTreeMap<KeySource, Held>>,
}

/// A source of keys that can't be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFailure {
    /// Which.
    pub source: KeySource,
    /// Why.
    pub error: String,
    /// Whether keys from before are in use.
    pub kept: bool,
}

#[derive(Debug)]
struct Held {
    /// The last good ones: a source that fails takes nothing away.
    keys: Option<Arc<KeySet>>,
    error: Option<String>,
    due: Instant,
}

impl KeyRing {
    /// The keys from a source, if they are there.
    pub(crate) fn keys(&self, source: &KeySource) -> Option<Arc<KeySet>> {
        self.held.lock().get(source)?.keys.clone()
    }

    /// The sources that couldn't be read, or read anew.
    pub(crate) fn failures(&self) -> Vec<KeyFailure> {
        let failure = |(source, held): (&KeySource, &Held)| {
            let error = held.error.clone()?;
            Some(KeyFailure { source: source.clone(), error, kept: held.keys.is_some() })
        };
        self.held.lock().iter().filter_map(failure).collect()
    }

    /// Whether each of these was tried.
    pub(crate) fn has_tried(&self, sources: &BTreeSet<KeySource>) -> bool {
        let held = self.held.lock();
        sources.iter().all(|source| held.contains_key(source))
    }

    /// Keeps what the newest view asks for fresh, as long as there are views.
    pub(crate) async fn keep(&self, mut views: watch::Receiver<Arc<ProxySnapshot>>) {
        loop {
            let wanted = views.borrow_and_update().key_sources();
            self.held.lock().retain(|source, _| wanted.contains(source));
            let next = self.refresh(&wanted).await;
            tokio::select! {
                changed = views.changed() => if changed.is_err() {
                    return;
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Loads what is due, and says when the next is.
    async fn refresh(&self, wanted: &BTreeSet<KeySource>) -> Option<Instant> {
        for source in wanted {
            let now = Instant::now();
            if self.held.lock().get(source).is_some_and(|held| held.due > now) {
                continue;
            }
            let loaded = match source {
                KeySource::File(path) => load(path.clone()).await,
                KeySource::Url(url) => fetch(url).await.map_err(|error| error.to_string()),
            };
            let parsed =
                loaded.and_then(|text| KeySet::parse(&text).map_err(|error| error.to_string()));
            self.hold(source, parsed);
        }
        self.held.lock().values().map(|held| held.due).min()
    }

    pub(super) fn hold(&self, source: &KeySource, loaded: Result<KeySet, String>) {
        let mut all = self.held.lock();
        let before = all.remove(source);
        let (kept, said) = before.map_or((None, None), |held| (held.keys, held.error));
        let interval = match source {
            KeySource::File(_) => FILE_INTERVAL,
            KeySource::Url(_) => URL_INTERVAL,
        };
        let held = match loaded {
            Ok(keys) => {
                if kept.is_none() || said.is_some() {
                    tracing::info!(%source, keys = keys.len(), "Loaded the keys for tokens");
                }
                Held { keys: Some(keys.into()), error: None, due: Instant::now() + interval }
            }
            Err(error) => {
                if said.as_ref() != Some(&error) {
                    let have = if kept.is_some() {
                        "those from before stay"
                    } else {
                        "tokens are refused"
                    };
                    tracing::warn!(%source, error, "Failed to load the keys for tokens: {have}");
                }
                Held { keys: kept, error: Some(error), due: Instant::now() + RETRY }
            }
        };
        all.insert(source.clone(), held);
    }
}

async fn load(path: std::path::PathBuf) -> Result<Vec<u8>, String> {
    let reading = tokio::task::spawn_blocking(move || read(&path));
    reading.await.map_err(|error| error.to_string())?
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_BYTES { Err(format!("more than {MAX_BYTES} bytes")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::jwt::tests::Signer;

    /// Gives each connection the next of these answers.
    async fn server(answers: Vec<Vec<u8>>) -> KeySource {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?v=1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = vec![0; 4096];
                let read = stream.read(&mut asked).await.unwrap();
                assert!(asked[..read].starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"));
                let _ = stream.write_all(&answer).await;
            }
        });
        KeySource::Url(url.into())
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    #[tokio::test]
    async fn keys_come_from_a_url_and_old_ones_outlive_bad_answers() {
        let set = |signer: &Signer| signer.set().to_string().into_bytes();
        let (first, second) = (Signer::new(), Signer::new());
        let source = server(vec![
            b"HTTP/1.1 503 Sorry\r\ncontent-length: 0\r\n\r\n".to_vec(),
            ok(&set(&first)),
            ok(b"{"),
            ok(&vec![b' '; MAX_BYTES + 1]),
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec(),
            ok(&set(&second)),
        ])
        .await;
        let ring = KeyRing::default();
        let wanted = BTreeSet::from([source.clone()]);
        let refresh = async || {
            for held in ring.held.lock().values_mut() {
                held.due = Instant::now();
            }
            ring.refresh(&wanted).await;
            let error = ring.held.lock().get(&source).and_then(|held| held.error.clone());
            (ring.keys(&source), error.unwrap_or_default())
        };
        let (keys, error) = refresh().await;
        assert!(keys.is_none() && error.contains("503"), "{error}");
        let (keys, error) = refresh().await;
        let keys = keys.expect("a key set");
        assert_eq!(error, "");
        for what in ["EOF", "more than", "broke off"] {
            let (still, error) = refresh().await;
            assert!(Arc::ptr_eq(&keys, &still.expect("those from before")), "{what}");
            assert!(error.contains(what), "{error}");
        }
        let (new, error) = refresh().await;
        assert!(!Arc::ptr_eq(&keys, &new.expect("a key set")));
        assert_eq!(error, "");
    }

    #[tokio::test]
    async fn who_does_not_answer_has_no_keys() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let ring = KeyRing::default();
        let source = KeySource::Url(format!("http://{closed}/keys").into());
        let next = ring.refresh(&BTreeSet::from([source.clone()])).await;
        assert!(ring.keys(&source).is_none());
        assert!(next.is_some_and(|next| next <= Instant::now() + RETRY), "it is tried again soon");
    }
}
