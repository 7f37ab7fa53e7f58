//! Conversion of load balancing settings.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_proto::v1;
use v1::balance::Policy;
use v1::hash_key::Key;
use v1::health_check::Probe;

use super::decode::{Reason, bounded, filled, number, parse, text};
use super::routes::{rooted, whole_millis};
use crate::balance::{Balance, BalancePolicy, HashKey};
use crate::name::Name;
use crate::resilience::{Breaker, HealthCheck, HealthProbe, Outlier};

/// Hosts whose weight is told.
const MAX_WEIGHTS: usize = 20_000;
/// Longer times are a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn encode(balance: &Balance) -> v1::Balance {
    let Balance {
        policy,
        weights,
        locality,
        slow_start,
        panic_threshold,
        breaker,
        outlier,
        health,
    } = balance;
    v1::Balance {
        policy: Some(encode_policy(policy)),
        weights: weights.iter().map(|(host, weight)| (host.to_string(), *weight)).collect(),
        ignore_locality: !locality,
        slow_start_ms: slow_start.map_or(0, whole_millis),
        panic_threshold: (*panic_threshold).into(),
        breaker: Some(v1::Breaker {
            max_connections: breaker.max_connections,
            max_pending_requests: breaker.max_pending_requests,
            max_requests: breaker.max_requests,
            max_retries: breaker.max_retries,
        }),
        outlier: Some(v1::Outlier {
            consecutive_5xx: outlier.consecutive_5xx,
            consecutive_local_origin_failure: outlier.consecutive_local_origin_failure,
            interval_ms: whole_millis(outlier.interval),
            base_ejection_time_ms: whole_millis(outlier.base_ejection_time),
            max_ejection_time_ms: whole_millis(outlier.max_ejection_time),
            max_ejection_percent: outlier.max_ejection_percent.into(),
            success_rate_minimum_hosts: outlier.success_rate_minimum_hosts,
            success_rate_request_volume: outlier.success_rate_request_volume,
            success_rate_stdev_factor: outlier.success_rate_stdev_factor,
        }),
        health: health.as_ref().map(encode_health),
    }
}

fn encode_health(health: &HealthCheck) -> v1::HealthCheck {
    let probe = match &health.probe {
        HealthProbe::Tcp => Probe::Tcp(true),
        HealthProbe::Http { path } => Probe::Http(path.to_string()),
        HealthProbe::Grpc { service } => Probe::Grpc(service.to_string()),
    };
    v1::HealthCheck {
        probe: Some(probe),
        interval_ms: whole_millis(health.interval),
        timeout_ms: whole_millis(health.timeout),
        healthy_threshold: health.healthy_threshold,
        unhealthy_threshold: health.unhealthy_threshold,
    }
}

fn encode_policy(policy: &BalancePolicy) -> Policy {
    let key = |key: &HashKey| {
        let key = match key {
            HashKey::Header(name) => Key::Header(name.to_string()),
            HashKey::Cookie(name) => Key::Cookie(name.to_string()),
            HashKey::Source => Key::Source(true),
        };
        v1::HashKey { key: Some(key) }
    };
    match policy {
        BalancePolicy::PeakEwma => Policy::PeakEwma(true),
        BalancePolicy::LeastRequest => Policy::LeastRequest(true),
        BalancePolicy::RoundRobin => Policy::RoundRobin(true),
        BalancePolicy::RingHash(by) => Policy::RingHash(key(by)),
        BalancePolicy::Maglev(by) => Policy::Maglev(key(by)),
    }
}

pub(super) fn decode(body: &v1::Balance) -> Result<Balance, Reason> {
    bounded("weights", body.weights.len(), MAX_WEIGHTS)?;
    let weight = |(host, weight): (&String, &u32)| -> Result<(Name, u32), Reason> {
        bounded("weights", *weight as usize, Balance::MAX_WEIGHT as usize)?;
        Ok((parse("weights", host)?, *weight))
    };
    let slow_start = (body.slow_start_ms != 0).then(|| time(body.slow_start_ms));
    Ok(Balance {
        policy: decode_policy(body)?,
        weights: body.weights.iter().map(weight).collect::<Result<BTreeMap<_, _>, _>>()?,
        locality: !body.ignore_locality,
        slow_start: slow_start.transpose()?,
        panic_threshold: percent(body.panic_threshold)?,
        breaker: body.breaker.as_ref().map(decode_breaker).transpose()?.unwrap_or_default(),
        outlier: body.outlier.as_ref().map(decode_outlier).transpose()?.unwrap_or_default(),
        health: body.health.as_ref().map(decode_health).transpose()?,
    })
}

fn decode_health(body: &v1::HealthCheck) -> Result<HealthCheck, Reason> {
    let probe = body.probe.as_ref();
    let probe = probe.ok_or("health: it is of a kind that this version doesn't know")?;
    Ok(HealthCheck {
        probe: match probe {
            Probe::Tcp(_) => HealthProbe::Tcp,
            Probe::Http(path) => HealthProbe::Http { path: rooted(path)? },
            Probe::Grpc(service) => HealthProbe::Grpc { service: text("health", service)? },
        },
        interval: time(body.interval_ms)?,
        timeout: time(body.timeout_ms)?,
        healthy_threshold: number(body.healthy_threshold)?,
        unhealthy_threshold: number(body.unhealthy_threshold)?,
    })
}

fn decode_policy(body: &v1::Balance) -> Result<BalancePolicy, Reason> {
    let key = |body: &v1::HashKey| -> Result<HashKey, Reason> {
        Ok(match body.key.as_ref().ok_or("balance: nothing is hashed")? {
            Key::Header(name) => HashKey::Header(filled("balance", name)?),
            Key::Cookie(name) => HashKey::Cookie(filled("balance", name)?),
            Key::Source(_) => HashKey::Source,
        })
    };
    let unknown = "balance: it has no policy that this version knows";
    Ok(match body.policy.as_ref().ok_or(unknown)? {
        Policy::PeakEwma(_) => BalancePolicy::PeakEwma,
        Policy::LeastRequest(_) => BalancePolicy::LeastRequest,
        Policy::RoundRobin(_) => BalancePolicy::RoundRobin,
        Policy::RingHash(by) => BalancePolicy::RingHash(key(by)?),
        Policy::Maglev(by) => BalancePolicy::Maglev(key(by)?),
    })
}

fn decode_breaker(body: &v1::Breaker) -> Result<Breaker, Reason> {
    Ok(Breaker {
        max_connections: number(body.max_connections)?,
        max_pending_requests: number(body.max_pending_requests)?,
        max_requests: number(body.max_requests)?,
        max_retries: body.max_retries,
    })
}

fn decode_outlier(body: &v1::Outlier) -> Result<Outlier, Reason> {
    Ok(Outlier {
        consecutive_5xx: body.consecutive_5xx,
        consecutive_local_origin_failure: body.consecutive_local_origin_failure,
        interval: time(body.interval_ms)?,
        base_ejection_time: time(body.base_ejection_time_ms)?,
        max_ejection_time: time(body.max_ejection_time_ms)?,
        max_ejection_percent: percent(body.max_ejection_percent)?,
        success_rate_minimum_hosts: body.success_rate_minimum_hosts,
        success_rate_request_volume: body.success_rate_request_volume,
        success_rate_stdev_factor: body.success_rate_stdev_factor,
    })
}

/// More than nothing, and not more than a day.
fn time(millis: u64) -> Result<Duration, Reason> {
    let time = Duration::from_millis(millis);
    if time.is_zero() || time > LONGEST {
        return Err(format!("balance: a time of {millis} ms"));
    }
    Ok(time)
}

fn percent(number: u32) -> Result<u8, Reason> {
    let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
    percent.ok_or_else(|| format!("balance: {number} percent are more than all"))
}
