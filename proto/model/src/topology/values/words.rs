//! Subjects and ports that can't be read: what to write instead.

use crate::name::Name;
use crate::rules::{PortRuleError, SubjectError};
use crate::topology::read::nearest;
use crate::topology::read::quote;

/// Why a text names no subject, and what to write.
pub(crate) fn subject_error(text: &str, error: &SubjectError) -> (String, String) {
    let shown = quote(text);
    match error {
        SubjectError::NoKind(_) => {
            let help = match text {
                "*" | "all" | "Any" | "ANY" => "write \"any\"".to_owned(),
                _ if text.parse::<Name>().is_ok() => {
                    format!("write \"service:{text}\", \"host:{text}\" or \"device:{text}\"")
                }
                _ => FORMS.to_owned(),
            };
            (format!("{shown} doesn't say what kind of thing it names"), help)
        }
        SubjectError::UnknownKind(kind) => {
            let help = match nearest(kind, ["service", "namespace", "host", "device"]) {
                Some(near) => format!("did you mean \"{near}:…\"?"),
                None => FORMS.to_owned(),
            };
            (format!("{shown}: there is no kind {}", quote(kind)), help)
        }
        SubjectError::AnyNamespace => (
            format!("{shown} is not a subject"),
            "write \"service:*\" for every service".to_owned(),
        ),
        SubjectError::BadName { cause, .. } => (
            format!("{shown}: {cause}"),
            "write the name of something that the topology declares".to_owned(),
        ),
    }
}

const FORMS: &str = "write \"any\", \"service:NAME\", \"namespace:NAME\", \"host:NAME\" or \"device:NAME\"; \"service:*\" is every service";

/// Why a text names no ports, and what to write.
pub(crate) fn port_error(text: &str, error: &PortRuleError) -> (String, String) {
    let shown = quote(text);
    match error {
        PortRuleError::UnknownProtocol(_) => {
            let number = text.split('/').find_map(|part| part.parse::<u16>().ok());
            let help = match number.filter(|_| !text.starts_with("icmp")) {
                Some(port) => format!("write \"tcp/{port}\" or \"udp/{port}\""),
                None => {
                    "write \"tcp/22\", \"udp/5000-5999\", \"tcp\", \"udp\" or \"icmp\"".to_owned()
                }
            };
            (format!("{shown} names no ports"), help)
        }
        PortRuleError::BadNumber(_) => (
            format!("{shown}: ports are numbers from 1 to 65535"),
            "write \"tcp/22\", \"tcp/8000-8999\", or \"tcp\" for every port".to_owned(),
        ),
        PortRuleError::Backwards(low, high) => {
            let protocol = text.split('/').next().unwrap_or_default();
            let help = format!("write \"{protocol}/{high}-{low}\"");
            (format!("{shown}: the range ends before it begins"), help)
        }
        PortRuleError::SeveralPorts(_) => {
            (format!("{shown} is more than one port"), "write one, such as \"tcp/22\"".to_owned())
        }
    }
}
