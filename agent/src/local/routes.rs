//! Routes, workloads and traffic as the local API's messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isthmus_core::CompiledSnapshot;
use isthmus_model::{HostId, Service};
use isthmus_proto::v1;
use isthmus_proxy::{
    BreakerView, EndpointView, Histogram, LimitView, Metrics, SeriesLabels, SeriesSnapshot, Side,
    StatusClass,
};

pub(super) fn routes(state: &CompiledSnapshot, metrics: &Metrics) -> v1::Routes {
    let snapshot = &state.snapshot;
    let route = |route: &isthmus_model::Route| {
        let (matches, action) = route.in_words();
        let (service, name) = (route.service.to_string(), route.name.to_string());
        v1::RouteStatus { service, name, matches, action, origin: route.origin.to_string() }
    };
    let silent: BTreeSet<HostId> =
        metrics.silence().hosts().into_iter().map(|(host, _)| host).collect();
    let endpoint = |view: EndpointView| v1::EndpointStatus {
        silent: silent.contains(&view.host),
        service: name(snapshot.services.get(&view.service).map(|it| &it.name)),
        host: match snapshot.services.get(&view.service).and_then(Service::external) {
            Some(_) if !snapshot.hosts.contains_key(&view.host) => "outside".to_owned(),
            Some(_) | None => name(snapshot.hosts.get(&view.host).map(|it| &it.name)),
        },
        address: view.address.to_string(),
        latency_microseconds: micros(Some(view.latency)),
        under_way: view.under_way as u64,
        ejected: view.ejected,
        unhealthy: view.unhealthy,
        leaving: view.leaving,
        weight: view.weight,
        site: snapshot
            .hosts
            .get(&view.host)
            .and_then(|host| host.site.as_ref())
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    let breaker = |view: BreakerView| v1::BreakerStatus {
        service: name(snapshot.services.get(&view.service).map(|it| &it.name)),
        limit: view.limit.to_owned(),
        taken: view.taken,
        most: view.most,
        open: view.is_open(),
    };
    let counted = metrics.snapshot();
    let limits = metrics.limits().views();
    v1::Routes {
        breakers: metrics.breakers().into_iter().map(breaker).collect(),
        routes: snapshot.routes.iter().map(route).collect(),
        endpoints: metrics.endpoints().into_iter().map(endpoint).collect(),
        traffic: traffic(&counted.series),
        limits: limits.into_iter().map(limit).collect(),
        retries: counted.retries,
        ejections: counted.ejections.iter().map(|(_, count)| count).sum(),
        overflows: counted
            .overflows
            .iter()
            .map(|(limit, count)| ((*limit).to_owned(), *count))
            .collect(),
    }
}

fn limit(view: LimitView) -> v1::LimitStatus {
    let LimitView { limit, share, passed, refused, refused_by } = view;
    v1::LimitStatus {
        name: limit.name.to_string(),
        service: limit.service.to_string(),
        per: limit.per.to_string(),
        scope: limit.scope.to_string(),
        rate: limit.rate,
        share,
        passed,
        refused,
        refused_by: refused_by.into_iter().collect(),
        origin: limit.origin.to_string(),
    }
}

/// Requests by callers of this host, per route.
fn traffic(series: &[SeriesSnapshot]) -> Vec<v1::RouteTraffic> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str, StatusClass);
    let mut latencies: BTreeMap<Key<'_>, Histogram> = BTreeMap::new();
    for it in series.iter().filter(|it| it.labels.side == Side::Client) {
        let SeriesLabels { source, service, route, backend, .. } = &it.labels;
        let key = (&**source, &**service, &**route, &**backend, it.status);
        latencies.entry(key).or_default().add(&it.latency);
    }
    let one = |((source, service, route, backend, status), latency): (Key<'_>, Histogram)| {
        v1::RouteTraffic {
            source: source.to_owned(),
            service: service.to_owned(),
            route: route.to_owned(),
            backend: backend.to_owned(),
            status: status.to_string(),
            requests: latency.count(),
            p50_microseconds: micros(latency.quantile(0.5)),
            p95_microseconds: micros(latency.quantile(0.95)),
            p99_microseconds: micros(latency.quantile(0.99)),
        }
    };
    latencies.into_iter().map(one).collect()
}

fn name(known: Option<&isthmus_model::Name>) -> String {
    known.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

pub(super) fn micros(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
