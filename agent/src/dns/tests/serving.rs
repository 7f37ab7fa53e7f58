use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use isthmus_model::ServiceId;
use isthmus_policy::Policy;
use isthmus_proxy::ProxySnapshot;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::support::*;
use crate::dns::server::run;
use crate::dns::upstream::{Forwarder, framed, nameservers, read_framed};
use crate::dns::{self, Config, Upstream, wire};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(10);

/// A running server.
struct Server {
    address: SocketAddr,
    views: watch::Sender<Arc<ProxySnapshot>>,
    _task: JoinSet<()>,
}

/// Who asked, and what.
type Heard = (SocketAddr, Vec<u8>);

/// A resolver that answers by a script, and notes who asked what.
#[derive(Clone)]
struct FakeResolver {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Server {
    async fn start(upstream: &[SocketAddr]) -> Self {
        // A port that is free for UDP may be somebody's for TCP.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (views, view) = watch::channel(view());
        let forwarder = Forwarder::new(Upstream::Fixed(upstream.to_vec()), Vec::new());
        let mut task = JoinSet::new();
        task.spawn(run(udp, tcp, (forwarder, true), view));
        Self { address, views, _task: task }
    }

    async fn ask_by_udp(&self, query: &Message) -> Message {
        let socket = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 65535];
        let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_by_tcp(&self, query: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(&framed(&query.to_vec().unwrap())).await.unwrap();
        let reply = timeout(SOON, read_framed(&mut stream)).await.unwrap().unwrap();
        Message::from_vec(&reply).unwrap()
    }
}

impl FakeResolver {
    /// Sends each reply that `answer` makes of a query.
    async fn start<A>(answer: A) -> Self
    where
        A: Fn(&[u8]) -> Vec<Vec<u8>> + Clone + Send + Sync + 'static,
    {
        let udp = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let fake = Self { address, heard: Arc::default() };
        let (by_udp, by_tcp, for_tcp) = (fake.clone(), fake.clone(), answer.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 65535];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                by_udp.hear(from, &buffer[..length]);
                for reply in answer(&buffer[..length]) {
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, from)) = tcp.accept().await {
                let query = read_framed(&mut stream).await.unwrap();
                by_tcp.hear(from, &query);
                for reply in for_tcp(&query) {
                    stream.write_all(&framed(&reply)).await.unwrap();
                }
            }
        });
        fake
    }

    fn hear(&self, from: SocketAddr, query: &[u8]) {
        self.heard.lock().push((from, query.to_vec()));
    }
}

/// A reply with that code and the right question.
fn code(query: &[u8], code: u8) -> Vec<Vec<u8>> {
    vec![wire::bare_reply(query, code)]
}

/// A reply that is longer than any datagram should be.
fn long(query: &[u8]) -> Vec<Vec<u8>> {
    let mut reply = wire::bare_reply(query, 0);
    reply.resize(3000, 0);
    vec![reply]
}

#[tokio::test]
async fn the_mesh_is_answered_by_udp_and_tcp() {
    let server = Server::start(&[]).await;
    let question = query("web.prod.mesh.internal.", RecordType::A);
    assert_eq!(data(&server.ask_by_udp(&question).await), "100.127.0.1");
    assert_eq!(data(&server.ask_by_tcp(&question).await), "100.127.0.1");
}

#[tokio::test]
async fn a_new_revision_counts_at_once() {
    let server = Server::start(&[]).await;
    let question = query("web.prod.mesh.internal.", RecordType::A);
    server.ask_by_udp(&question).await;
    let mut without = snapshot();
    without.services.remove(&ServiceId(1));
    let policy = Policy::for_snapshot(&without);
    server.views.send_replace(Arc::new(ProxySnapshot::new(Arc::new(without), Arc::new(policy))));
    let reply = server.ask_by_udp(&question).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn other_names_are_asked_of_the_hosts_resolvers() {
    let fake = FakeResolver::start(|query| code(query, 3)).await;
    let server = Server::start(&[fake.address]).await;
    let question = query("eXample.com.", RecordType::MX);
    for reply in [server.ask_by_udp(&question).await, server.ask_by_tcp(&question).await] {
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.metadata.id, ID);
        assert_eq!(reply.queries[0].name().to_ascii(), "eXample.com.");
    }
    server.ask_by_udp(&question).await;

    // New ids and ports each time, and nothing else changed.
    let heard = fake.heard.lock();
    let bytes = question.to_vec().unwrap();
    assert!(heard.iter().all(|(_, heard)| heard[2..] == bytes[2..]));
    assert_ne!(heard[0].0.port(), heard[2].0.port());
    let ids: Vec<_> = heard.iter().map(|(_, heard)| [heard[0], heard[1]]).collect();
    assert!(ids.iter().any(|id| *id != ID.to_be_bytes()), "{ids:?}");
}

#[tokio::test]
async fn the_mesh_is_not_asked_of_others() {
    let fake = FakeResolver::start(|query| code(query, 3)).await;
    let server = Server::start(&[fake.address]).await;
    for name in ["x.y.mesh.internal.", "9.9.64.100.in-addr.arpa."] {
        server.ask_by_udp(&query(name, RecordType::PTR)).await;
    }
    assert!(fake.heard.lock().is_empty());
}

#[tokio::test]
async fn forged_replies_are_passed_over() {
    let fake = FakeResolver::start(|query| {
        let mut wrong_id = wire::bare_reply(query, 5);
        wrong_id[0] ^= 0xff;
        let mut wrong_question = wire::bare_reply(query, 5);
        wrong_question[13] ^= 0x01;
        vec![wrong_id, wrong_question, vec![0; 5], query.to_vec(), wire::bare_reply(query, 3)]
    })
    .await;
    let server = Server::start(&[fake.address]).await;
    let reply = server.ask_by_udp(&query("example.com.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_is_silent_dead_or_failing() {
    let silent = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    let dead = UdpSocket::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap();
    let failing = FakeResolver::start(|query| code(query, 2)).await;
    let right = FakeResolver::start(|query| code(query, 3)).await;
    let question = query("example.com.", RecordType::A);
    for bad in [silent.local_addr().unwrap(), dead, failing.address] {
        let server = Server::start(&[bad, right.address]).await;
        let reply = server.ask_by_udp(&question).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{bad}");
    }
}

#[tokio::test]
async fn without_a_resolver_other_names_fail() {
    let server = Server::start(&[]).await;
    let question = query("example.com.", RecordType::A);
    for reply in [server.ask_by_udp(&question).await, server.ask_by_tcp(&question).await] {
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(reply.metadata.id, ID);
    }
}

#[tokio::test]
async fn what_is_too_long_for_a_datagram_is_truncated_and_whole_by_tcp() {
    let fake = FakeResolver::start(long).await;
    let server = Server::start(&[fake.address]).await;
    let question = query("example.com.", RecordType::TXT);
    assert!(server.ask_by_udp(&question).await.metadata.truncation);

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&question.to_vec().unwrap())).await.unwrap();
    let reply = timeout(SOON, read_framed(&mut stream)).await.unwrap().unwrap();
    assert_eq!(reply.len(), 3000);
}

#[tokio::test]
async fn garbage_is_survived() {
    let server = Server::start(&[]).await;
    let socket = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    socket.connect(server.address).await.unwrap();
    for length in [0, 1, 11, 12, 13, 500, 5000] {
        socket.send(&vec![0xff; length]).await.unwrap();
        socket.send(&vec![0x00; length]).await.unwrap();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&vec![0x7f; length]).await.unwrap();
    }
    let question = query("web.prod.mesh.internal.", RecordType::A);
    assert_eq!(data(&server.ask_by_udp(&question).await), "100.127.0.1");
    assert_eq!(data(&server.ask_by_tcp(&question).await), "100.127.0.1");
}

#[tokio::test]
async fn serving_begins_before_the_address_exists_and_ends_with_the_server() {
    let (_views, view) = watch::channel(view());
    let config = |listen| Config {
        listen,
        upstream: Upstream::Fixed(vec![]),
        short_names: true,
        own: vec![],
    };
    let absent = (Ipv4Addr::new(198, 51, 100, 7), 0).into();
    dns::Server::start(config(absent), view.clone()).unwrap();

    let address = UdpSocket::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap();
    let server = dns::Server::start(config(address), view.clone()).unwrap();
    assert_eq!(dns::answers(address).await, Some(true));
    assert!(dns::Server::start(config(address), view).is_err(), "the port is taken");
    drop(server);
    while UdpSocket::bind(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(dns::answers(address).await, None);
}

#[test]
fn resolv_conf_names_the_resolvers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    let text = "# comment\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
                nameserver\nnameserver nonsense\nnameserver fe80::1%nolink\noptions edns0\n\
                nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver 192.0.2.1%lo\n";
    std::fs::write(&path, text).unwrap();
    let found: Vec<String> = nameservers(&path).iter().map(ToString::to_string).collect();
    let scoped = ["[fe80::1%1]:53", "[fe80::2%7]:53"];
    assert_eq!(found, [["192.0.2.1:53", "[2001:db8::1]:53"], scoped].concat());
    assert!(nameservers(&dir.path().join("missing")).is_empty());
}

#[test]
fn we_are_not_our_own_resolver() {
    let servers: Vec<SocketAddr> =
        ["100.64.1.0:53", "192.0.2.1:53"].map(|text| text.parse().unwrap()).into();
    let own = vec!["100.64.1.0".parse().unwrap()];
    let forwarder = Forwarder::new(Upstream::Fixed(servers.clone()), own);
    assert_eq!(*forwarder.servers(), servers[1..]);
}
