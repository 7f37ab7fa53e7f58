//! Copies of requests, whose answers nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use isthmus_model::ServiceId;
use tokio::time::timeout;

use super::template::Template;
use crate::caller::connection::Connection;
use crate::cluster::Draw;
use crate::config::routes::Compiled;
use crate::config::view::ProxySnapshot;
use crate::pool::request_body::{Payload, RequestBody};

/// For a copy, however long the request itself may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends copies where the route wants them, as often as it does. Only a request whose body is here
/// can be copied.
pub(super) fn send(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    route: &Compiled,
    template: &Template,
    payload: &Payload,
) {
    for (service, share) in &route.mirrors {
        if share.takes(connection.shared.chance.next())
            && let Some(body) = payload.copy()
        {
            send_one(connection, view, *service, template, body);
        }
    }
}

fn send_one(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    service: ServiceId,
    template: &Template,
    body: RequestBody,
) {
    let shared = Arc::clone(&connection.shared);
    // Copies are the first to go where there is too much to do.
    let Some(place) = connection.quota.take() else { return };
    let Some(cluster) = shared.clusters.of(view, service, connection.peer.is_ipv4()) else {
        return;
    };
    let draw = Draw { key: None, random: shared.chance.next() };
    let Ok((endpoint, flight)) = shared.clusters.pick(&cluster, &[], draw) else { return };
    let mut head = template.copy();
    let Ok((target, uri)) =
        template.aim(connection, view, (service, &cluster, &endpoint), &mut head, None)
    else {
        return;
    };
    let wire = template.wire_to(connection, view, service, &endpoint);
    let mut request = Request::new(body);
    *request.method_mut() = template.head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = head;
    *request.version_mut() = wire.version();
    tokio::spawn(async move {
        let _held = (place, flight);
        let exchange = async {
            let allowance = Some(cluster.allowance());
            if let Ok(response) =
                shared.backends.send(target, wire, Box::new(request), allowance).await
            {
                // Read to its end, so that the connection can be used again.
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            }
        };
        let _ = timeout(PATIENCE, exchange).await;
    });
}
