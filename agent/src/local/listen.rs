//! The socket itself: who may connect, how many at once, and for how long without a word.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

use crate::places::{Bounds, Place, Places, Source};

/// Connections at once; whoever comes on top is refused.
const PLACES: Bounds = Bounds { all: 64, each: 16, root: 16 };
/// For the first byte: a program that connects has something to ask.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// For each next one: it answers when it is asked whether it is there, see [`super::KEEPALIVE`].
const SILENCE: Duration = Duration::from_secs(90);

/// Makes the socket, for its owner and group. A socket that a dead agent left is replaced, a
/// living agent's isn't.
///
/// # Errors
/// When an agent serves there, or the path can't be used.
pub(crate) fn bind(path: &Path) -> anyhow::Result<Listener> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("Failed to make {}", folder.display()))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("Failed to look at {shown}")),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is in the way of the agent's socket: it is not a socket")
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!("Another agent serves {shown}; stop it first")
        }
        Ok(_) => {}
    }
    // Made elsewhere and moved, so that nobody can connect before the mode is right.
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let inner = UnixListener::bind(&beside).with_context(|| format!("Failed to make {shown}"))?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("Failed to make {shown}"))?;
    Ok(Listener { inner, path: path.to_owned() })
}

/// The socket; it is removed at the end.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// The connections, never more than a bounded number at once, altogether and of one user.
    pub(crate) fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        let places = Places::new(PLACES);
        stream::unfold((self, places), |(listener, places)| async move {
            let connection = listener.next(&places).await;
            Some((connection, (listener, places)))
        })
    }

    async fn next(&self, places: &Arc<Places>) -> io::Result<Connection> {
        loop {
            let (stream, _) = self.inner.accept().await?;
            let Ok(user) = stream.peer_cred().map(|it| it.uid()) else { continue };
            if let Some(place) = places.take(Source::User(user)) {
                let deadline = Box::pin(sleep(FIRST_WORD));
                return Ok(Connection { stream, deadline, _place: place });
            }
            tracing::debug!(user, "refused a connection to the agent's socket: there are too many");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already is as good.
        drop(fs::remove_file(&self.path));
    }
}

/// One connection to the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// When it must have said something.
    deadline: Pin<Box<Sleep>>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Option<UCred>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.peer_cred().ok()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.deadline.as_mut().poll(cx).map(|()| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said for too long"))
            }),
            ready @ Poll::Ready(_) => {
                if buffer.filled().len() > before {
                    self.deadline.as_mut().reset(Instant::now() + SILENCE);
                }
                ready
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let parent = path.parent().unwrap();
        assert_eq!(fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o755);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _living = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(error.to_string().contains("Another agent"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn who_is_one_too_many_is_refused_and_those_that_end_make_room() {
        use futures_util::StreamExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let mut listener = Box::pin(bind(&path).unwrap().connections());
        // This is root, or one of many users.
        let most = if isthmus_net::process::own_user() == 0 { PLACES.all } else { PLACES.each };
        let mut held = Vec::new();
        for _ in 0..most {
            let client = UnixStream::connect(&path).await.unwrap();
            held.push((client, listener.next().await.unwrap().unwrap()));
        }
        let mut refused = UnixStream::connect(&path).await.unwrap();
        let mut byte = [0];
        tokio::select! {
            _ = listener.next() => panic!("one too many was let in"),
            read = refused.read(&mut byte) => assert_eq!(read.unwrap_or(0), 0),
        }
        held.pop();
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.next().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_loses_its_place() {
        use futures_util::StreamExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let mut listener = Box::pin(bind(&path).unwrap().connections());
        let _client = UnixStream::connect(&path).await.unwrap();
        let mut connection = listener.next().await.unwrap().unwrap();
        let began = Instant::now();
        let error = connection.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, FIRST_WORD));

        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut connection = listener.next().await.unwrap().unwrap();
        client.write_all(b"hello").await.unwrap();
        assert_eq!(connection.read(&mut [0; 8]).await.unwrap(), 5);
        let began = Instant::now();
        let error = connection.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, SILENCE));
    }
}
