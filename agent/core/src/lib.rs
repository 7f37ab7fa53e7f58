//! The data plane of a host, without any input or output of its own.
//!
//! A [`Node`] is one host's end of the mesh. The shell feeds it packets from the TUN device,
//! datagrams from the UDP socket, revisions and the time (`handle_*`), and takes from it what is to
//! be done (`poll_*`). It reads no clock, no socket and no random numbers, so that a whole mesh runs
//! in one thread under a simulated clock (`sim.rs`). One file is excused: `tunnel.rs` wraps
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
//! Everything that a packet needs is found by one look-up in the flow table (`flows.rs`). A flow has
//! two *legs*, one per direction; a leg is known by the 5-tuple *and the port it comes in by* (the
//! TUN device or a certain peer's tunnel), so that a packet never finds a flow that it has no
//! business with. What comes in by one leg leaves by the port of the other: the same structure
//! carries outbound, inbound, forwarded and hairpin flows.
//!
//! A flow remembers the revision that it was judged under. When the revision moves it is judged
//! again: at its next packet, or by a sweep that finds idle ones (`rejudge.rs`).
//!
//! # Files, in the order a packet meets them
//!
//! `node.rs` the calling contract · `outbound.rs`, `task.rs`, `sealing.rs` from the TUN device · `receive.rs`,
//! `inbound.rs` from the tunnels · `forward.rs` what both share · `decide.rs` a new flow's fate · `balance.rs` which backend · `adopt.rs` flows older
//! than this process · `refuse.rs` RST and ICMP · `translate.rs` ICMP errors · `peers.rs`,
//! `tunnel.rs`, `admission.rs` the tunnels · `bulk/` what agents seal their traffic with beside WireGuard · `mtu.rs`, `control.rs` what agents say to each other

#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[path = "tunnels/admission.rs"]
mod admission;
#[path = "judge/adopt.rs"]
mod adopt;
#[path = "snapshot/balance.rs"]
mod balance;
mod bulk;
#[path = "types/config.rs"]
mod config;
#[path = "tunnels/control.rs"]
mod control;
#[path = "types/counters.rs"]
mod counters;
#[path = "judge/decide.rs"]
mod decide;
#[path = "types/event.rs"]
mod event;
mod flows;
#[path = "forward/forged.rs"]
mod forged;
#[path = "forward/mod.rs"]
mod forward;
#[path = "tunnels/open.rs"]
mod inbound;
#[path = "tunnels/mtu.rs"]
mod mtu;
#[path = "node/mod.rs"]
mod node;
#[path = "tunnels/send.rs"]
mod outbound;
#[path = "tunnels/outbox.rs"]
mod outbox;
#[path = "tunnels/peers.rs"]
mod peers;
#[path = "tunnels/ping.rs"]
mod ping;
#[path = "types/random.rs"]
mod random;
#[path = "node/inbox.rs"]
mod receive;
#[path = "forward/refuse.rs"]
mod refuse;
#[path = "forward/rejudge.rs"]
mod rejudge;
#[path = "tunnels/sealing.rs"]
mod sealing;
#[path = "tunnels/silence.rs"]
mod silence;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[path = "snapshot/state.rs"]
mod state;
#[path = "node/task.rs"]
mod task;
#[path = "forward/translate.rs"]
mod translate;
#[path = "tunnels/tunnel.rs"]
mod tunnel;
#[path = "node/view.rs"]
mod view;

pub use bulk::{Cipher, Ciphers, LANES, TYPE as BULK_TYPE};
pub use config::{Config, Limits};
pub use counters::{Counters, DropReason, Traffic};
pub use event::{Denial, Event};
pub use node::{Deaf, Node, Owner, Owners, PeerName, Received, SendError, Transmit, TunWriter};
pub use outbox::{Outbox, segments_per_run};
pub use receive::Inbox;
pub use sealing::Sealing;
pub use state::State;
pub use task::{Hairpin, Task};
pub use tunnel::public_key;
pub use view::{FlowState, FlowView, PeerView};
