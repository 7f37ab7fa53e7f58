//! What everything else speaks of: peers, what the shell gives and takes, settings, counters, events.

mod cipher;
mod config;
mod counters;
mod event;
mod io;
mod peer;
pub(crate) mod random;
mod telemetry;

pub use cipher::{Cipher, Ciphers};
pub use config::{Config, Limits};
pub use counters::{Counters, DropReason, Traffic};
pub use event::{Denial, Event};
pub(crate) use io::canonical;
pub use io::{Received, SendError, Transmit, TunWriter};
pub use peer::PeerName;
pub(crate) use peer::Port;
pub(crate) use telemetry::Telemetry;
