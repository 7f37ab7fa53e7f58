//! `protocol`, `proxy_protocol`, `http`, `trailers`, `listen` and `source` of `[service.NAME]`.

use std::net::SocketAddr;

use crate::application::{Application, HttpVersion, ProxyProtocol, SeenSource};
use crate::snapshot::Protocol;
use crate::topology::read::{Entry, Located, Read, Report, Table, instead, quote};

const PROTOCOLS: [&str; 5] = ["tcp", "udp", "http", "tls", "auto"];

pub(crate) fn protocol(text: Located<&str>, report: &mut Report<'_>) -> Read<Protocol> {
    match text.value {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "http" => Ok(Protocol::Http),
        "tls" => Ok(Protocol::Tls),
        "auto" => Ok(Protocol::Auto),
        other => {
            let help = match other.to_ascii_lowercase().as_str() {
                "http/1.1" | "http/2" | "http2" | "h2" | "h2c" | "grpc" => {
                    "write \"http\": it covers HTTP/1.1 and HTTP/2".to_owned()
                }
                "https" | "ssl" => {
                    "write \"tls\": it passes through unread, routed by its server name".to_owned()
                }
                lower => match instead(lower, PROTOCOLS.into_iter(), "write one of") {
                    help if help.starts_with("did") => help,
                    _ => "write \"tcp\", \"udp\", \"http\", \"tls\" or \"auto\"".to_owned(),
                },
            };
            Err(report.error(text.at, format!("there is no protocol {}", quote(other)), help))
        }
    }
}

pub(crate) fn application(
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<Application> {
    for key in ["proxy_protocol", "listen", "source"] {
        if let Some(entry) = table.get(key).filter(|_| protocol == Protocol::Udp) {
            let message = format!("`{key}` is about connections, and this service speaks udp");
            return Err(report.error(entry.key_at, message, "leave it out"));
        }
    }
    for key in ["http", "trailers"] {
        if let Some(entry) = table.get(key).filter(|_| !protocol.carries_requests()) {
            let message = format!("`{key}` is about requests, and this service speaks {protocol}");
            let help = "write `protocol = \"http\"`, or leave it out";
            return Err(report.error(entry.key_at, message, help));
        }
    }
    let proxy_protocol = table.optional("proxy_protocol", |entry| proxy_protocol(entry, report));
    let http = table.optional("http", |entry| http_version(entry, report));
    let trailers = table.optional("trailers", |entry| entry.boolean(report));
    let listen = table.optional("listen", |entry| listen(entry, report));
    let source = table.optional("source", |entry| source(entry, table, protocol, report));
    Ok(Application {
        proxy_protocol: proxy_protocol?,
        http: http?.unwrap_or_default(),
        trailers: trailers?.unwrap_or_default(),
        listen: listen?,
        source: source?.unwrap_or_default(),
    })
}

/// Nothing but loopback: what listens elsewhere is found at the workload's own addresses.
fn listen(entry: Entry<'_>, report: &mut Report<'_>) -> Read<SocketAddr> {
    let text = entry.string(report)?;
    let shown = quote(text.value);
    let Ok(address) = text.value.parse::<SocketAddr>() else {
        let message = format!("{shown} is not an address and a port");
        return Err(report.error(text.at, message, "write \"127.0.0.1:8080\" or \"[::1]:8080\""));
    };
    if address.port() == 0 {
        let help = format!("write \"{}\"", SocketAddr::new(address.ip(), 8080));
        return Err(report.error(text.at, format!("{shown}: nobody listens on port 0"), help));
    }
    if !address.ip().is_loopback() {
        let message = format!("{shown}: {} is not on loopback", address.ip());
        let help = "leave `listen` out: an application that listens on all addresses, or on its \
                    workload's, is found";
        return Err(report.error(text.at, message, help));
    }
    Ok(address)
}

fn source(
    entry: Entry<'_>,
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<SeenSource> {
    let text = entry.string(report)?;
    let source = match text.value {
        "caller" => SeenSource::Caller,
        "proxy" => return Ok(SeenSource::Proxy),
        other => {
            let message = format!("no application sees {} as its peer", quote(other));
            let help = "write \"caller\", or \"proxy\" (the default)";
            return Err(report.error(text.at, message, help));
        }
    };
    if let Some(listen) = table.get("listen") {
        let message = "`source = \"caller\"` with `listen`: answers to a caller's address can't leave loopback";
        let help = "have the application listen on all addresses and leave `listen` out, or ask for \
                    `proxy_protocol` instead of `source`";
        return Err(report.error(listen.key_at, message, help));
    }
    if protocol == Protocol::Tcp && table.get("proxy_protocol").is_none() {
        let message = "`source` is about what the proxy speaks to, and this service speaks tcp";
        let help = "leave it out: its application sees its callers' addresses anyway";
        return Err(report.error(entry.key_at, message, help));
    }
    Ok(source)
}

fn proxy_protocol(entry: Entry<'_>, report: &mut Report<'_>) -> Read<ProxyProtocol> {
    let text = entry.string(report)?;
    match text.value {
        "v1" => Ok(ProxyProtocol::V1),
        "v2" => Ok(ProxyProtocol::V2),
        other => {
            let message = format!("there is no PROXY protocol {}", quote(other));
            Err(report.error(text.at, message, "write \"v1\" (text) or \"v2\" (binary)"))
        }
    }
}

fn http_version(entry: Entry<'_>, report: &mut Report<'_>) -> Read<HttpVersion> {
    let text = entry.string(report)?;
    match text.value {
        "auto" => Ok(HttpVersion::Auto),
        "1.1" => Ok(HttpVersion::Http1),
        "2" => Ok(HttpVersion::Http2),
        other => {
            let message = format!("nothing speaks HTTP {} to an application", quote(other));
            let help = "write \"1.1\", \"2\" or \"auto\" (HTTP/2 for gRPC only)";
            Err(report.error(text.at, message, help))
        }
    }
}
