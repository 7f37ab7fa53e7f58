//! Hosts, as requests and TLS name them, in one canonical form.
//!
//! `admin.example`, `ADMIN.example`, `admin.example.` and `admin.example:80` are one host to whoever
//! answers. So rules, routes and listeners compare one form only, and requests are passed on with it.
//! What programs could take for several hosts has none, and is refused: encodings, letters beyond ASCII
//! and empty labels; numbers that some read as addresses; `xn--` labels that hide nothing but ASCII.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Why a text is no host that all programs read alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing, or too much.
    #[error("it doesn't have 1 to 253 characters")]
    Length,
    /// `a..b`, and what DNS couldn't hold.
    #[error("it has a label that is empty, or longer than 63 characters")]
    Label,
    /// `%2e`, `ä`, a user, a blank.
    #[error("it has a character other than letters, digits, '-', '_' and '.'")]
    Character,
    /// `xn--admin-`
    #[error("it has a label 'xn--…-', which stands for plain letters")]
    Disguised,
    /// `127.1`, `[::1`
    #[error("it looks like an address, and is none")]
    Address,
    /// The port after the colon.
    #[error("its port is no number from 0 to 65535")]
    Port,
}

/// The canonical form of a host without a port: in lower case, without a dot at its end; IPv6 addresses
/// stand in brackets, as short as can be. Borrows where nothing changes, which is the usual case.
///
/// # Errors
///
/// If programs may disagree on which host it is.
pub fn canonical(host: &str) -> Result<Cow<'_, str>, HostError> {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
        let form = format!("[{}]", address.ok_or(HostError::Address)?);
        return Ok(if form == host { Cow::Borrowed(host) } else { Cow::Owned(form) });
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let has_capitals = check(name)?;
    Ok(if has_capitals { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// The canonical form of a host that may have a port.
///
/// # Errors
///
/// If programs may disagree on which host it is.
pub fn canonical_authority(authority: &str) -> Result<Cow<'_, str>, HostError> {
    let (host, port) = split_port(authority);
    if let Some(port) = port
        && (port.len() > 5
            || !port.bytes().all(|it| it.is_ascii_digit())
            || port.parse::<u16>().is_err())
    {
        return Err(HostError::Port);
    }
    match (canonical(host)?, port) {
        (Cow::Borrowed(form), _) if form.len() == host.len() => Ok(Cow::Borrowed(authority)),
        (form, Some(port)) => Ok(Cow::Owned(format!("{form}:{port}"))),
        (form, None) => Ok(form),
    }
}

/// A host, and what stands behind its last colon. Not within the brackets of an IPv6 address.
#[must_use]
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}

/// Whether a name has capitals.
fn check(name: &str) -> Result<bool, HostError> {
    if name.is_empty() || name.len() > LONGEST {
        return Err(HostError::Length);
    }
    let mut has_capitals = false;
    let mut last = 0;
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => has_capitals = true,
            b'.' => {
                check_label(&name[last..at])?;
                last = at + 1;
            }
            _ => return Err(HostError::Character),
        }
    }
    check_label(&name[last..])?;
    if is_number(&name[last..]) && name.parse::<Ipv4Addr>().is_err() {
        return Err(HostError::Address);
    }
    Ok(has_capitals)
}

fn check_label(label: &str) -> Result<(), HostError> {
    if label.is_empty() || label.len() > LONGEST_LABEL {
        return Err(HostError::Label);
    }
    let start = label.get(..4).filter(|_| label.ends_with('-'));
    if start.is_some_and(|start| start.eq_ignore_ascii_case("xn--")) {
        return Err(HostError::Disguised);
    }
    Ok(())
}

/// What resolvers take for the last part of an IPv4 address: `1`, `0x7f`.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|it| it.is_ascii_hexdigit()),
        None => label.bytes().all(|it| it.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_host_has_one_form() {
        for (written, form) in [
            ("admin.example", "admin.example"),
            ("ADMIN.Example", "admin.example"),
            ("admin.example.", "admin.example"),
            ("ADMIN.example.:80", "admin.example:80"),
            ("admin.example:8080", "admin.example:8080"),
            ("a_b-c.d", "a_b-c.d"),
            ("XN--bcher-KVA.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0::0:1]:443", "[::1]:443"),
            ("[2001:DB8::A]", "[2001:db8::a]"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(canonical_authority(written).as_deref(), Ok(form), "{written}");
        }
    }

    #[test]
    fn what_could_be_several_hosts_is_none() {
        use HostError::{Address, Character, Disguised, Label, Length, Port};
        for (written, why) in [
            ("", Length),
            (".", Length),
            (":80", Length),
            (&*"a.".repeat(200), Length),
            ("a..b", Label),
            (".a", Label),
            ("a..", Label),
            (&*"a".repeat(64), Label),
            ("admin%2eexample", Character),
            ("%61dmin.example", Character),
            ("admin\u{3002}example", Character),
            ("\u{ff41}dmin.example", Character),
            ("b\u{fc}cher.example", Character),
            ("user@admin.example", Character),
            ("admin.example/x", Character),
            ("admin.example other", Character),
            ("admin.example\t", Character),
            ("a,b", Character),
            ("::1", Character),
            ("xn--admin-.example", Disguised),
            ("XN--.example", Disguised),
            ("127.1", Address),
            ("2130706433", Address),
            ("0x7f000001", Address),
            ("0177.0.0.1", Address),
            ("127.0.0.1.5", Address),
            ("a.1", Address),
            ("[::1", Port),
            ("[::1%eth0]", Address),
            ("[admin.example]", Address),
            ("a:", Port),
            ("a:x", Port),
            ("a:65536", Port),
            ("a:+1", Port),
            ("a:000080", Port),
        ] {
            let got = canonical_authority(written);
            let got = got.map(Cow::into_owned);
            // What comes first in a text that is wrong twice doesn't matter.
            assert!(got == Err(why) || (why == Port && got.is_err()), "{written}: {got:?}");
        }
    }

    proptest! {
        #[test]
        fn a_form_is_its_own(text in "[a-zA-Z0-9.:\\[\\]%x-]{0,20}") {
            if let Ok(form) = canonical_authority(&text) {
                let again = canonical_authority(&form);
                prop_assert_eq!(again.as_deref(), Ok(&*form));
            }
        }
    }
}
