//! Container engine client: Docker's API over a Unix socket, as far as Podman speaks it, too. Nothing is
//! asked of it but questions, and whatever it answers is bounded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::table::{Container, Published};

/// An engine answers in milliseconds, unless it is ill.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer longer than this is none.
const LONGEST: usize = 16 << 20;
/// Containers that are looked at.
const MOST: usize = 4096;
/// Labels, addresses and ports of a container that are looked at.
const MOST_OF_EACH: usize = 256;
/// The longest name, image or label.
const LONGEST_TEXT: usize = 4096;

/// An engine, by its socket.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) socket: PathBuf,
}

impl Engine {
    /// The numbers of the containers that run.
    pub(super) async fn running(&self) -> anyhow::Result<Vec<String>> {
        let answer = self.ask("/containers/json").await?;
        let list = answer.as_array().context("it doesn't answer with a list of containers")?;
        let ids = list.iter().filter_map(|it| it["Id"].as_str()).filter(|id| is_id(id));
        Ok(ids.take(MOST).map(str::to_owned).collect())
    }

    /// A container; `None` if it doesn't run any more.
    pub(super) async fn inspect(&self, id: &str) -> anyhow::Result<Option<Container>> {
        Ok(container(&self.ask(&format!("/containers/{id}/json")).await?))
    }

    /// Waits until a container has begun, ended or changed its networks, or the engine ends.
    pub(super) async fn news(&self) -> anyhow::Result<News> {
        // {"type":["container","network"]}
        let path = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";
        let (answer, connection) = timeout(PATIENCE, self.send(path)).await??;
        Ok(News { events: answer, _connection: connection })
    }

    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let asking = async {
            let (answer, _connection) = self.send(path).await?;
            let body = Limited::new(answer, LONGEST).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?;
            serde_json::from_slice(&body.to_bytes()).context("its answer isn't JSON")
        };
        timeout(PATIENCE, asking).await.context("it doesn't answer in time")?
    }

    async fn send(&self, path: &str) -> anyhow::Result<(Incoming, Connection)> {
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("it doesn't speak HTTP")?;
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let request = http::Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .context("the question is malformed")?;
        let answer = sender.send_request(request).await.context("it doesn't answer")?;
        let status = answer.status();
        ensure!(status.is_success(), "it answers {path} with {status}");
        Ok((answer.into_body(), connection))
    }
}

async fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    UnixStream::connect(socket).await.with_context(|| format!("can't open {}", socket.display()))
}

/// An engine's stream of events.
pub(super) struct News {
    events: Incoming,
    _connection: Connection,
}

impl News {
    /// Waits for the next; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<()> {
        self.events.frame().await?.ok().map(drop)
    }
}

/// A connection that ends with this value.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reads what `/containers/<id>/json` says.
fn container(answer: &Value) -> Option<Container> {
    let id = text(&answer["Id"]).filter(|id| is_id(id))?;
    let pid = answer.pointer("/State/Pid").and_then(Value::as_u64);
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)?;
    let labels: BTreeMap<String, String> = answer
        .pointer("/Config/Labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .take(MOST_OF_EACH)
        .filter(|(key, _)| key.len() <= LONGEST_TEXT)
        .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
        .collect();
    let settings = &answer["NetworkSettings"];
    let networks =
        settings["Networks"].as_object().into_iter().flatten().map(|(_, network)| network);
    let mut container = Container {
        id,
        name: text(&answer["Name"]).unwrap_or_default().trim_start_matches('/').to_owned(),
        image: answer.pointer("/Config/Image").and_then(text).unwrap_or_default(),
        labels,
        pid,
        published: published(&settings["Ports"]),
        ..Container::default()
    };
    for network in networks.chain([settings]).take(MOST_OF_EACH) {
        for address in ["IPAddress", "GlobalIPv6Address"] {
            let address = network[address].as_str().and_then(|it| it.parse::<IpAddr>().ok());
            container.addresses.extend(address.filter(|it| !it.is_loopback()));
        }
        container.macs.extend(network["MacAddress"].as_str().and_then(mac));
    }
    container.addresses.sort_unstable();
    container.addresses.dedup();
    container.macs.sort_unstable();
    container.macs.dedup();
    Some(container)
}

/// `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": null}`
fn published(ports: &Value) -> Vec<Published> {
    let ports = ports.as_object().into_iter().flatten().take(MOST_OF_EACH);
    let mut found: Vec<Published> = ports
        .flat_map(|(port, bindings)| {
            let (inside, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            let inside = inside.parse::<u16>().ok();
            let bindings = bindings.as_array().into_iter().flatten().take(MOST_OF_EACH);
            bindings.filter_map(move |binding| {
                let host_services = binding["HostPort"].as_str()?.parse().ok()?;
                Some(Published { udp: protocol == "udp", inside: inside?, host_services })
            })
        })
        .collect();
    found.dedup();
    found
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| text.len() <= LONGEST_TEXT)?;
    Some(text.to_owned())
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const ID: &str = "1b596660a179f0c0140b47ccb574b240ce35ded584eb01cb4ebe41bb377ba5e8";

    #[test]
    fn docker_and_podman_tell_the_same() {
        let network = json!({"IPAddress": "172.17.0.2", "GlobalIPv6Address": "", "MacAddress": "02:42:ac:11:00:02"});
        let ports = json!({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}], "53/udp": null});
        let answer = json!({
            "Id": ID, "Name": "/web", "State": {"Pid": 71},
            "Config": {"Image": "nginx", "Labels": {"app": "web"}},
            "NetworkSettings": {"IPAddress": "172.17.0.2", "Networks": {"bridge": network}, "Ports": ports},
        });
        let found = container(&answer).unwrap();
        assert_eq!((found.name.as_str(), found.image.as_str(), found.pid), ("web", "nginx", 71));
        assert_eq!(found.labels["app"], "web");
        assert_eq!(found.addresses, [IpAddr::from([172, 17, 0, 2])]);
        assert_eq!(found.macs, [[2, 0x42, 0xac, 0x11, 0, 2]]);
        assert_eq!(found.published, [Published { udp: false, inside: 80, host_services: 8080 }]);
    }

    #[test]
    fn what_isnt_a_running_container_is_none() {
        let fine = json!({"Id": ID, "State": {"Pid": 1}, "Config": {"Labels": null}});
        assert!(container(&fine).is_some());
        for wrong in [
            json!({}),
            json!([]),
            json!({"Id": ID, "State": {"Pid": 0}}),
            json!({"Id": ID, "State": {"Pid": "1"}}),
            json!({"Id": "../../etc", "State": {"Pid": 1}}),
        ] {
            assert!(container(&wrong).is_none(), "{wrong}");
        }
        assert_eq!((mac("1:2:3:4:5"), mac("1:2:3:4:5:6:7"), mac("x")), (None, None, None));
    }

    /// Answers every connection with this, until it is closed.
    fn engine(folder: &Path, answer: &'static str) -> Engine {
        let socket = folder.join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.read(&mut [0; 4096]).await;
                });
            }
        });
        Engine { socket }
    }

    #[tokio::test]
    async fn an_engine_that_answers_nonsense_or_never_is_an_error() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "a list of containers"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "isn't JSON"),
            ("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "500"),
            ("SSH-2.0\r\n\r\n", "doesn't answer"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let error = engine(folder.path(), answer).running().await.unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
        let nowhere = Engine { socket: "/no/such/socket".into() };
        let error = nowhere.running().await.unwrap_err();
        assert!(error.to_string().contains("can't open /no/such/socket"), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = engine(folder.path(), "").running().await.unwrap_err();
        assert!(error.to_string().contains("in time"), "{error:#}");
    }
}
