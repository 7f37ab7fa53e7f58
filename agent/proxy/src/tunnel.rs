//! What a connection becomes after `101 Switching Protocols`: bytes, both ways.

use std::future::pending;
use std::pin::pin;
use std::sync::atomic::Ordering;

use isthmus_policy::Request;
use tokio::io::copy_bidirectional;

use crate::access::Record;
use crate::connection::Connection;
use crate::http1::Raw;
use crate::io::{CallerIo, Stream};
use crate::view::Side;

/// A tunnel that both sides have agreed to. Its request stays under way until its end.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) application: Raw<Stream>,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) record: Record,
}

impl Tunnel {
    /// Carries bytes until both sides have ended, or until policy denies the request that made the
    /// tunnel.
    pub(crate) async fn run(self, connection: &Connection, mut caller: Raw<CallerIo>) {
        let Self { mut application, method, path, mut record } = self;
        // What a route changed is judged at the other side, which gets to see it.
        let request = match connection.parties.side {
            Side::Server => Some(Request { method: &method, path: &path }),
            Side::Client => None,
        };
        let revoked = async {
            match request {
                Some(request) => connection.revoked(request).await,
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
