//! `protocol`, `proxy_protocol`, `http` and `trailers` of `[service.NAME]`.

use super::reader::{Entry, Located, Read, Report, Table, instead, quote};
use crate::application::{Application, HttpVersion, ProxyProtocol};
use crate::snapshot::Protocol;

const PROTOCOLS: [&str; 5] = ["tcp", "udp", "http", "tls", "auto"];

pub(super) fn protocol(text: Located<&str>, report: &mut Report<'_>) -> Read<Protocol> {
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

pub(super) fn application(
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<Application> {
    if let Some(entry) = table.get("proxy_protocol").filter(|_| protocol == Protocol::Udp) {
        let message = "`proxy_protocol` is about connections, and this service speaks udp";
        return Err(report.error(entry.key_at, message, "leave it out"));
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
    Ok(Application {
        proxy_protocol: proxy_protocol?,
        http: http?.unwrap_or_default(),
        trailers: trailers?.unwrap_or_default(),
    })
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
