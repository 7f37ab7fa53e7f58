//! Carries bytes between two sockets, each direction by itself, until both have ended.

#[cfg(test)]
mod tests;

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::detect::FirstLine;

/// Read at once. Held only while there is something to carry: idle connections need no memory.
const BUFFER: usize = 64 * 1024;

/// Bytes per direction.
#[derive(Debug, Default)]
pub struct Counts {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// Carries both ways. Whoever ends its direction can still receive. A connection that carries nothing
/// for `idle` ends, by the first of `counts`, all of which count; an error of one side is the end of both. Where the caller's first line is watched, what
/// makes it a request isn't passed on, and ends both.
pub async fn both(
    caller: &TcpStream,
    application: &TcpStream,
    counts: &[&Counts],
    idle: Duration,
    watched: Option<FirstLine>,
) -> io::Result<()> {
    let up = one_way(caller, application, counts, |it| &it.up, watched);
    let down = one_way(application, caller, counts, |it| &it.down, None);
    tokio::select! {
        ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
        () = quiet(counts.first().copied(), idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    counts: &[&Counts],
    of: fn(&Counts) -> &AtomicU64,
    mut watched: Option<FirstLine>,
) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match from.try_read_buf(&mut buffer) {
                Ok(0) => {
                    // If it fails, the other side has gone already.
                    let _ = shutdown(to);
                    return Ok(());
                }
                Ok(length) => {
                    for it in counts {
                        of(it).fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if watched.as_mut().is_some_and(|line| line.becomes_request(&buffer)) {
                return Err(io::Error::other("what began as another protocol became HTTP"));
            }
            write_all(to, &buffer).await?;
        }
    }
}

pub async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shutdown(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Completes when nothing was carried for at least `idle`, and less than twice that.
async fn quiet(counts: Option<&Counts>, idle: Duration) {
    let load = |it: &Counts| it.up.load(Ordering::Relaxed) + it.down.load(Ordering::Relaxed);
    let sum = || counts.map_or(0, load);
    let mut before = sum();
    loop {
        sleep(idle).await;
        let now = sum();
        if now == before {
            return;
        }
        before = now;
    }
}
