//! Request template: the part that all tries have in common, and the target of each.

use std::sync::Arc;

use http::header::{CONNECTION, EXPECT, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri, Version};
use isthmus_http::headers;
use isthmus_http::upgrade;
use isthmus_model::ServiceId;

use super::local::{self, NOBODY, Notes, Refused};
use super::set_host;
use crate::caller::connection::Connection;
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::config::listens::Listens;
use crate::config::routes::Compiled;
use crate::config::view::ProxySnapshot;
use crate::exchange::target::{target, wire};
use crate::pool::{Target, Wire};

/// A request as every try of it begins.
pub(super) struct Template {
    pub(super) head: Parts,
    wire: Wire,
    host: HeaderValue,
    pub(super) upgrade: Option<HeaderValue>,
    /// The caller holds its body back until it is asked for: only the other side knows whether it will be.
    pub(super) expects: bool,
}

impl Template {
    pub(super) fn new(mut head: Parts, host: HeaderValue, route: Option<&Compiled>) -> Self {
        let (wire, upgrade) = (wire(&head), upgrade::wanted(head.version, &head.headers));
        let expects = head.version == Version::HTTP_11 && headers::expects_continue(&head.headers);
        headers::to_next_hop(&mut head.headers);
        set_host(&mut head, &host);
        if let Some(route) = route {
            route.request_headers.apply(&mut head.headers);
        }
        if let Some(protocol) = &upgrade {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol.clone());
        }
        Self { head, wire, host, upgrade, expects }
    }

    pub(super) fn copy(&self) -> HeaderMap {
        self.head.headers.clone()
    }

    /// An application here is spoken to as it wants; other hosts' proxies see to theirs.
    pub(super) fn wire_to(
        &self,
        connection: &Connection,
        view: &ProxySnapshot,
        service: ServiceId,
        endpoint: &Endpoint,
    ) -> Wire {
        if endpoint.host == view.snapshot.local {
            self.wire.wanted_by(
                view.application(service, connection.parties.port_of(service)).http,
                self.upgrade.is_some(),
            )
        } else {
            self.wire
        }
    }

    /// Target, authority and URI of an attempt.
    pub(super) fn aim(
        &self,
        connection: &Connection,
        view: &Arc<ProxySnapshot>,
        place: (ServiceId, &Cluster, &Endpoint),
        fields: &mut HeaderMap,
        notes: Option<Notes<'_>>,
    ) -> Result<(Target, Uri), Refused> {
        let (service, cluster, endpoint) = place;
        let wire = self.wire_to(connection, view, service, endpoint);
        let no_path = || Refused::because("a target that isn't a path");
        let uri = target(&self.head.uri, &self.host, wire).ok_or_else(no_path)?;
        if let Some(external) = view.external(service) {
            // Copies come here without having been judged.
            let _ = local::passes(connection, view, service, &self.head, notes)?;
            let uri = whole(uri, external.tls.is_some()).ok_or_else(no_path)?;
            let address = (endpoint.address, cluster.port).into();
            let external = Some((service, connection.shared.host_services.epoch(service)));
            let target = Target {
                address,
                source: None,
                introduce: None,
                external,
                host: None,
                caller: Some(connection.parties.caller),
                trailers: view.application(service, None).trailers,
                listens: Listens::There,
                shown: None,
            };
            return Ok((target, uri));
        }
        if endpoint.host == view.snapshot.local {
            return Ok((local::admit(connection, view, place, &self.head, fields, notes)?, uri));
        }
        let source = view.speaks_from(&connection.parties, connection.peer.is_ipv4());
        let source = source.ok_or_else(|| Refused::because(NOBODY))?;
        if self.expects && wire == Wire::Http1 {
            fields.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        let port = connection.parties.port_of(service).unwrap_or(cluster.port);
        let address = (endpoint.address, port).into();
        let target = Target {
            address,
            source: Some(source),
            introduce: None,
            external: None,
            host: Some(endpoint.host),
            caller: None,
            trailers: true,
            listens: Listens::There,
            shown: None,
        };
        Ok((target, uri))
    }
}

/// The URI with the scheme that an external server expects, where it has one.
fn whole(uri: Uri, secure: bool) -> Option<Uri> {
    if uri.scheme().is_none() || !secure {
        return Some(uri);
    }
    let mut parts = uri.into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    Uri::from_parts(parts).ok()
}
