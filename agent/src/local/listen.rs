//! The socket itself: who may connect, and how many at once.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

/// Connections at once; whoever comes on top waits in the kernel's queue.
const CONNECTIONS: usize = 64;

/// Makes the socket, for its owner and group. A socket that a dead agent left is replaced, a
/// living agent's isn't.
///
/// # Errors
/// When an agent serves there, or the path can't be used.
pub fn bind(path: &Path) -> anyhow::Result<Listener> {
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
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// The connections, never more than a bounded number at once.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        stream::unfold((self, permits), |(listener, permits)| async move {
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            let accepted = listener.inner.accept().await;
            let accepted = accepted.map(|(stream, _)| Connection { stream, _permit: permit });
            Some((accepted, (listener, permits)))
        })
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
pub struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
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
    async fn connections_are_bounded_and_those_that_end_make_room() {
        use futures_util::StreamExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let mut listener = Box::pin(bind(&path).unwrap().connections());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = UnixStream::connect(&path).await.unwrap();
            held.push((client, listener.next().await.unwrap().unwrap()));
        }
        let _waiting = UnixStream::connect(&path).await.unwrap();
        tokio::select! {
            biased;
            _ = listener.next() => panic!("one too many was let in"),
            () = tokio::task::yield_now() => {}
        }
        held.pop();
        assert!(listener.next().await.unwrap().is_ok());
    }
}
