//! `[device.NAME]`, each by itself.

use std::net::Ipv4Addr;

use crate::key::PublicKey;
use crate::topology::decl::DeviceDecl;
use crate::topology::read::{At, Context, Located, Read, Report, Schema, Table, quote};
use crate::topology::values;

pub(crate) const DEVICE: Schema = &[
    ("wireguard", "wireguard = { public_key = \"…\" }"),
    ("via", "via = \"gw-1\""),
    ("ipv4", "ipv4 = \"100.64.0.30\""),
];

pub(crate) const WIREGUARD: Schema = &[("public_key", "public_key = \"…\"")];

/// A device, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct DeviceDraft {
    pub(crate) decl: DeviceDecl,
    pub(crate) key: At,
    pub(crate) via: At,
    pub(crate) ipv4: Option<At>,
}

pub(crate) fn device<'a>(
    name: &'a str,
    table: &Table<'a>,
    report: &mut Report<'_>,
) -> Read<DeviceDraft> {
    let key = table.required("wireguard", report).and_then(|entry| {
        let table = entry.table(Context::Within("wireguard", "device", name), WIREGUARD, report)?;
        let text = table.required("public_key", report)?.string(report)?;
        Ok(Located { value: public_key(text, report)?, at: text.at })
    });
    let via = table.required("via", report).and_then(|entry| {
        let text = entry.string(report)?;
        Ok(Located { value: values::name(text, report)?, at: text.at })
    });
    let ipv4 = table.optional("ipv4", |entry| {
        let text = entry.string(report)?;
        let value = text.value.parse::<Ipv4Addr>().map_err(|_| {
            let message = format!("{} is not an IPv4 address", quote(text.value));
            report.error(text.at, message, "write an address such as \"100.64.0.30\"")
        })?;
        Ok(Located { value, at: text.at })
    });
    let (key, via, ipv4) = (key?, via?, ipv4?);
    let origin = report.origin(table.at);
    let decl = DeviceDecl {
        public_key: key.value,
        via: via.value,
        ipv4: ipv4.as_ref().map(|ipv4| ipv4.value),
        origin,
    };
    Ok(DeviceDraft { decl, key: key.at, via: via.at, ipv4: ipv4.map(|ipv4| ipv4.at) })
}

fn public_key(text: Located<&str>, report: &mut Report<'_>) -> Read<PublicKey> {
    let help = "write the 44 characters that `wg pubkey` prints on the device";
    match text.value.parse::<PublicKey>() {
        Ok(key) if key.0 == [0; 32] => {
            Err(report.error(text.at, "a key of zeros belongs to nobody", help))
        }
        Ok(key) => Ok(key),
        Err(_) => {
            let message = format!("{} is not a WireGuard public key", quote(text.value));
            Err(report.error(text.at, message, help))
        }
    }
}
