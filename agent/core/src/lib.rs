//! The data plane of a host, without any input or output of its own.
//!
//! A [`Node`] is one host's end of the mesh. The shell feeds it packets from the TUN device,
//! datagrams from the UDP socket, revisions and the time (`handle_*`), and takes from it what is to
//! be done (`poll_*`). It reads no clock, no socket and no random numbers, so that a whole mesh runs
//! in one thread under a simulated clock (`sim`). One file is excused: `tunnel.rs` wraps
//! boringtun, which reads the clock for its sessions and makes its own keys. `bulk/` makes keys, too.
//!
//! # Life of a packet
//!
//! ```text
//!  TUN ─▶ parse ─▶ flow? ──hit──▶ rewrite ─▶ seal ─▶ UDP ════▶ UDP ─▶ open ─▶ flow? ─▶ rewrite ─▶ TUN
//!                   │miss                                                      │miss
//!                   ▼                                                          ▼
//!        whose socket? which backend?                              does the peer own the source?
//!        policy ─▶ flow, or RST / ICMP                             policy ─▶ flow, or drop
//! ```
//!
//! Everything that a packet needs is found by one look-up in the flow table (`flows`). A flow has
//! two *legs*, one per direction; a leg is known by the 5-tuple *and the port it comes in by* (the
//! TUN device or a certain peer's tunnel), so that a packet never finds a flow that it has no
//! business with. What comes in by one leg leaves by the port of the other: the same structure
//! carries outbound, inbound, forwarded and hairpin flows.
//!
//! A flow remembers the revision that it was judged under. When the revision moves it is judged
//! again: at its next packet, or by a sweep that finds idle ones (`rejudge.rs`).
//!
//! # Rooms
//!
//! Each uses those before it only (`scripts/rooms.toml`):
//!
//! | room | what is there |
//! | --- | --- |
//! | `types` | peers, what the shell gives and takes, settings, counters, events |
//! | `bulk` | what agents seal their traffic with beside WireGuard |
//! | `snapshot` | a revision, made ready; which backend takes a flow; whose a socket is |
//! | `tunnels` | sessions, who may begin one, where peers are, paths, what agents say to each other |
//! | `flows` | the flow table |
//! | `judge` | what becomes of a packet without a flow: `decide.rs`, and for flows older than this process `adopt.rs` |
//! | `forward` | what every packet goes through; `rejudge.rs`, `refuse.rs` RST and ICMP, `translate.rs` ICMP errors |
//! | `node` | the calling contract; `ingest.rs` from the TUN device, `inbox.rs` from the tunnels |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bulk;
mod flows;
mod forward;
mod judge;
mod node;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod snapshot;
mod tunnels;
mod types;

pub use bulk::{LANES, TYPE as BULK_TYPE};
pub use flows::FlowState;
pub use node::{FlowView, Hairpin, Inbox, Node, PeerView, Task};
pub use snapshot::{CompiledSnapshot, Deaf, Owner, Owners};
pub use tunnels::{Outbox, Sealing, public_key, segments_per_run};
pub use types::{
    Cipher, Ciphers, Config, Counters, Denial, DropReason, Event, Limits, PeerName, Received,
    SendError, Traffic, Transmit, TunWriter,
};
