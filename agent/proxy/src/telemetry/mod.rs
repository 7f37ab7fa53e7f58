//! Telemetry of requests and connections: the access log, series, taps, counters.

pub(crate) mod access_log;
pub(crate) mod histogram;
pub(crate) mod metrics;
pub(crate) mod processes;
pub(crate) mod refused;
pub(crate) mod rollout_traffic;
pub(crate) mod series;
pub(crate) mod streams;
pub(crate) mod tap;
pub(crate) mod timing;
