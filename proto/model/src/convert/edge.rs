//! Gateways and external services.

use std::path::Path;
use std::sync::Arc;

use isthmus_proto::v1;
use v1::service::Edge as Body;

use super::decode::{Reason, bounded, filled, parse, path};
use super::routes;
use crate::edge::{
    Acme, Certificate, CertificateFiles, ClientCertificates, Edge, External, Gateway, Listener,
    ListenerTls, Origination,
};

/// More listeners, hosts or ranges than this are a mistake.
const MAX_LISTENERS: usize = 256;

pub(super) fn encode(edge: &Edge) -> Body {
    match edge {
        Edge::Gateway(gateway) => Body::Gateway(v1::Gateway {
            listeners: gateway.listeners.iter().map(encode_listener).collect(),
            trusted_proxies: gateway.trusted_proxies.iter().map(ToString::to_string).collect(),
        }),
        Edge::External(external) => Body::External(v1::External {
            host: external.host.to_string(),
            port: external.port.into(),
            tls: external.tls.as_ref().map(encode_origination),
            special_addresses: external.special_addresses,
        }),
    }
}

fn encode_listener(listener: &Listener) -> v1::Listener {
    v1::Listener {
        port: listener.port.into(),
        https_redirect: listener.https_redirect,
        hosts: listener.hosts.iter().map(ToString::to_string).collect(),
        tls: listener.tls.as_ref().map(encode_listener_tls),
    }
}

fn encode_listener_tls(tls: &ListenerTls) -> v1::ListenerTls {
    let (certificate, acme) = match &tls.certificate {
        Certificate::Files(files) => (Some(encode_files(files)), None),
        Certificate::Acme(acme) => (None, Some(encode_acme(acme))),
    };
    v1::ListenerTls {
        certificate,
        acme,
        client_ca: tls.client.as_ref().map(|it| show(&it.ca)).unwrap_or_default(),
        client_required: tls.client.as_ref().is_some_and(|it| it.required),
    }
}

fn encode_acme(acme: &Acme) -> v1::Acme {
    v1::Acme {
        directory: acme.directory.to_string(),
        email: acme.email.as_deref().unwrap_or_default().to_owned(),
        ca: acme.ca.as_deref().map(show).unwrap_or_default(),
    }
}

fn encode_origination(tls: &Origination) -> v1::Origination {
    v1::Origination {
        ca: tls.ca.as_deref().map(show).unwrap_or_default(),
        server_name: tls.server_name.as_deref().unwrap_or_default().to_owned(),
        certificate: tls.certificate.as_ref().map(encode_files),
    }
}

fn encode_files(files: &CertificateFiles) -> v1::CertificateFiles {
    v1::CertificateFiles { certificate: show(&files.certificate), key: show(&files.key) }
}

fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn decode(body: &Body) -> Result<Edge, Reason> {
    Ok(match body {
        Body::Gateway(body) => {
            bounded("listeners", body.listeners.len(), MAX_LISTENERS)?;
            bounded("trusted_proxies", body.trusted_proxies.len(), MAX_LISTENERS)?;
            let proxies = body.trusted_proxies.iter().map(|text| parse("trusted_proxies", text));
            Edge::Gateway(Gateway {
                listeners: body.listeners.iter().map(listener).collect::<Result<_, _>>()?,
                trusted_proxies: proxies.collect::<Result<_, _>>()?,
            })
        }
        Body::External(body) => Edge::External(External {
            host: filled("host", &body.host)?,
            port: port(body.port)?,
            tls: body.tls.as_ref().map(origination).transpose()?,
            special_addresses: body.special_addresses,
        }),
    })
}

fn listener(body: &v1::Listener) -> Result<Listener, Reason> {
    bounded("hosts", body.hosts.len(), MAX_LISTENERS)?;
    Ok(Listener {
        port: port(body.port)?,
        hosts: body.hosts.iter().map(|host| routes::host(host)).collect::<Result<_, _>>()?,
        tls: body.tls.as_ref().map(listener_tls).transpose()?,
        https_redirect: body.https_redirect,
    })
}

fn listener_tls(body: &v1::ListenerTls) -> Result<ListenerTls, Reason> {
    let certificate = match (&body.certificate, &body.acme) {
        (Some(certificate), None) => Certificate::Files(files(certificate)?),
        (None, Some(body)) => Certificate::Acme(acme(body)?),
        (None, None) | (Some(_), Some(_)) => {
            return Err("tls: it needs one of certificate and acme".to_owned());
        }
    };
    let client = if body.client_ca.is_empty() {
        None
    } else {
        let ca = path("client_ca", &body.client_ca)?;
        Some(ClientCertificates { ca, required: body.client_required })
    };
    Ok(ListenerTls { certificate, client })
}

fn acme(body: &v1::Acme) -> Result<Acme, Reason> {
    let email = Some(body.email.as_str()).filter(|text| !text.is_empty());
    Ok(Acme {
        directory: filled("directory", &body.directory)?,
        email: email.map(|text| filled("email", text)).transpose()?,
        ca: if body.ca.is_empty() { None } else { Some(path("ca", &body.ca)?) },
    })
}

fn origination(body: &v1::Origination) -> Result<Origination, Reason> {
    let some = |text: &str| -> Result<Option<Arc<str>>, Reason> {
        if text.is_empty() { Ok(None) } else { filled("server_name", text).map(Some) }
    };
    Ok(Origination {
        ca: if body.ca.is_empty() { None } else { Some(path("ca", &body.ca)?) },
        server_name: some(&body.server_name)?,
        certificate: body.certificate.as_ref().map(files).transpose()?,
    })
}

fn files(body: &v1::CertificateFiles) -> Result<CertificateFiles, Reason> {
    Ok(CertificateFiles {
        certificate: path("certificate", &body.certificate)?,
        key: path("key", &body.key)?,
    })
}

fn port(number: u32) -> Result<u16, Reason> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("port: {number} is not 1 to 65535"))
}
