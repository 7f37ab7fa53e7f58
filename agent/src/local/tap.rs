//! Requests as they end, as the local API's messages.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_proto::v1;
use isthmus_proxy::{Finished, Metrics, Tap, TapFilter};
use tokio::sync::mpsc;
use tonic::Status;

/// Begins to listen.
pub(super) fn listen(metrics: &Arc<Metrics>, request: v1::TapRequest) -> Result<Tap, Status> {
    let asked = |text: String| (!text.is_empty()).then_some(text);
    let filter = TapFilter {
        source: asked(request.source),
        destination: asked(request.destination),
        route: asked(request.route),
        method: asked(request.method),
        path: asked(request.path),
        status: asked(request.status),
        min_duration: Duration::from_micros(request.min_microseconds),
    };
    metrics.tap(filter).ok_or_else(|| {
        Status::resource_exhausted("Too many taps are open on this host; end one of them first")
    })
}

/// Tells what a tap hears until its reader goes.
pub(super) async fn tell(mut tap: Tap, reader: mpsc::Sender<Result<v1::TapEvent, Status>>) {
    loop {
        let next = tokio::select! {
            next = tap.next() => next,
            () = reader.closed() => None,
        };
        let Some(finished) = next else { return };
        let request = Some(record(&finished));
        let event = v1::TapEvent { request, lost: tap.take_lost() };
        if reader.send(Ok(event)).await.is_err() {
            return;
        }
    }
}

fn record(it: &Finished) -> v1::TapRecord {
    let began = it.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    v1::TapRecord {
        request_id: it.request_id.clone(),
        side: it.side.as_str().to_owned(),
        source: it.source.clone(),
        destination: it.destination.clone(),
        route: it.route.clone(),
        backend: it.backend.clone(),
        host: it.host.clone(),
        method: it.method.to_string(),
        path: it.path.clone(),
        version: format!("{:?}", it.version),
        status: it.status.map(u32::from),
        success: it.success,
        verdict: it.ruling.as_str().to_owned(),
        rule: it.rule.clone(),
        tries: it.tries,
        request_bytes: it.request_bytes,
        response_bytes: it.response_bytes,
        began_microseconds: micros(began),
        duration_microseconds: micros(it.took),
        client_microseconds: micros(it.parts.client),
        queue_microseconds: micros(it.parts.queue),
        connect_microseconds: micros(it.parts.connect),
        tunnel_microseconds: micros(it.parts.tunnel),
        server_microseconds: micros(it.parts.server),
        trace_id: it.trace.map_or_else(String::new, |trace| trace.id.to_string()),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
