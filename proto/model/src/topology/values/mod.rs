//! Single values: names, prefixes, endpoints, paths, units.

pub(crate) mod fields;
pub(crate) mod words;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::address::Ipv4Net;
use crate::name::Name;
use crate::route::Share;
use crate::topology::read::{Entry, Located, Read, Report, Reported, clip, quote};

pub(crate) fn name(text: Located<&str>, report: &mut Report<'_>) -> Read<Name> {
    text.value.parse().map_err(|cause| {
        let message = format!("{} can't be a name: {cause}", quote(text.value));
        report.error(text.at, message, name_help(text.value))
    })
}

fn name_help(text: &str) -> String {
    let lower = text.chars().take(63).map(|letter| match letter.to_ascii_lowercase() {
        '_' | '.' | ' ' => '-',
        lower => lower,
    });
    let tidy: String = lower.collect();
    match tidy.trim_matches('-').parse::<Name>() {
        Ok(name) => format!("write `{name}`"),
        Err(_) => "write a name such as `app-1`".to_owned(),
    }
}

/// A text for people, such as a rule's name: on one line, and not endless.
pub(crate) fn title(what: &str, text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    const LONGEST: usize = 128;
    let shown = quote(text.value);
    let (message, help) = if text.value.trim().is_empty() {
        (
            format!("the name {shown} of this {what} is empty"),
            format!("say in a few words what the {what} is for"),
        )
    } else if text.value.chars().any(char::is_control) {
        (format!("the name {shown} has a control character"), "write it on one line".to_owned())
    } else if text.value.chars().count() > LONGEST {
        (
            format!("the name {shown} has more than {LONGEST} characters"),
            "shorten it, and move the rest to a comment".to_owned(),
        )
    } else if what == "rule" && (text.value == "default" || text.value.starts_with("built-in")) {
        (
            format!("the name {shown} is taken: decisions without a rule show it"),
            "give the rule another name".to_owned(),
        )
    } else {
        return Ok(());
    };
    Err(report.error(text.at, message, help))
}

pub(crate) fn port(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u16> {
    let number = entry.integer(report)?;
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| {
        let message = format!("there is no port {number}");
        report.error(entry.at, message, "write a number from 1 to 65535, such as `port = 8080`")
    })
}

/// A time such as `500ms`, `2s`, `1.5s`, `1m`: more than nothing, and not more than a day.
pub(crate) fn duration(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Duration> {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    let (key, text) = (entry.key, entry.string(report)?);
    let digits = text.value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let second = match &text.value[digits.len()..] {
        "ms" => Some(0.001),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = digits.parse::<f64>().ok().filter(|_| plain);
    let (Some(number), Some(second)) = (number, second) else {
        let message = format!("{} is no time", quote(text.value));
        let help = format!("write a number and a unit, such as `{key} = \"500ms\"` or \"2s\"");
        return Err(report.error(text.at, message, help));
    };
    let time = Duration::from_millis((number * second * 1000.0).round() as u64);
    if time.is_zero() || time > LONGEST {
        let message = format!(
            "{} is too {}",
            quote(text.value),
            if time.is_zero() { "short" } else { "long" }
        );
        return Err(report.error(text.at, message, "write a time from \"1ms\" to \"24h\""));
    }
    Ok(time)
}

/// A part of a whole, where `whole` stands for all of it.
pub(crate) fn share(entry: Entry<'_>, whole: f64, report: &mut Report<'_>) -> Read<Share> {
    let number = entry.number(report)?;
    let millionths = (number / whole * 1_000_000.0).round();
    if !(0.0..=1_000_000.0).contains(&millionths) {
        let message = format!("`{}` can't be {number}", entry.key);
        return Err(report.error(entry.at, message, format!("write a number from 0 to {whole}")));
    }
    // In range: it was just checked.
    Ok(Share::new(millionths as u32).unwrap_or(Share::ALL))
}

pub(crate) fn label(key: Located<&str>, value: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || "._/-".contains(letter);
    if key.value.is_empty() || key.value.len() > 63 || !key.value.chars().all(fine) {
        let message = format!("{} can't be the key of a label", quote(key.value));
        let help = "write 1 to 63 of the characters a-z, A-Z, 0-9, '.', '_', '/' and '-'";
        return Err(report.error(key.at, message, help));
    }
    if value.value.chars().count() > 128 || value.value.chars().any(char::is_control) {
        let message = format!("{} can't be the value of a label", quote(value.value));
        return Err(report.error(value.at, message, "write up to 128 characters on one line"));
    }
    Ok(())
}

pub(crate) fn ipv4_net(text: Located<&str>, report: &mut Report<'_>) -> Read<Ipv4Net> {
    let Ok(net) = text.value.parse::<Ipv4Net>() else {
        let message = format!("{} is not an IPv4 prefix", quote(text.value));
        let help = "write an address and a length, such as \"100.64.0.0/10\"";
        return Err(report.error(text.at, message, help));
    };
    if net != net.trunc() {
        let message = format!("{net} has bits set beyond its length");
        return Err(report.error(text.at, message, format!("write \"{}\"", net.trunc())));
    }
    Ok(net)
}

pub(crate) fn endpoint(text: Located<&str>, report: &mut Report<'_>) -> Read<SocketAddr> {
    let shown = quote(text.value);
    let Ok(endpoint) = text.value.parse::<SocketAddr>() else {
        let help = match text.value.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => format!("add the port: \"{address}:51820\""),
            Ok(IpAddr::V6(address)) => format!("add brackets and the port: \"[{address}]:51820\""),
            Err(_) => "write \"192.0.2.1:51820\" or \"[2001:db8::1]:51820\"".to_owned(),
        };
        return Err(report.error(text.at, format!("{shown} is not an address and a port"), help));
    };
    if endpoint.port() == 0 {
        let help = format!("write \"{}\"", SocketAddr::new(endpoint.ip(), 51820));
        return Err(report.error(text.at, format!("{shown}: nobody is reached at port 0"), help));
    }
    if endpoint.ip().is_unspecified() || endpoint.ip().is_multicast() {
        let message = format!("{shown}: {} is not the address of a host", endpoint.ip());
        let help = "write the address that other hosts send to, such as \"192.0.2.1:51820\"";
        return Err(report.error(text.at, message, help));
    }
    Ok(endpoint)
}

/// `exe` and `cgroup`: an absolute path that says which one it is.
pub(crate) fn file_path(
    key: &str,
    example: &str,
    text: Located<&str>,
    report: &mut Report<'_>,
) -> Read<()> {
    let shown = quote(text.value);
    let cause = if !text.value.starts_with('/') {
        format!("{key} {shown} is not an absolute path")
    } else if text.value.len() > 4095 || text.value.contains('\0') {
        format!("{key} {shown} is no path on Linux")
    } else if text.value.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        format!("{key} {shown} has an empty, '.' or '..' part")
    } else {
        return Ok(());
    };
    Err(report.error(
        text.at,
        cause,
        format!("write the path as the kernel shows it, such as `{example}`"),
    ))
}

pub(crate) fn systemd_unit(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let shown = quote(text.value);
    let stem =
        [".service", ".slice", ".scope"].iter().find_map(|suffix| text.value.strip_suffix(suffix));
    let fine = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
    let Some(stem) = stem else {
        let help = match text.value.rsplit_once('.') {
            Some((_, "timer" | "socket" | "target" | "path" | "mount")) => {
                "name the unit that the processes run in: a .service, .slice or .scope".to_owned()
            }
            _ if !text.value.is_empty()
                && text.value.len() <= 80
                && text.value.chars().all(fine) =>
            {
                format!("write \"{}.service\"", text.value)
            }
            _ => "write the unit's full name, such as \"web.service\"".to_owned(),
        };
        return Err(report.error(text.at, format!("{shown} is no unit that has processes"), help));
    };
    if stem.is_empty() || text.value.len() > 255 || !stem.chars().all(fine) {
        let help = "write the unit's name as `systemctl` shows it, such as \"web.service\"";
        return Err(report.error(text.at, format!("{shown} can't be the name of a unit"), help));
    }
    Ok(())
}

pub(crate) fn user(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let bad = |letter: char| letter.is_whitespace() || letter.is_control() || ":/".contains(letter);
    if text.value.is_empty() || text.value.len() > 256 || text.value.contains(bad) {
        let message = format!("{} can't be a user", quote(text.value));
        return Err(report.error(
            text.at,
            message,
            "write a user's name or number, such as \"www-data\" or \"33\"",
        ));
    }
    Ok(())
}

pub(crate) fn container_name(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    if text.value.is_empty() || text.value.len() > 253 || !text.value.chars().all(fine) {
        let message = format!("{} can't be the name of a container", quote(text.value));
        let help = "write it as `podman ps` or `docker ps` shows it, such as \"web\"";
        return Err(report.error(text.at, message, help));
    }
    Ok(())
}

pub(crate) fn image(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || "_.-/:@".contains(letter);
    if text.value.is_empty() || text.value.len() > 512 || !text.value.chars().all(fine) {
        let message = format!("{} can't be the name of an image", quote(text.value));
        let help =
            "write it as `podman ps` or `docker ps` shows it, such as \"registry.example/web:1\"";
        return Err(report.error(text.at, message, help));
    }
    Ok(())
}

/// Engines take nearly anything.
pub(crate) fn container_label(
    key: Located<&str>,
    value: Located<&str>,
    report: &mut Report<'_>,
) -> Read<()> {
    let bad = |text: &str, most: usize| text.len() > most || text.chars().any(char::is_control);
    if key.value.is_empty() || bad(key.value, 256) {
        let message = format!("{} can't be the key of a container's label", quote(key.value));
        return Err(report.error(key.at, message, "write 1 to 256 bytes on one line"));
    }
    if bad(value.value, 1024) {
        let message = format!("{} can't be the value of a container's label", quote(value.value));
        return Err(report.error(value.at, message, "write up to 1,024 bytes on one line"));
    }
    Ok(())
}

pub(crate) fn method(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let shown = quote(text.value);
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte);
    if text.value == "*" {
        let help = "leave `method` out to match every method";
        return Err(report.error(text.at, "the method \"*\" is no method", help));
    }
    if text.value.is_empty() || text.value.len() > 64 || !text.value.bytes().all(token) {
        let help = "write one method, such as \"GET\"; several methods are several entries";
        return Err(report.error(text.at, format!("the method {shown} is no method"), help));
    }
    if text.value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let help = format!("write \"{}\"", text.value.to_ascii_uppercase());
        return Err(report.error(text.at, format!("the method {shown} isn't in upper case"), help));
    }
    Ok(())
}

/// A path as the proxy compares it: decoded and without ambiguity, so that no other way of writing
/// the same path slips past a rule.
pub(crate) fn path(text: Located<&str>, wildcards: bool, report: &mut Report<'_>) -> Read<()> {
    let Some(rest) = text.value.strip_prefix('/') else {
        let help = format!("write \"/{}\"", clip(text.value));
        return Err(path_error(text, "doesn't begin with '/'", help, report));
    };
    let strange = |letter: char| !letter.is_ascii_graphic() || "%;\\?#".contains(letter);
    if let Some(letter) = text.value.chars().find(|letter| strange(*letter)) {
        let help = match letter {
            '?' | '#' => "rules see the path only: leave out what follows it".to_owned(),
            '%' => "write the path decoded, or `*` for that segment".to_owned(),
            _ => "write `*` for that segment".to_owned(),
        };
        return Err(path_error(text, &format!("has the character {letter:?}"), help, report));
    }
    let segments = || rest.split('/');
    if segments().any(|segment| matches!(segment, "." | "..")) {
        return Err(path_error(
            text,
            "has a '.' or '..' segment",
            "write where it leads".to_owned(),
            report,
        ));
    }
    if text.value.contains("//") {
        return Err(path_error(
            text,
            "has an empty segment",
            "write one '/' only".to_owned(),
            report,
        ));
    }
    if !wildcards && text.value.contains('*') {
        let help = "write the path of one request".to_owned();
        return Err(path_error(text, "has a '*'", help, report));
    }
    if segments().any(|segment| segment.contains('*') && segment != "*") {
        let help = "write `*` as a whole segment, such as \"/accounts/*\"".to_owned();
        return Err(path_error(text, "has a '*' within a segment", help, report));
    }
    Ok(())
}

/// A rule's path: `*` is a segment, or at the end all further ones; `**` at the end none as well;
/// `{id}` is a segment.
pub(crate) fn template(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let open = text.value.strip_suffix("/**");
    let plain = match open {
        Some("") => "/",
        Some(start) => start,
        None => text.value,
    };
    path(Located { value: plain, at: text.at }, true, report)?;
    for segment in plain.split('/').filter(|segment| segment.contains(['{', '}'])) {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let fine = |name: &str| {
            !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_')
        };
        if !name.is_some_and(fine) {
            let help = "write `{id}` as a whole segment, such as \"/accounts/{id}/orders\"";
            let cause = format!("has the segment {}", quote(segment));
            return Err(path_error(text, &cause, help.to_owned(), report));
        }
    }
    Ok(())
}

fn path_error(text: Located<&str>, cause: &str, help: String, report: &mut Report<'_>) -> Reported {
    report.error(text.at, format!("the path {} {cause}", quote(text.value)), help)
}
