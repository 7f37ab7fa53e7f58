//! Conversion of application settings.

use std::net::SocketAddr;

use isthmus_proto::v1;

use super::decode::{Reason, parse};
use crate::application::{Application, HttpVersion, ProxyProtocol, SeenSource};
use crate::snapshot::{Protocol, ServicePort};

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

pub(super) fn listen_text(application: Application) -> String {
    application.listen.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn listen(text: &str) -> Result<SocketAddr, Reason> {
    let address = parse::<SocketAddr>("listen", text)?;
    if !address.ip().is_loopback() || address.port() == 0 {
        return Err(format!("listen: {address} isn't an address and a port of the loopback"));
    }
    Ok(address)
}

pub(super) fn encode_port(port: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: port.name.to_string(),
        port: port.port.into(),
        protocol: protocol(port.protocol).into(),
        proxy_protocol: proxy_protocol(port.application),
        http_version: http_version(port.application),
        trailers: port.application.trailers,
        listen: listen_text(port.application),
        shows_caller: port.application.source == SeenSource::Caller,
    }
}

pub(super) fn decode_port(body: &v1::ServicePort) -> Result<ServicePort, Reason> {
    let port = u16::try_from(body.port).ok().filter(|port| *port != 0);
    // The same fields under the same names.
    let as_service = v1::Service {
        proxy_protocol: body.proxy_protocol,
        http_version: body.http_version,
        trailers: body.trailers,
        listen: body.listen.clone(),
        shows_caller: body.shows_caller,
        ..v1::Service::default()
    };
    Ok(ServicePort {
        name: parse("more", &body.name)?,
        port: port.ok_or_else(|| format!("more: port {} is not 1 to 65535", body.port))?,
        protocol: decode_protocol(body.protocol)?,
        application: decode(&as_service)?,
    })
}

pub(super) const fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Tls => v1::Protocol::Tls,
        Protocol::Auto => v1::Protocol::Auto,
    }
}

pub(super) fn decode_protocol(number: i32) -> Result<Protocol, Reason> {
    Ok(match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Http) => Protocol::Http,
        Ok(v1::Protocol::Tls) => Protocol::Tls,
        Ok(v1::Protocol::Auto) => Protocol::Auto,
        Ok(v1::Protocol::Unspecified) | Err(_) => {
            return Err(format!("protocol: {number} isn't one that this version knows"));
        }
    })
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
        listen: match &*body.listen {
            "" => None,
            text => Some(listen(text)?),
        },
        source: if body.shows_caller { SeenSource::Caller } else { SeenSource::Proxy },
    })
}
