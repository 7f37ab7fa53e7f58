//! The proxy: routes and judges requests to services that speak HTTP.
//!
//! It stands at both sides. At the client's ([`outbound`]) it chooses who takes a request; at the
//! server's it decides whether it may pass. There the flow table gives a workload's HTTP port to the proxy, so that
//! the two addresses of an accepted connection say everything: the local one is the workload that
//! was called, the remote one is who calls, already verified by the tunnel. The proxy never guesses
//! an identity, and it believes no header about one.
//!
//! ```text
//!  caller ── tunnel ── flow table ──▶ WORKLOAD:15001 (proxy) ──▶ WORKLOAD:8080 (application)
//! ```
//!
//! Every request is judged by the newest [`View`]. When the view changes, each open connection is
//! judged again: one whose caller may no longer reach the service at all is cut at once, idle or
//! not; the others don't notice. What a refusal was decided by is in the access log (target
//! `isthmus::access`), never in the answer.

#![forbid(unsafe_code)]

mod access;
mod activity;
mod backend;
mod balance;
mod body;
mod chance;
mod connection;
mod gate;
mod gateway;
mod gather;
mod grpc;
mod headers;
mod health;
mod histogram;
mod http1;
mod idle;
mod incoming;
mod io;
mod judge;
mod jwt;
mod limits;
mod live;
mod measured;
mod metrics;
mod outbound;
mod places;
mod processes;
mod ratelimit;
mod reach;
mod replay;
mod request;
mod routing;
mod series;
mod server;
mod silence;
pub mod sniff;
mod standing;
mod streams;
#[cfg(test)]
mod tests;
mod timing;
mod trace;
mod tunnel;
mod upgrade;
mod view;
mod watch;
mod windows;
mod worker;

pub use backend::{Bind, Speaker};
pub use gateway::{Edge, Outside, Visitor};
pub use health::HealthView;
pub use histogram::Histogram;
#[cfg(feature = "probe")]
pub use http1::probe;
pub use jwt::KeyFailure;
pub use measured::{Measured, Traffic};
pub use metrics::{Metrics, MetricsSnapshot, Ruling};
pub use outbound::{BreakerView, EndpointView};
pub use processes::{Process, Processes};
pub use ratelimit::{Demand, LimitView, RateLimits};
pub use series::{SeriesLabels, SeriesSnapshot, StatusClass};
pub use server::{Options, serve};
pub use silence::Silence;
pub use streams::{StreamLabels, StreamTotals};
pub use timing::Parts;
pub use trace::{SpanId, TraceId, TraceParent};
pub use view::{Side, View};
pub use watch::{Finished, FinishedTrace, Tap, TapFilter};
