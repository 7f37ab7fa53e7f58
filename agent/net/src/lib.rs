//! The operating system, as the agent sees it.
//!
//! Everything the agent asks of Linux goes through this crate, and it is the only one that may
//! contain `unsafe`. It knows nothing of services, policy or tunnels: it moves bytes and answers
//! questions.
//!
//! Two kinds of caller use it. The **data plane** is some threads that sleep in [`poll::Poller`]
//! over a queue of a [`tun::Tun`], or [`udp::UdpSocket`]s, and a [`poll::Waker`]; what it calls is
//! synchronous, never blocks beyond a stated bound and doesn't allocate per packet. When a new
//! flow appears it asks [`sock_diag::SocketDiag`] whose socket it is, and [`cgroup::Cgroups`] and
//! [`process`] what runs behind it. The **control plane** runs in tokio: it shapes links,
//! addresses and routes through [`netlink::Netlink`] and hears of changes from
//! [`monitor::AddressMonitor`].
//!
//! Network namespaces are a property of the *thread* that creates a socket. Nothing here keeps
//! global state, so a thread that entered a namespace gets answers about that namespace.

#![cfg(target_os = "linux")]

mod bpf;
pub mod cgroup;
pub mod handed_over;
pub mod holders;
pub mod listen;
pub mod memory;
pub mod monitor;
pub mod namespaces;
pub mod netlink;
pub mod poll;
pub mod privileges;
pub mod process;
mod refusals;
pub mod routes;
pub mod rules;
pub mod ruleset;
pub mod senders;
pub mod sock_diag;
pub mod steering;
pub mod sysctl;
pub mod tun;
pub mod udp;
mod underlay;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
