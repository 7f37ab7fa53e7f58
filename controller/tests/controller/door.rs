use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isthmus_proto::v1;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::lab::{Controller, Identity, any, client_config, eventually, random};

async fn handshake(
    controller: &Controller,
    config: ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(controller.address).await?;
    let name = ServerName::try_from("controller.corp.example").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_exchange_is_hybrid_and_the_version_is_1_3() {
    let controller = Controller::start().await;
    let config = client_config(&controller.state().join("ca.pem"), None);
    let stream = handshake(&controller, config).await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_refused() {
    let controller = Controller::start().await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let error = handshake(&controller, config).await.unwrap_err().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_ca_is_refused() {
    let (controller, other) = tokio::join!(Controller::start(), Controller::start());
    let foreign = other.operator_identity();
    let config = client_config(&controller.state().join("ca.pem"), Some(&foreign));
    let answered = match controller.try_channel(config).await {
        Ok(channel) => {
            let mut admin = v1::admin_client::AdminClient::new(channel);
            admin.read_status(any()).await.is_ok()
        }
        Err(_) => false,
    };
    assert!(!answered);
    // And a client takes no other controller for ours.
    let config = client_config(&other.state().join("ca.pem"), None);
    assert!(handshake(&controller, config).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_is_survived() {
    let controller = Controller::start().await;
    let mut idle = Vec::new();
    for round in 0..200 {
        let mut stream = TcpStream::connect(controller.address).await.unwrap();
        let garbage: Vec<u8> = match round % 4 {
            0 => (0..40).flat_map(|_| random()).collect(),
            1 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            // A TLS record that promises more than it holds.
            2 => [vec![0x16, 3, 1, 0x40, 0], random()].concat(),
            _ => {
                idle.push(stream);
                continue;
            }
        };
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < 100, "at most an alert: {answer:?}");
    }
    // Inside TLS too.
    let config = client_config(&controller.state().join("ca.pem"), None);
    let mut stream = handshake(&controller, config).await.unwrap();
    let garbage: Vec<u8> = (0..1_000).flat_map(|_| random()).collect();
    let _ = stream.write_all(&garbage).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(controller.status().await.hosts.is_empty(), "it answers as ever");
}

/// A connection from one of this machine's many addresses.
async fn connect_from(controller: &Controller, source: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(controller.address).await.unwrap()
}

const CROWD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_shut_nobody_else_out() {
    let controller = Controller::start().await;
    let web = controller.join("web-1").await;
    let mut silent = Vec::new();
    for number in 0..1_500 {
        let mut stream = connect_from(&controller, CROWD).await;
        if number % 2 == 0 {
            let _ = stream.write_all(&[0x16]).await;
        }
        silent.push(stream);
    }
    let everybody = async {
        controller.status().await;
        controller.join("db-1").await;
        controller.connect(&web).await.follow().await;
    };
    // If they stood in a row, all of these would have to run into their deadline first.
    tokio::time::timeout(std::time::Duration::from_secs(20), everybody).await.unwrap();
    drop(silent);
}

/// So many connections with a certificate; counts those that were ended.
async fn crowd(
    controller: &Controller,
    identity: Option<&Identity>,
    size: usize,
) -> Arc<AtomicUsize> {
    let ended = Arc::new(AtomicUsize::new(0));
    let config = Arc::new(client_config(&controller.state().join("ca.pem"), identity));
    for _ in 0..size {
        let stream = connect_from(controller, CROWD).await;
        let name = ServerName::try_from("controller.corp.example").unwrap();
        let connected = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await;
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            if let Ok(mut stream) = connected {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_takes_few_places() {
    let controller = Controller::start().await;
    let web = controller.join("web-1").await;
    let ended = crowd(&controller, Some(&web.identity), 60).await;
    eventually(async || ended.load(Ordering::Relaxed) >= 56).await;
    controller.connect(&web).await.follow().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_hosts_certificate_is_worth_nothing() {
    let controller = Controller::start().await;
    let gone = controller.join("gone-1").await;
    let request = v1::RemoveHostRequest { name: "gone-1".to_owned() };
    controller.admin().await.remove_host(request).await.unwrap();
    // The same places as anybody has who shows no certificate.
    let ended = crowd(&controller, Some(&gone.identity), 150).await;
    let strangers = crowd(&controller, None, 50).await;
    let together = || ended.load(Ordering::Relaxed) + strangers.load(Ordering::Relaxed);
    eventually(async || together() >= 136).await;
    controller.join("web-1").await;
}
