//! Traffic by source, service and route as the local API's messages.

use std::collections::BTreeMap;

use isthmus_proto::v1;
use isthmus_proxy::{Histogram, Ruling, SeriesLabels, SeriesSnapshot, Side};

use super::routes::micros;
use crate::telemetry::Window;

/// Source of the rows.
type Key<'a> = (Side, &'a str, &'a str, &'a str, &'a str);

pub(super) fn traffic(window: &Window) -> v1::Traffic {
    let mut rows: BTreeMap<Key<'_>, (v1::TrafficRow, Histogram)> = BTreeMap::new();
    for series in &window.series {
        let SeriesLabels { side, source, service, route, backend, .. } = &series.labels;
        let (row, latency) = rows.entry((*side, source, service, route, backend)).or_default();
        add(row, series);
        latency.add(&series.latency);
    }
    let row = |((side, source, service, route, backend), (row, latency)): (Key<'_>, _)| {
        let latency: Histogram = latency;
        v1::TrafficRow {
            side: side.as_str().to_owned(),
            source: source.to_owned(),
            service: service.to_owned(),
            route: route.to_owned(),
            backend: backend.to_owned(),
            p50_microseconds: micros(latency.quantile(0.5)),
            p95_microseconds: micros(latency.quantile(0.95)),
            p99_microseconds: micros(latency.quantile(0.99)),
            ..row
        }
    };
    let ejections = window.ejections.iter();
    v1::Traffic {
        milliseconds: u64::try_from(window.time.as_millis()).unwrap_or(u64::MAX),
        rows: rows.into_iter().map(row).collect(),
        ejections: ejections
            .map(|(service, count)| v1::Counter { name: service.clone(), value: *count })
            .collect(),
    }
}

fn add(row: &mut v1::TrafficRow, series: &SeriesSnapshot) {
    let requests = series.latency.count();
    row.requests += requests;
    row.successes += series.successes;
    row.retries += series.retries;
    row.request_bytes += series.request_bytes;
    row.response_bytes += series.response_bytes;
    if series.labels.ruling == Ruling::Deny {
        row.denied += requests;
    }
    let class = series.status.as_str();
    match row.statuses.iter_mut().find(|status| status.name == class) {
        Some(status) => status.value += requests,
        None => row.statuses.push(v1::Counter { name: class.to_owned(), value: requests }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_proxy::StatusClass;

    use super::*;

    #[test]
    fn a_row_holds_all_statuses_of_a_way() {
        let series = |ruling, status, millis: &[u64]| {
            let mut latency = Histogram::default();
            millis.iter().for_each(|it| latency.observe(Duration::from_millis(*it)));
            SeriesSnapshot {
                labels: SeriesLabels {
                    side: Side::Server,
                    source: "service:client".to_owned(),
                    service: "web".to_owned(),
                    backend: String::new(),
                    route: String::new(),
                    ruling,
                },
                status,
                successes: 1,
                retries: 0,
                request_bytes: 10,
                response_bytes: 20,
                latency,
            }
        };
        let window = Window {
            time: Duration::from_secs(60),
            series: vec![
                series(Ruling::Allow, StatusClass::Success, &[10, 20, 30]),
                series(Ruling::Allow, StatusClass::ServerError, &[40]),
                series(Ruling::Deny, StatusClass::ClientError, &[1]),
            ],
            ejections: vec![("web".to_owned(), 2)],
        };
        let traffic = traffic(&window);
        let [row] = &*traffic.rows else { panic!("{traffic:?}") };
        assert_eq!((row.requests, row.successes, row.denied), (5, 3, 1));
        assert_eq!((row.request_bytes, row.response_bytes), (30, 60));
        assert!(row.p50_microseconds.abs_diff(20_000) <= 200, "{row:?}");
        assert_eq!(row.statuses.len(), 3);
        assert_eq!((traffic.milliseconds, traffic.ejections[0].value), (60_000, 2));
    }
}
