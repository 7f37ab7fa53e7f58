use isthmus_model::{LimitKey, LimitScope, Origin, RateLimit, ServiceId};
use isthmus_proxy::{Histogram, Ruling, SeriesLabels, Side, StatusClass};

use super::*;
use crate::local::tests::state;

fn scrape(sample: Option<Sample>, status: Status) -> String {
    let scrape = Scrape {
        sample,
        status,
        now: SystemTime::now(),
        owners: Arc::default(),
        proxy: proxy(),
        endpoints: Vec::new(),
        breakers: vec![
            BreakerView { service: ServiceId(1), limit: "max_requests", taken: 3, most: Some(3) },
            BreakerView { service: ServiceId(1), limit: "max_retries", taken: 1, most: None },
        ],
        limits: vec![limit()],
        spans: [("sent", 5), ("refused", 0), ("lost", 0)],
        restored: 3,
        memory: Usage { resident: 9 << 20, anonymous: 2 << 20, proportional: Some(5 << 20) },
    };
    scrape.encode().unwrap()
}

fn limit() -> LimitView {
    let limit = RateLimit {
        name: "search".parse().unwrap(),
        service: "api".parse().unwrap(),
        matches: Vec::new(),
        rate: 50_000,
        burst: 10,
        per: LimitKey::Identity,
        scope: LimitScope::Host,
        hosts: 1,
        origin: Origin { file: "mesh.toml".into(), line: 7 },
    };
    LimitView { limit, share: 50_000, passed: 40, refused: 2, refused_by: Vec::new() }
}

/// Three requests of a client, by way of a route whose name needs escaping.
fn proxy() -> MetricsSnapshot {
    let mut latency = Histogram::default();
    for millis in [2, 30, 30_000] {
        latency.observe(Duration::from_millis(millis));
    }
    let labels = SeriesLabels {
        side: Side::Client,
        source: "service:web".to_owned(),
        service: "api".to_owned(),
        backend: "api-v1".to_owned(),
        route: "the \"old\" one".to_owned(),
        ruling: Ruling::Allow,
    };
    let series = SeriesSnapshot {
        labels,
        status: StatusClass::Success,
        successes: 3,
        retries: 1,
        request_bytes: 7,
        response_bytes: 8,
        latency,
    };
    let ejections = vec![("api".to_owned(), 4)];
    MetricsSnapshot { series: vec![series], ejections, ..MetricsSnapshot::default() }
}

#[test]
fn requests_are_told_with_their_labels_and_few_buckets() {
    let text = scrape(None, Status::default());
    let labels = "side=\"client\",source=\"service:web\",service=\"api\",route=\"the \\\"old\\\" one\",\
                  backend=\"api-v1\",verdict=\"allow\",status=\"2xx\"";
    for line in [
        format!("isthmus_requests_total{{{labels}}} 3"),
        format!("isthmus_request_successes_total{{{labels}}} 3"),
        format!("isthmus_request_retries_total{{{labels}}} 1"),
        format!("isthmus_response_body_bytes_total{{{labels}}} 8"),
        format!("isthmus_request_duration_seconds_bucket{{le=\"0.0025\",{labels}}} 1"),
        format!("isthmus_request_duration_seconds_bucket{{le=\"10.0\",{labels}}} 2"),
        format!("isthmus_request_duration_seconds_bucket{{le=\"+Inf\",{labels}}} 3"),
        format!("isthmus_request_duration_seconds_count{{{labels}}} 3"),
        "isthmus_spans_total{fate=\"sent\"} 5".to_owned(),
        "isthmus_network_restored_total 3".to_owned(),
        "isthmus_resident_memory_bytes 9437184".to_owned(),
        "isthmus_anonymous_memory_bytes 2097152".to_owned(),
        "isthmus_proportional_memory_bytes 5242880".to_owned(),
        "isthmus_ejections_total{service=\"api\"} 4".to_owned(),
        "isthmus_breaker_taken{service=\"\",limit=\"max_retries\"} 1".to_owned(),
        "isthmus_breaker_open{service=\"\",limit=\"max_requests\"} 1".to_owned(),
        "isthmus_breaker_open{service=\"\",limit=\"max_retries\"} 0".to_owned(),
        "isthmus_rate_limit_requests_total{service=\"api\",limit=\"search\",outcome=\"refused\"} 2"
            .to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    assert!(text.lines().filter(|line| line.contains("_bucket{")).count() <= 13);
}

#[test]
fn an_unjoined_agent_has_metrics_too() {
    let text = scrape(None, Status::default());
    assert!(text.contains("isthmus_joined 0\n"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn metrics_tell_what_they_count_in_which_unit() {
    let status = Status { state: Some(Arc::new(state())), ..Status::default() };
    let text = scrape(Some(Sample::default()), status);
    for line in [
        "isthmus_revision 4",
        "isthmus_dropped_packets_total{reason=\"forged\"} 0",
        "isthmus_traffic_bytes_total{way=\"to_underlay\"} 0",
        "# UNIT isthmus_snapshot_age_seconds seconds",
        "isthmus_tunnels{state=\"up\"} 0",
        "isthmus_handshakes_total{result=\"failed\"} 0",
        "isthmus_socket_lookups_total{result=\"found\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
}

#[test]
fn every_metric_has_help_and_none_is_there_twice() {
    let status = Status { state: Some(Arc::new(state())), ..Status::default() };
    let text = scrape(Some(Sample::default()), status);
    let named = |prefix: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix(prefix)?.split(' ').next())
            .map(str::to_owned)
            .collect()
    };
    let (types, helps) = (named("# TYPE "), named("# HELP "));
    assert_eq!(types, helps);
    let distinct: std::collections::BTreeSet<_> = types.iter().collect();
    assert_eq!(distinct.len(), types.len());
}
