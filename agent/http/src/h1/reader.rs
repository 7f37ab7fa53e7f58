//! Heads as they arrive.

use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::head::{Refused, Scan};
use super::{Conn, Error};
use crate::limits::Author;

/// Collects one head after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Bytes of an incomplete head.
    begun: Vec<u8>,
    scan: Scan,
    author: Author,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The connection's end, or its failure.
    Broken(Error),
    Refused(Refused),
}

impl Reader {
    pub(super) fn new(author: Author) -> Self {
        Self { author, ..Self::default() }
    }

    /// The next head, all of it; none if the connection ends before it has begun.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        link: &Conn<S>,
    ) -> Poll<Result<Option<Bytes>, NoHead>> {
        loop {
            if link.rest_len() > 0 {
                let (head, rest) = self.take(link.take_rest()).map_err(NoHead::Refused)?;
                link.put_back(rest);
                if head.is_some() {
                    return Poll::Ready(Ok(head));
                }
            }
            let filled = ready!(link.poll_fill(cx));
            match filled.map_err(|error| NoHead::Broken(error.into()))? {
                Some(()) => {}
                None if self.begun.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(NoHead::Broken(Error::Truncated))),
            }
        }
    }

    /// Whether part of a head is here.
    pub(super) const fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Takes a head off what has arrived, and leaves what is behind it.
    pub(super) fn take(&mut self, mut rest: Bytes) -> Result<(Option<Bytes>, Bytes), Refused> {
        if self.begun.is_empty() {
            // Some clients end a body with a line's end too many (RFC 9112, section 2.2).
            while rest.starts_with(b"\r\n") {
                rest.advance(2);
            }
            let Some(end) = self.scan.find(&rest, self.author)? else {
                self.begun.extend_from_slice(&rest);
                return Ok((None, Bytes::new()));
            };
            self.scan = Scan::default();
            return Ok((Some(rest.split_to(end)), rest));
        }
        self.begun.extend_from_slice(&rest);
        while self.begun.starts_with(b"\r\n") {
            self.begun.drain(..2);
            self.scan = Scan::default();
        }
        let Some(end) = self.scan.find(&self.begun, self.author)? else {
            return Ok((None, Bytes::new()));
        };
        self.scan = Scan::default();
        let mut all = Bytes::from(std::mem::take(&mut self.begun));
        Ok((Some(all.split_to(end)), all))
    }
}
