//! Resilience settings: outlier detection, circuit breakers, health checks. The words,
//! and the defaults where nothing else is said, are Envoy's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// `breaker` of a service: what each host's callers may have of it at a time, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Connections to its workloads. Each workload may have one in any case.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way. Without it, only the retry budget limits them, which takes the place of
    /// Envoy's 3 there, too.
    pub max_retries: Option<u32>,
}

/// `outlier` of a service: when a workload is ejected, and for how long. Detectors are off at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Failures in a row: 5xx, 429, no answer, and gRPC's likes.
    pub consecutive_5xx: u32,
    /// Of these, such without any answer: refused, broken off, timed out.
    pub consecutive_local_origin_failure: u32,
    /// Between two looks at success rates.
    pub interval: Duration,
    /// The first ejection's time; each next one's is twice as long. Envoy's is 30 s; here a single
    /// request tells whether it is over, so that less does no harm.
    pub base_ejection_time: Duration,
    /// No ejection is longer.
    pub max_ejection_time: Duration,
    /// Of the workloads. One may be ejected in any case.
    pub max_ejection_percent: u8,
    /// Success rates are compared if so many workloads had enough requests in an interval.
    pub success_rate_minimum_hosts: u32,
    /// What is enough.
    pub success_rate_request_volume: u32,
    /// Whose success rate is lower than the mean by more than so many thousandths of a standard
    /// deviation is ejected.
    pub success_rate_stdev_factor: u32,
}

/// `health` of a service: how its workloads are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What they are asked.
    pub probe: HealthProbe,
    /// From one check to the next.
    pub interval: Duration,
    /// For each.
    pub timeout: Duration,
    /// Checks passed in a row that make a workload healthy again.
    pub healthy_threshold: u32,
    /// Checks failed in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
}

/// Kind of health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// `tcp`: connects.
    Tcp,
    /// `http`: gets this path; 200 to 399 is well.
    Http {
        /// With its query, if any.
        path: Arc<str>,
    },
    /// `grpc`: asks gRPC's health service.
    Grpc {
        /// About this service; empty for the whole server.
        service: Arc<str>,
    },
}

impl HealthCheck {
    /// With the usual times and thresholds.
    #[must_use]
    pub const fn new(probe: HealthProbe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            HealthProbe::Tcp => f.write_str("tcp")?,
            HealthProbe::Http { path } => write!(f, "http {path}")?,
            HealthProbe::Grpc { service } => write!(f, "grpc {service:?}")?,
        }
        write!(
            f,
            " every {:?} within {:?}, {} well, {} unwell",
            self.interval, self.timeout, self.healthy_threshold, self.unhealthy_threshold
        )
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: None,
        }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_local_origin_failure: 5,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(1),
            max_ejection_time: Duration::from_secs(60),
            max_ejection_percent: 50,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
        }
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_connections, max_pending_requests, max_requests, max_retries } = self;
        write!(
            f,
            "{max_connections} connections, {max_pending_requests} pending, {max_requests} requests"
        )?;
        max_retries.map_or(Ok(()), |retries| write!(f, ", {retries} retries"))
    }
}

impl fmt::Display for Outlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in a row ({} unanswered), {:?} to {:?}, at most {} %, \
             success rate of {} in {:?} by {} hosts within {} thousandths",
            self.consecutive_5xx,
            self.consecutive_local_origin_failure,
            self.base_ejection_time,
            self.max_ejection_time,
            self.max_ejection_percent,
            self.success_rate_request_volume,
            self.interval,
            self.success_rate_minimum_hosts,
            self.success_rate_stdev_factor,
        )
    }
}
