//! How applications are spoken to, as numbers.

use isthmus_proto::v1;

use super::decode::Reason;
use crate::application::{Application, HttpVersion, ProxyProtocol};

pub(super) const fn proxy_protocol(application: Application) -> u32 {
    match application.proxy_protocol {
        None => 0,
        Some(ProxyProtocol::V1) => 1,
        Some(ProxyProtocol::V2) => 2,
    }
}

pub(super) const fn http_version(application: Application) -> u32 {
    match application.http {
        HttpVersion::Auto => 0,
        HttpVersion::Http1 => 1,
        HttpVersion::Http2 => 2,
    }
}

pub(super) fn decode(body: &v1::Service) -> Result<Application, Reason> {
    let unknown =
        |what: &str, value: u32| format!("{what}: {value} isn't one that this version knows");
    Ok(Application {
        proxy_protocol: match body.proxy_protocol {
            0 => None,
            1 => Some(ProxyProtocol::V1),
            2 => Some(ProxyProtocol::V2),
            other => return Err(unknown("proxy_protocol", other)),
        },
        http: match body.http_version {
            0 => HttpVersion::Auto,
            1 => HttpVersion::Http1,
            2 => HttpVersion::Http2,
            other => return Err(unknown("http_version", other)),
        },
        trailers: body.trailers,
    })
}
