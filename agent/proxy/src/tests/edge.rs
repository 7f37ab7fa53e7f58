//! Clients from outside of the mesh, and servers there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::Response;
use http::request::Parts;
use isthmus_model::edge::Listener;
use isthmus_model::route::HostMatch;
use isthmus_model::{Edge as ModelEdge, External, Gateway, ServiceId};
use isthmus_policy::Policy;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::routed::{API, API_2, API_3, Backends, CALLER, NEAR, V2};
use super::support::{Proxy, full, read_to_end, request1, text};
use crate::config::limits::Limits;
use crate::{GatewayIo, HostServices, ProxySnapshot, Visitor};

/// `near` is a gateway here.
const GATEWAY: ServiceId = ServiceId(4);
/// `v2` stands for a server outside.
const EXTERNAL: ServiceId = ServiceId(3);
const PORT: u16 = 8000;

#[derive(Debug, Default)]
struct Far(Mutex<Arc<[IpAddr]>>);

const UNUSABLE: &str = "its name leads to 127.0.0.1 (loopback), which isn't dialled";

impl HostServices for Far {
    fn server_tls(&self, _: ServiceId, _: u16, _: Option<&str>) -> Option<Arc<ServerConfig>> {
        None
    }

    fn challenge_tls(&self, _: &str) -> Option<Arc<ServerConfig>> {
        None
    }

    fn client_tls(
        &self,
        _: ServiceId,
        _: bool,
    ) -> io::Result<Option<(Arc<ClientConfig>, ServerName<'static>)>> {
        Ok(None)
    }

    fn epoch(&self, _: ServiceId) -> u64 {
        0
    }

    fn addresses(&self, _: ServiceId) -> Arc<[IpAddr]> {
        Arc::clone(&self.0.lock())
    }

    fn unusable(&self, _: ServiceId) -> Option<String> {
        Some(UNUSABLE.to_owned())
    }

    fn facts(&self, _: &[u8]) -> String {
        String::new()
    }
}

/// A view in which a service is at the edge.
fn at_edge(view: &ProxySnapshot, service: ServiceId, place: ModelEdge) -> Arc<ProxySnapshot> {
    let mut snapshot = (*view.snapshot).clone();
    let changed = snapshot.services.get_mut(&service).unwrap();
    if place.external().is_some() {
        changed.placements.clear();
    }
    changed.edge = Some(place);
    let policy = Policy::for_snapshot(&snapshot);
    Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)))
}

fn gateway(trusted: &[&str]) -> ModelEdge {
    ModelEdge::Gateway(Gateway {
        listeners: vec![listener("shop.example", false), listener("old.example", true)],
        trusted_proxies: trusted.iter().map(|text| text.parse().unwrap()).collect(),
    })
}

fn listener(host: &str, https_redirect: bool) -> Listener {
    let hosts = vec![HostMatch::Exact(host.into())];
    Listener { port: PORT, hosts, tls: None, https_redirect }
}

/// A gateway that clients can come to.
struct Door {
    visitors: mpsc::Sender<Visitor>,
    proxy: Proxy,
}

impl Door {
    fn open(backends: &Backends, view: Arc<ProxySnapshot>) -> Self {
        let (visitors, arrivals) = mpsc::channel(1);
        let edge = GatewayIo { host_services: Arc::new(Far::default()), visitors: arrivals };
        let proxy = Proxy::serve_at_edge(Limits::default(), API, backends.port, view, edge);
        Self { visitors, proxy }
    }

    async fn enter(&self) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = listener.accept().await.unwrap().0.into_std().unwrap();
        let visitor = Visitor { stream, gateway: GATEWAY, port: PORT };
        self.visitors.send(visitor).await.unwrap();
        client
    }

    async fn ask(&self, request: &str) -> String {
        let mut client = self.enter().await;
        let request = format!("{request}\r\nConnection: close, x-forwarded-proto\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut client).await
    }
}

fn field<'a>(head: &'a Parts, name: &str) -> Option<&'a str> {
    head.headers.get(name).map(|value| value.to_str().unwrap())
}

const ROUTES: &str = r#"
[[route.near]]
match = { path = { prefix = "/shop" } }
to = [{ service = "api" }]
[[route.near]]
match = { path = "/moved" }
redirect = { path = "/shop", host = "new.example" }
[[allow]]
name = "the world reads"
from = "service:near"
to = "service:api"
http = [{ method = "GET" }]
"#;

#[tokio::test]
async fn a_gateway_speaks_to_the_mesh_as_itself() {
    let mut backends = Backends::new();
    let one = backends.start(API_2, |_| async { Response::new(full("hello")) }).await;
    let other = backends.start(API_3, |_| async { Response::new(full("hello")) }).await;
    let view = backends.view(ROUTES);
    let door = Door::open(&backends, at_edge(&view, GATEWAY, gateway(&[])));

    let claims = "X-Forwarded-For: 1.2.3.4\r\nX_Forwarded_Proto: https\r\nForwarded: for=1.2.3.4\r\n\
        X-Isthmus-Identity: spiffe://corp.example/ns/prod/sa/root\r\nX-Forwarded-Client-Cert: Hash=0";
    let answer = door.ask(&format!("GET /shop HTTP/1.1\r\nHost: Shop.Example\r\n{claims}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = [one.seen(), other.seen()].concat();
    let [head] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(head.extensions.get::<SocketAddr>().unwrap().ip(), NEAR);
    assert_eq!(field(head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(field(head, "x-forwarded-proto"), Some("http"));
    assert_eq!(field(head, "x-forwarded-host"), Some("shop.example"), "its one form");
    for gone in ["forwarded", "x_forwarded_proto", "x-isthmus-identity", "x-forwarded-client-cert"]
    {
        assert_eq!(field(head, gone), None, "{gone}");
    }

    let moved = door.ask("GET /a?b HTTP/1.1\r\nHost: old.example:8000").await;
    assert!(moved.starts_with("HTTP/1.1 301"), "{moved}");
    assert!(moved.contains("location: https://old.example/a?b\r\n"), "{moved}");
    for (request, status) in [
        ("DELETE /shop HTTP/1.1\r\nHost: shop.example", "403"),
        ("GET /shop HTTP/1.1\r\nHost: other.example", "404"),
        ("GET /shop HTTP/1.1\r\nHost: SHOP.example.:8000", "200"),
        ("GET /shop HTTP/1.1\r\nHost: shop%2eexample", "400"),
        ("GET /a HTTP/1.1\r\nHost: OLD.example.", "301"),
        ("GET /elsewhere HTTP/1.1\r\nHost: shop.example", "404"),
        ("GET /moved HTTP/1.1\r\nHost: shop.example", "302"),
    ] {
        let answer = door.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_trusted_may_say_who_its_client_is() {
    let mut backends = Backends::new();
    let one = backends.start(API_2, |_| async { Response::new(full("hello")) }).await;
    let view = backends.view_on(ROUTES, &[API_2]);
    let door = Door::open(&backends, at_edge(&view, GATEWAY, gateway(&["127.0.0.0/8"])));
    let said = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: a.example";
    let answer = door.ask(&format!("GET /shop HTTP/1.1\r\nHost: shop.example\r\n{said}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = one.seen();
    assert_eq!(field(&seen[0], "x-forwarded-for"), Some("1.2.3.4, 127.0.0.1"));
    assert_eq!(field(&seen[0], "x-forwarded-host"), Some("a.example"));
}

#[tokio::test]
async fn a_change_of_listeners_cuts_nobody_and_the_gateways_end_does() {
    let mut backends = Backends::new();
    let _one = backends.start(API_2, |_| async { Response::new(full("hello")) }).await;
    let view = backends.view_on(ROUTES, &[API_2]);
    let door = Door::open(&backends, at_edge(&view, GATEWAY, gateway(&[])));
    let mut client = door.enter().await;
    let request = "GET /shop HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    super::support::read_until(&mut client, "hello").await;
    let view = backends.view_on(ROUTES, &[API_2]);
    door.proxy.switch(at_edge(&view, GATEWAY, gateway(&["192.0.2.0/24"])));
    client.write_all(request.as_bytes()).await.unwrap();
    super::support::read_until(&mut client, "hello").await;
    door.proxy.switch(backends.view_on(ROUTES, &[API_2]));
    assert_eq!(read_to_end(&mut client).await, "");
}

#[tokio::test]
async fn an_external_server_is_asked_by_its_own_name() {
    let mut backends = Backends::new();
    let server = backends.start(V2, |_| async { Response::new(full("paid")) }).await;
    let rules = r#"
[[route.api]]
to = [{ service = "v2" }]
[[allow]]
name = "all of api"
from = "service:client"
to = "service:api"
[[allow]]
name = "reads outside"
from = "service:client"
to = "service:v2"
http = [{ method = "GET" }]
"#;
    let external = ModelEdge::External(External {
        host: "pay.example".into(),
        port: backends.port,
        tls: None,
        special_addresses: false,
    });
    let view = at_edge(&backends.view(rules), EXTERNAL, external);
    let far = Arc::new(Far::default());
    let edge = GatewayIo {
        host_services: Arc::clone(&far) as Arc<dyn HostServices>,
        visitors: mpsc::channel(1).1,
    };
    let proxy = Proxy::serve_at_edge(Limits::default(), API, backends.port, view, edge);

    let mut sender = proxy.http1(CALLER).await;
    let unknown = sender.send_request(request1("GET", "/a")).await.unwrap();
    assert_eq!(unknown.status(), 503, "nothing is known of its addresses");
    assert!(text(unknown).await.starts_with(UNUSABLE));
    // One of the addresses is dead: it is tried elsewhere.
    *far.0.lock() = Arc::from([V2, API_3]);
    for _ in 0..20 {
        let mut sender = proxy.http1(CALLER).await;
        let answer = sender.send_request(request1("GET", "/a")).await.unwrap();
        assert_eq!((answer.status().as_u16(), text(answer).await), (200, "paid".to_owned()));
    }
    let mut sender = proxy.http1(CALLER).await;
    let refused = sender.send_request(request1("POST", "/a")).await.unwrap();
    assert_eq!(refused.status(), 403, "policy is asked here, nobody else will");
    let seen = server.seen();
    assert_eq!(seen.len(), 20);
    let host = format!("pay.example:{}", backends.port);
    assert!(seen.iter().all(|head| field(head, "host") == Some(&host)));
    assert!(seen.iter().all(|head| field(head, "x-isthmus-identity").is_none()));
}
