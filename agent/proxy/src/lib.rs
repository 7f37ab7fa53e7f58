//! The proxy: routes and judges requests to services that speak HTTP.
//!
//! It stands at both sides. At the client's ([`exchange::outbound`]) it chooses who takes a request; at the
//! server's it decides whether it may pass. There the flow table gives a workload's HTTP port to the proxy, so that
//! the two addresses of an accepted connection say everything: the local one is the workload that
//! was called, the remote one is who calls, already verified by the tunnel. The proxy never guesses
//! an identity, and it believes no header about one.
//!
//! ```text
//!  caller ── tunnel ── flow table ──▶ WORKLOAD:15001 (proxy) ──▶ WORKLOAD:8080 (application)
//! ```
//!
//! | room | has | uses |
//! | --- | --- | --- |
//! | [`config`] | one revision of the mesh: routes, limits, keys, ready for look-ups | `isthmus_http`, model, policy |
//! | [`cluster`] | the workloads of services: which takes a request, breakers, health | what stands above |
//! | [`pool`] | connections to applications and other proxies, and the bodies that go out | what stands above |
//! | [`telemetry`] | access log, series, taps, counters | what stands above |
//! | [`caller`] | who calls on a connection, and what they may | what stands above |
//! | [`exchange`] | one request: its checks in order, and who answers it | what stands above |
//! | [`opaque`] | one connection without requests | what stands above, but [`exchange`] |
//! | [`serve`] | threads, sockets, start and stop | all |
//!
//! Every request is judged by the newest [`ProxySnapshot`]. When the view changes, each open connection is
//! judged again: one whose caller may no longer reach the service at all is cut at once, idle or
//! not; the others don't notice. What a refusal was decided by is in the access log (target
//! `isthmus::access`), never in the answer.

#![forbid(unsafe_code)]

mod caller;
mod cluster;
mod config;
mod exchange;
mod opaque;
mod pool;
mod serve;
mod telemetry;
#[cfg(test)]
mod tests;

pub use crate::cluster::dial::{Bind, Speaker};
pub use crate::cluster::endpoint::{BreakerView, EndpointView};
pub use crate::cluster::health::HealthView;
pub use crate::cluster::silence::Silence;
pub use crate::config::host_services::HostServices;
pub use crate::config::jwt::KeyFailure;
pub use crate::config::parties::Side;
pub use crate::config::ratelimit::{Demand, LimitView, RateLimits};
pub use crate::config::view::ProxySnapshot;
pub use crate::serve::gateway::{GatewayIo, Visitor};
pub use crate::serve::{Options, serve};
pub use crate::telemetry::histogram::Histogram;
pub use crate::telemetry::metrics::{Metrics, MetricsSnapshot, Ruling};
pub use crate::telemetry::processes::{Process, Processes};
pub use crate::telemetry::refused::RefusedRequest;
pub use crate::telemetry::rollout_traffic::{Measured, Traffic};
pub use crate::telemetry::series::{SeriesLabels, SeriesSnapshot, StatusClass};
pub use crate::telemetry::streams::{StreamLabels, StreamTotals};
pub use crate::telemetry::tap::{Finished, FinishedTrace, Tap, TapFilter};
pub use crate::telemetry::timing::Parts;
pub use isthmus_http::trace::{SpanId, TraceId, TraceParent};
