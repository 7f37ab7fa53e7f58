//! What a connection becomes after `101 Switching Protocols`: bytes, both ways.

use std::future::pending;
use std::pin::pin;
use std::sync::atomic::Ordering;

use tokio::io::copy_bidirectional;

use crate::access::Record;
use crate::connection::Connection;
use crate::http1::Raw;
use crate::io::{CallerIo, Stream};
use crate::judge::Kept;

/// A tunnel that both sides have agreed to. Its request stays under way until its end.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) application: Raw<Stream>,
    /// What is judged again when policy changes. None at the client's side: what a route changed is
    /// judged at the other, which gets to see it.
    pub(crate) kept: Option<Kept>,
    pub(crate) record: Record,
}

impl Tunnel {
    /// Carries bytes until both sides have ended, or until policy denies the request that made the
    /// tunnel.
    pub(crate) async fn run(self, connection: &Connection, mut caller: Raw<CallerIo>) {
        let Self { mut application, kept, mut record } = self;
        let revoked = async {
            match &kept {
                Some(kept) => connection.revoked(kept).await,
                None => pending().await,
            }
        };
        // Pinned out here, so that the sockets outlive the decision to reset them.
        let mut carried = pin!(copy_bidirectional(&mut caller, &mut application));
        tokio::select! {
            biased;
            () = revoked => connection.on_revoked(),
            ended = &mut carried => match ended {
                Ok((up, down)) => {
                    record.progress().bytes.fetch_add(up, Ordering::Relaxed);
                    record.add_answer_bytes(down);
                    record.complete();
                }
                Err(error) => tracing::debug!(%error, request_id = %record.id, "A tunnel broke"),
            }
        }
    }
}
