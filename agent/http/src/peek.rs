//! Looks at what a caller sent first, and leaves it in the socket for who is to read it.

use std::io;
use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// The first look: a request's head or a ClientHello fits mostly.
const FIRST_LOOK: usize = 2 * 1024;

/// Bytes that a caller has sent so far.
#[derive(Debug)]
pub struct Peek<'a> {
    stream: &'a TcpStream,
    /// The same socket: the runtime's own handle has no way to look without waiting for what it has
    /// seen already.
    again: Option<std::net::TcpStream>,
    bytes: Vec<u8>,
    seen: usize,
    most: usize,
    looks: usize,
}

/// Number of bytes available now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// More than before.
    More,
    /// Nothing more will come, or may.
    End,
}

impl<'a> Peek<'a> {
    /// Looks at `most` bytes at most.
    pub const fn new(stream: &'a TcpStream, most: usize) -> Self {
        Self { stream, again: None, bytes: Vec::new(), seen: 0, most, looks: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.seen]
    }

    /// Whether something has come, and nothing after it.
    pub const fn is_first(&self) -> bool {
        self.looks == 1
    }

    /// Waits until there is more than before. Nothing is lost if it is dropped.
    pub async fn more(&mut self) -> io::Result<Looked> {
        if self.seen == self.most {
            return Ok(Looked::End);
        }
        let room = if self.seen == 0 { FIRST_LOOK.min(self.most) } else { self.most };
        self.bytes.resize(room.max(self.bytes.len()), 0);
        if self.seen == 0 {
            self.seen = self.stream.peek(&mut self.bytes).await?;
            self.looks = 1;
            return Ok(if self.seen == 0 { Looked::End } else { Looked::More });
        }
        let again = match self.again.take() {
            Some(again) => again,
            None => self.stream.as_fd().try_clone_to_owned()?.into(),
        };
        let again = self.again.insert(again);
        loop {
            let ready = self.stream.ready(Interest::READABLE).await?;
            let (seen, bytes) = (self.seen, &mut self.bytes);
            let looked = self.stream.try_io(Interest::READABLE, || match again.peek(bytes)? {
                length if length > seen => Ok(length),
                // What is there was seen: wait for the kernel's next word.
                _ => Err(io::ErrorKind::WouldBlock.into()),
            });
            match looked {
                Ok(length) => {
                    self.seen = length;
                    self.looks += 1;
                    return Ok(Looked::More);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if ready.is_read_closed() {
                        return Ok(Looked::End);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
