//! Every metric of the agent, each with its unit and help, written down in one place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use isthmus_core::Traffic;
use isthmus_net::memory::Usage;
use isthmus_proxy::{
    BreakerView, EndpointView, LimitView, MetricsSnapshot, SeriesSnapshot, StreamLabels,
    StreamTotals,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::dataplane::{LaneLoad, Sample};
use crate::owners::OwnerCounters;
use crate::status::Status;
use crate::words::peer_state;

/// All values at one moment.
#[derive(Debug)]
pub(super) struct Scrape {
    /// None while there is no data plane.
    pub(super) sample: Option<Sample>,
    pub(super) status: Status,
    pub(super) now: SystemTime,
    pub(super) owners: Arc<OwnerCounters>,
    pub(super) proxy: MetricsSnapshot,
    pub(super) endpoints: Vec<EndpointView>,
    pub(super) breakers: Vec<BreakerView>,
    pub(super) limits: Vec<LimitView>,
    /// By what became of them.
    pub(super) spans: [(&'static str, u64); 3],
    /// Of the overlay's network.
    pub(super) restored: u64,
    pub(super) memory: Usage,
}

impl Scrape {
    /// In OpenMetrics' text format.
    pub(super) fn encode(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("isthmus");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.membership(&mut out)?;
        self.owners(&mut out)?;
        let help = "Addresses, routes, rules and settings of the overlay that others took away, and that were put back";
        out.counter("network_restored", help, self.restored)?;
        self.memory(&mut out)?;
        self.requests(&mut out)?;
        self.connections(&mut out)?;
        self.balancing(&mut out)?;
        self.limits(&mut out)?;
        self.streams(&mut out)?;
        let Some(sample) = &self.sample else { return Ok(()) };
        traffic(&mut out, sample)?;
        tunnels(&mut out, sample)?;
        flows(&mut out, sample)
    }
}

impl Scrape {
    fn membership(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        let joined = i64::from(status.member.is_some());
        out.gauge("joined", "Whether this host is a member of a mesh", joined)?;
        let connected = i64::from(status.connected);
        out.gauge("controller_connected", "Whether the control stream is up", connected)?;
        let revision = status.state.as_ref().map_or(0, |state| state.revision().0);
        out.gauge(
            "revision",
            "The revision that this host works by, 0 for none",
            signed(revision),
        )?;
        let refused = i64::from(!status.refusal.is_empty());
        out.gauge("revision_refused", "Whether this host refused a newer revision", refused)?;
        let age = signed(status.snapshot_age(self.now).as_secs());
        let help = "Time since the controller last confirmed the snapshot";
        out.gauge_in("snapshot_age", help, Unit::Seconds, age)?;
        let Some(certificate) = status.certificate else { return Ok(()) };
        let left = certificate.until.duration_since(self.now).unwrap_or_default().as_secs();
        let help = "Time until this host's certificate expires";
        out.gauge_in("certificate_remaining", help, Unit::Seconds, signed(left))
    }

    fn memory(&self, out: &mut Out<'_>) -> fmt::Result {
        let Usage { resident, anonymous, proportional } = self.memory;
        let help =
            "Memory of the agent, with its program, which the system can have back at any time";
        out.gauge_in("resident_memory", help, Unit::Bytes, signed(resident))?;
        let help = "Memory that the agent has for itself: heap and stacks";
        out.gauge_in("anonymous_memory", help, Unit::Bytes, signed(anonymous))?;
        let Some(proportional) = proportional else { return Ok(()) };
        let help =
            "The agent's share of memory: what several processes use is divided between them";
        out.gauge_in("proportional_memory", help, Unit::Bytes, signed(proportional))
    }

    fn owners(&self, out: &mut Out<'_>) -> fmt::Result {
        let OwnerCounters { found, unknown, failed, program_searches, ties: _ } = &*self.owners;
        let help = "Look-ups of the socket that opened a flow, by result";
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let results = [("found", found), ("unknown", unknown), ("failed", failed)];
        let results = results.map(|(result, counter)| ([("result", result)], value(counter)));
        out.counters("socket_lookups", help, None, results)?;
        let help = "Searches among processes for the program that opened a flow";
        out.counter("program_searches", help, value(program_searches))
    }

    /// What the proxy counted, at the caller's side (routed) and at the called service's (judged).
    fn requests(&self, out: &mut Out<'_>) -> fmt::Result {
        type Count = fn(&SeriesSnapshot) -> u64;
        let counters: [(&str, &str, Option<Unit>, Count); 5] = [
            ("requests", "HTTP requests that ended", None, |it| it.latency.count()),
            (
                "request_successes",
                "Those that the server isn't to blame for: no 5xx, no such gRPC status, an answer to its end",
                None,
                |it| it.successes,
            ),
            ("request_retries", "Tries of requests beyond the first", None, |it| it.retries),
            ("request_body", "Bytes of requests' bodies", Some(Unit::Bytes), |it| it.request_bytes),
            ("response_body", "Bytes of answers' bodies", Some(Unit::Bytes), |it| {
                it.response_bytes
            }),
        ];
        for (name, help, unit, value) in counters {
            let series = self.proxy.series.iter().map(|it| (labels(it), value(it)));
            out.counters(name, help, unit, series)?;
        }
        let help = "Time from a request's head to the end of its answer";
        out.histograms("request_duration", help, &self.proxy.series)
    }

    fn connections(&self, out: &mut Out<'_>) -> fmt::Result {
        let proxy = &self.proxy;
        let help = "Open connections to the proxy";
        out.gauge("proxy_connections", help, signed(proxy.active_connections))?;
        let help = "Connections to the proxy, by what became of them";
        let fates = [
            ([("fate", "accepted")], proxy.accepted_connections),
            ([("fate", "refused")], proxy.refused_connections),
            ([("fate", "cut")], proxy.cut_connections),
        ];
        out.counters("proxy_connections_seen", help, None, fates)?;
        let help = "Spans of traced requests, by what became of them";
        let spans = self.spans.map(|(fate, count)| ([("fate", fate)], count));
        out.counters("spans", help, None, spans)
    }

    fn limits(&self, out: &mut Out<'_>) -> fmt::Result {
        let help = "Requests that rate limits looked at, by what became of them";
        let outcomes = self.limits.iter().flat_map(|view| {
            let (service, limit) = (view.limit.service.as_str(), view.limit.name.as_str());
            let labels = |outcome| [("service", service), ("limit", limit), ("outcome", outcome)];
            [(labels("passed"), view.passed), (labels("refused"), view.refused)]
        });
        out.counters("rate_limit_requests", help, None, outcomes)
    }

    fn balancing(&self, out: &mut Out<'_>) -> fmt::Result {
        let help = "Workloads that got no requests for a while, since they kept failing";
        let ejections = self.proxy.ejections.iter();
        let ejections = ejections.map(|(service, count)| ([("service", service)], *count));
        out.counters("ejections", help, None, ejections)?;
        let help = "Whether the workload of a service here fails its health check";
        let health = self.proxy.health.iter();
        let health = health.map(|it| ([("service", &*it.service)], i64::from(!it.healthy)));
        out.gauges("health_unhealthy", help, health)?;
        let help = "Health checks of workloads here, by service and result";
        let checks = self.proxy.health.iter().flat_map(|it| {
            let series = |result, count| ([("service", &*it.service), ("result", result)], count);
            [series("pass", it.passed), series("fail", it.failed)]
        });
        out.counters("health_checks", help, None, checks)?;
        let help = "Requests that another workload got, too, since the first one took long";
        out.counter("hedges", help, self.proxy.hedges)?;
        let help = "Requests and retries that breakers refused, by the limit that did";
        let overflows = self.proxy.overflows.iter();
        let overflows = overflows.map(|(limit, count)| ([("limit", *limit)], *count));
        out.counters("overflows", help, None, overflows)?;
        let state = self.status.state.as_ref();
        let name = |service| {
            let service = state.and_then(|state| state.snapshot.services.get(&service));
            service.map_or_else(String::new, |service| service.name.to_string())
        };
        let breakers: Vec<_> = self.breakers.iter().map(|it| (name(it.service), it)).collect();
        let of = |of: fn(&BreakerView) -> i64| {
            breakers.iter().map(move |(service, it)| {
                ([("service", service.as_str()), ("limit", it.limit)], of(it))
            })
        };
        let help = "How much of the limits of services' breakers callers of this host have taken";
        out.gauges("breaker_taken", help, of(|it| signed(it.taken)))?;
        let help = "Whether a breaker would refuse more";
        out.gauges("breaker_open", help, of(|it| i64::from(it.is_open())))?;
        let mut counts: BTreeMap<_, i64> = BTreeMap::new();
        for view in &self.endpoints {
            let state = if view.ejected { "ejected" } else { "healthy" };
            *counts.entry((name(view.service), state)).or_default() += 1;
        }
        let help = "Workloads that requests of this host may go to, by state";
        let endpoints = counts.iter().map(|((service, state), count)| {
            ([("service", service.as_str()), ("state", *state)], *count)
        });
        out.gauges("endpoints", help, endpoints)
    }

    fn streams(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |value: fn(&StreamTotals) -> u64| {
            self.proxy.streams.iter().map(move |(labels, it)| (stream_labels(labels), value(it)))
        };
        let help = "Connections without requests that the proxy judged, by service, side, what they carry and ruling";
        out.counters("streams", help, None, of(|it| it.connections))?;
        let help = "Those that ended, by the same";
        out.counters("streams_ended", help, None, of(|it| it.connections - it.active))?;
        let help = "Their bytes from callers, by the same";
        out.counters("stream_sent", help, Some(Unit::Bytes), of(|it| it.bytes_up))?;
        let help = "Their bytes to callers, by the same";
        out.counters("stream_received", help, Some(Unit::Bytes), of(|it| it.bytes_down))
    }
}

/// In seconds. Few, since each is a series; `agentctl stat` has quantiles that are true to 1 %.
const DURATION_BOUNDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

fn labels(series: &SeriesSnapshot) -> [(&'static str, &str); 7] {
    let labels = &series.labels;
    [
        ("side", labels.side.as_str()),
        ("source", &labels.source),
        ("service", &labels.service),
        ("route", &labels.route),
        ("backend", &labels.backend),
        ("verdict", labels.ruling.as_str()),
        ("status", series.status.as_str()),
    ]
}

fn stream_labels(labels: &StreamLabels) -> [(&'static str, String); 4] {
    [
        ("service", labels.service.clone()),
        ("side", labels.side.to_owned()),
        ("carries", labels.carries.to_owned()),
        ("ruling", labels.ruling.to_string()),
    ]
}

fn traffic(out: &mut Out<'_>, sample: &Sample) -> fmt::Result {
    let counters = &sample.counters;
    let ways: [(&str, Traffic); 4] = [
        ("from_host", counters.from_tun),
        ("to_host", counters.to_tun),
        ("from_underlay", counters.received),
        ("to_underlay", counters.sent),
    ];
    let packets = ways.map(|(way, traffic)| ([("way", way)], traffic.packets));
    let help = "Packets of the overlay's device and datagrams of the underlay, by way";
    out.counters("packets", help, None, packets)?;
    let bytes = ways.map(|(way, traffic)| ([("way", way)], traffic.bytes));
    out.counters("traffic", "Their bytes, by way", Some(Unit::Bytes), bytes)?;
    let help = "Packets that went no further, by reason";
    let drops = counters.drops().map(|(reason, count)| ([("reason", reason.label())], count));
    out.counters("dropped_packets", help, None, drops)?;
    out.counter("refusals", "TCP resets and ICMP errors made here", counters.refusals)?;
    let help = "Packets sent although larger than the path, to be fragmented on the way";
    out.counter("oversized_packets", help, counters.oversized)?;
    let help = "Datagrams for which the kernel's send buffer had no room";
    out.counter("send_buffer_full", help, sample.send_busy)?;
    let help = "Packets that the overlay's device didn't take";
    out.counter("device_refused_packets", help, sample.tun_refused)?;
    let help = "Frames of the overlay's device that weren't understood";
    out.counter("device_strange_frames", help, sample.tun_strange)?;
    let numbered = |count: fn(&LaneLoad) -> u64| {
        let lanes = sample.lanes.iter().enumerate();
        lanes.map(move |(lane, load)| ([("lane", lane.to_string())], count(load)))
    };
    let help = "Frames of the overlay's device, by the lane that read them";
    out.counters("lane_frames", help, None, numbered(|load| load.frames))?;
    let help = "Messages of one datagram or many, by the lane that read them";
    out.counters("lane_messages", help, None, numbered(|load| load.messages))?;
    let help = "Whether datagrams are sent in batches (UDP GSO)";
    out.gauge("udp_gso_enabled", help, i64::from(sample.gso))
}

fn tunnels(out: &mut Out<'_>, sample: &Sample) -> fmt::Result {
    let count = |state: &'static str| {
        let in_state = sample.peers.iter().filter(|peer| peer_state(peer) == state).count();
        ([("state", state)], signed(in_state as u64))
    };
    let states = ["up", "connecting", "idle"].map(count);
    out.gauges("tunnels", "Tunnels to hosts and devices, by state", states)?;
    let counters = &sample.counters;
    let handshakes = [
        ([("result", "initiated")], counters.handshakes_initiated),
        ([("result", "answered")], counters.handshakes_answered),
        ([("result", "completed")], counters.handshakes_completed),
        ([("result", "failed")], counters.handshakes_failed),
    ];
    out.counters("handshakes", "WireGuard handshakes, by what became of them", None, handshakes)
}

fn flows(out: &mut Out<'_>, sample: &Sample) -> fmt::Result {
    let counters = &sample.counters;
    out.gauge("flows", "Flows in the table, denied ones included", signed(sample.flows as u64))?;
    let changes = [
        ([("change", "created")], counters.flows_created),
        ([("change", "removed")], counters.flows_removed),
        ([("change", "evicted")], counters.flows_evicted),
        ([("change", "rejudged")], counters.flows_rejudged),
        ([("change", "cut")], counters.flows_cut),
    ];
    out.counters("flow_changes", "Changes of the flow table", None, changes)?;
    let verdicts: Vec<_> = counters
        .verdicts()
        .map(|(rule, outcome, count)| {
            ([("rule", rule.to_owned()), ("verdict", outcome.to_string())], count)
        })
        .collect();
    out.counters("verdicts", "Flows judged, by the rule that decided", None, verdicts)?;
    out.counter("events_lost", "Events that nobody took in time", counters.events_lost)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The few shapes that our metrics have.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<const N: usize, V: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        series: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        let mut metric =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in series {
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_ref()));
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn gauge_in(&mut self, name: &str, help: &str, unit: Unit, value: i64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    /// Of latencies, in seconds.
    fn histograms(&mut self, name: &str, help: &str, series: &[SeriesSnapshot]) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for one in series {
            let latency = &one.latency;
            let mut below = 0;
            let mut buckets = Vec::with_capacity(DURATION_BOUNDS.len() + 1);
            for bound in DURATION_BOUNDS {
                let within = latency.within(Duration::from_secs_f64(bound));
                buckets.push((bound, within - below));
                below = within;
            }
            buckets.push((f64::INFINITY, latency.count() - below));
            let (sum, count) = (latency.sum().as_secs_f64(), latency.count());
            let labels = labels(one);
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn gauges<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, &'v str); N], i64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
