//! Counts of the port filter: callers around the mesh, and callers without an identity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::Port;

/// Counters of the filter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Sources that bypassed the mesh within the last hour.
    pub(super) around: BTreeMap<Port, BTreeSet<IpAddr>>,
    /// Who wanted to send into the mesh through this host within the last ten minutes.
    pub(super) forwarded: BTreeSet<IpAddr>,
}

impl Counts {
    /// Reads what `nft -j list table` prints; what can't be read is left out.
    pub(super) fn read(listing: &str) -> Self {
        let mut counts = Self::default();
        let listing: Value = serde_json::from_str(listing).unwrap_or_default();
        let objects = listing["nftables"].as_array().into_iter().flatten();
        for set in objects.filter_map(|object| object.get("set")) {
            let name = set["name"].as_str().unwrap_or_default();
            for element in set["elem"].as_array().into_iter().flatten() {
                // Without a timeout or a counter an element is its value.
                let value = element.pointer("/elem/val").unwrap_or(element);
                counts.add(name, value);
            }
        }
        counts
    }

    fn add(&mut self, set: &str, value: &Value) {
        if set.starts_with("forwarded") {
            self.forwarded.extend(value.as_str().and_then(|text| text.parse::<IpAddr>().ok()));
        } else if set.starts_with("around")
            && let Some((port, source)) = visit(value)
        {
            self.around.entry(port).or_default().insert(source);
        }
    }
}

fn visit(value: &Value) -> Option<(Port, IpAddr)> {
    let [protocol, number, source] = value["concat"].as_array()?.as_slice() else { return None };
    let udp = protocol.as_str()? == "udp";
    let number = u16::try_from(number.as_u64()?).ok()?;
    Some((Port { udp, number }, source.as_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_who_came_where() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "closed", "elem": [{"concat": ["tcp", 80]}]}},
            {"set": {"name": "around4", "elem": [
                {"elem": {"val": {"concat": ["tcp", 8081, "10.9.0.2"]}, "expires": 3594,
                          "counter": {"packets": 4, "bytes": 216}}},
                {"elem": {"val": {"concat": ["udp", 53, "10.9.0.3"]}, "expires": 1}},
                {"elem": {"val": {"concat": ["tcp", 70000, "10.9.0.3"]}}}, 7]}},
            {"set": {"name": "around6", "elem": [
                {"elem": {"val": {"concat": ["tcp", 8081, "fd99::2"]}}}]}},
            {"set": {"name": "forwarded4", "elem": [{"elem": {"val": "172.17.0.2"}}, "172.17.0.3"]}},
            {"set": {"name": "forwarded6"}}]}"#;
        let counts = Counts::read(listing);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let tcp = Port { udp: false, number: 8081 };
        assert_eq!(counts.around[&tcp], [address("10.9.0.2"), address("fd99::2")].into());
        assert_eq!(counts.around[&Port { udp: true, number: 53 }], [address("10.9.0.3")].into());
        assert_eq!(counts.around.len(), 2);
        assert_eq!(counts.forwarded, [address("172.17.0.2"), address("172.17.0.3")].into());
        assert_eq!(Counts::read("{"), Counts::default());
    }
}
