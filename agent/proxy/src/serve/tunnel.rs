//! Tunnel: a connection after `101 Switching Protocols`, which copies bytes both ways.

use std::sync::atomic::Ordering;

use isthmus_http::h1::Raw;
use isthmus_http::io::CallerIo;
use tokio::io::copy_bidirectional;

use crate::caller::connection::Tunnel;

/// Carries bytes until both sides have ended. If policy denies the request that made the tunnel the
/// worker ends both, as it does for every request.
pub(crate) async fn run(tunnel: Tunnel, mut caller: Raw<CallerIo>) {
    let Tunnel { mut application, mut record } = tunnel;
    match copy_bidirectional(&mut caller, &mut application).await {
        Ok((up, down)) => {
            record.progress().bytes.fetch_add(up, Ordering::Relaxed);
            record.add_answer_bytes(down);
            record.complete();
        }
        Err(error) => tracing::debug!(%error, request_id = %record.id, "A tunnel broke"),
    }
}
