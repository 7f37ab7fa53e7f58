//! Types that all rooms use: peers, input and output, settings, counters, events.

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
pub(crate) use peer::Interface;
pub use peer::PeerName;
pub(crate) use telemetry::Telemetry;
