//! Bodies, from bytes.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use super::Error;
use super::head::{self, Framing, Refused, Scan};
use crate::limits::Author;

/// Limit on chunk extensions in a body: nobody uses them.
const MAX_EXTENSION_BYTES: u32 = 4096;
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Takes a body apart, however its bytes are dealt.
#[derive(Debug)]
pub(crate) enum Decoder {
    Done,
    Length(u64),
    UntilClose,
    Chunked(Chunked),
    /// It was malformed: where it ends isn't known, whatever may follow.
    Broken,
}

#[derive(Debug)]
pub(crate) struct Chunked {
    at: At,
    extension_bytes: u32,
}

/// Position in a chunked body.
#[derive(Debug)]
enum At {
    /// In a size, of which so many digits are known.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind a size.
    Extension(u64),
    /// Behind the CR of a size's line.
    SizeEnd(u64),
    Data(u64),
    /// Behind a chunk: CR, then LF.
    DataEnd,
    DataLf,
    /// Behind the last chunk. Its own line's end is in here, so that it looks like a head's end.
    Trailers(BytesMut, Scan),
}

/// Part of a body.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Decoder {
    pub(crate) const fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::UntilClose => Self::UntilClose,
            Framing::Chunked => {
                let at = At::Size { size: 0, digits: 0 };
                Self::Chunked(Chunked { at, extension_bytes: 0 })
            }
        }
    }

    pub(crate) const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The bytes that are still to come, where that is known.
    pub(crate) const fn left(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(left) => Some(*left),
            Self::UntilClose | Self::Chunked(_) | Self::Broken => None,
        }
    }

    /// Takes the next piece off what has arrived. None if more must arrive first, or nothing will.
    pub(crate) fn decode(&mut self, bytes: &mut Bytes) -> Result<Option<Piece>, Error> {
        let decoded = self.take(bytes);
        if decoded.is_err() {
            *self = Self::Broken;
        }
        decoded
    }

    fn take(&mut self, bytes: &mut Bytes) -> Result<Option<Piece>, Error> {
        match self {
            Self::Broken => Err(Error::Malformed("what follows a malformed chunk")),
            Self::Done => Ok(None),
            Self::Length(left) => {
                let data = up_to(bytes, *left);
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(piece(data))
            }
            Self::UntilClose => Ok(piece(std::mem::take(bytes))),
            Self::Chunked(chunked) => {
                let piece = chunked.decode(bytes)?;
                if let Some(Piece::Trailers(trailers)) = piece {
                    *self = Self::Done;
                    return Ok((!trailers.is_empty()).then_some(Piece::Trailers(trailers)));
                }
                Ok(piece)
            }
        }
    }

    /// Nothing more will arrive.
    pub(crate) fn on_end(&mut self) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) | Self::Broken => Err(Error::Truncated),
        }
    }
}

impl Chunked {
    /// `Trailers` is the end, be there any or not.
    fn decode(&mut self, bytes: &mut Bytes) -> Result<Option<Piece>, Error> {
        loop {
            match &mut self.at {
                At::Data(left) => {
                    let data = up_to(bytes, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.at = At::DataEnd;
                    }
                    return Ok(piece(data));
                }
                At::Trailers(lines, scan) => {
                    let before = lines.len();
                    lines.extend_from_slice(bytes);
                    let Some(end) = scan.find(lines, Author::Anybody).map_err(malformed)? else {
                        bytes.clear();
                        let fits = lines.len() <= MAX_TRAILER_BYTES;
                        return if fits {
                            Ok(None)
                        } else {
                            Err(Error::Malformed("long trailers"))
                        };
                    };
                    bytes.advance(end - before);
                    let mut lines = std::mem::take(lines).freeze();
                    lines.truncate(end);
                    // Without the line's end of the last chunk.
                    lines.advance(2);
                    return head::trailers(&lines)
                        .map(|it| Some(Piece::Trailers(it)))
                        .map_err(malformed);
                }
                At::Size { .. } | At::Extension(_) | At::SizeEnd(_) | At::DataEnd | At::DataLf => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let byte = bytes.get_u8();
                    self.step(byte)?;
                }
            }
        }
    }

    /// Reads one byte of what lies between data.
    fn step(&mut self, byte: u8) -> Result<(), Error> {
        self.at = match (&self.at, byte) {
            (At::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if *digits == 15 {
                    return Err(Error::Malformed("a chunk's size that is too large"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                At::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (At::Size { digits: 0, .. }, _) => {
                return Err(Error::Malformed("a chunk without a size"));
            }
            (At::Size { size, .. }, b'\r') => At::SizeEnd(*size),
            // Some servers pad sizes.
            (At::Size { size, .. }, b' ' | b'\t' | b';') => At::Extension(*size),
            (At::Extension(size), b'\r') => At::SizeEnd(*size),
            (At::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_bytes += 1;
                if self.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err(Error::Malformed("chunks with long extensions"));
                }
                At::Extension(*size)
            }
            (At::SizeEnd(0), b'\n') => At::Trailers(BytesMut::from(&b"\r\n"[..]), Scan::default()),
            (At::SizeEnd(size), b'\n') => At::Data(*size),
            (At::DataEnd, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { size: 0, digits: 0 },
            (
                At::Size { .. }
                | At::Extension(_)
                | At::SizeEnd(_)
                | At::Data(_)
                | At::DataEnd
                | At::DataLf
                | At::Trailers(..),
                _,
            ) => return Err(Error::Malformed("a malformed chunk")),
        };
        Ok(())
    }
}

fn up_to(bytes: &mut Bytes, most: u64) -> Bytes {
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_to(most)
}

fn piece(data: Bytes) -> Option<Piece> {
    (!data.is_empty()).then_some(Piece::Data(data))
}

fn malformed(refused: Refused) -> Error {
    Error::Malformed(refused.reason())
}
