//! Limits of message heads, and of HTTP/2 connections.

/// HTTP/1 heads: number of fields, whoever wrote them.
pub const MAX_FIELDS: usize = Author::Proxy.most_fields();

/// Who wrote a head. A proxy has added to what it read: lengths, marks, a trace, and a gateway all that
/// it knows of its client. So it may write more than others, or what one proxy takes the next would refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Author {
    #[default]
    Anybody,
    Proxy,
}

impl Author {
    /// HTTP/1 heads: all lines together. A gateway says the host twice, which may be nearly all of it.
    pub const fn most_bytes(self) -> usize {
        match self {
            Self::Anybody => 64 * 1024,
            Self::Proxy => 128 * 1024,
        }
    }

    /// HTTP/1 heads: number of fields.
    pub const fn most_fields(self) -> usize {
        match self {
            Self::Anybody => 128,
            Self::Proxy => 192,
        }
    }

    /// HTTP/2 heads, decompressed.
    pub const fn most_list_bytes(self) -> u32 {
        match self {
            Self::Anybody => 64 * 1024,
            Self::Proxy => 128 * 1024,
        }
    }
}

/// HTTP/2 streams of one connection at a time.
pub const MAX_STREAMS: u32 = 256;
/// HTTP/2 streams that a peer reset before they were looked at ("rapid reset", CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 20;
/// HTTP/2 streams that we had to reset because the peer broke the rules ("made you reset").
pub const MAX_LOCAL_RESETS: usize = 256;
/// Of a message that its receiver doesn't take, for each stream; a piece of a body may come on top.
pub const UNSENT_BYTES: usize = 64 * 1024;
