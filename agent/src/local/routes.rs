//! Routes, workloads and traffic as the local API's messages.

use std::time::Duration;

use isthmus_core::State;
use isthmus_proto::v1;
use isthmus_proxy::{EndpointView, Histogram, Metrics, RouteLabels};

pub(super) fn routes(state: &State, metrics: &Metrics) -> v1::Routes {
    let snapshot = &state.snapshot;
    let route = |route: &isthmus_model::Route| {
        let (matches, action) = route.in_words();
        let (service, name) = (route.service.to_string(), route.name.to_string());
        v1::RouteStatus { service, name, matches, action, origin: route.origin.to_string() }
    };
    let endpoint = |view: EndpointView| v1::EndpointStatus {
        service: name(snapshot.services.get(&view.service).map(|it| &it.name)),
        host: name(snapshot.hosts.get(&view.host).map(|it| &it.name)),
        address: view.address.to_string(),
        latency_microseconds: micros(Some(view.latency)),
        under_way: view.under_way as u64,
        ejected: view.ejected,
        unhealthy: view.unhealthy,
        weight: view.weight,
        site: snapshot
            .hosts
            .get(&view.host)
            .and_then(|host| host.site.as_ref())
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    let counted = metrics.snapshot();
    v1::Routes {
        routes: snapshot.routes.iter().map(route).collect(),
        endpoints: metrics.endpoints().into_iter().map(endpoint).collect(),
        traffic: counted.routes.iter().map(|(labels, latency)| traffic(labels, latency)).collect(),
        retries: counted.retries,
        ejections: counted.ejections,
        overflows: counted
            .overflows
            .iter()
            .map(|(limit, count)| ((*limit).to_owned(), *count))
            .collect(),
    }
}

fn traffic(labels: &RouteLabels, latency: &Histogram) -> v1::RouteTraffic {
    let RouteLabels { source, service, backend, route, status } = labels.clone();
    v1::RouteTraffic {
        source,
        service,
        route,
        backend,
        status: status.to_string(),
        requests: latency.count(),
        p50_microseconds: micros(latency.quantile(0.5)),
        p95_microseconds: micros(latency.quantile(0.95)),
        p99_microseconds: micros(latency.quantile(0.99)),
    }
}

fn name(known: Option<&isthmus_model::Name>) -> String {
    known.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

fn micros(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
