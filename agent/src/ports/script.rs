//! What `nft` is told about ports. A table of its own, which isn't replaced but brought up to date: it
//! remembers who came, and whom this host asked.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Port, Ports};
use crate::guard;
use crate::owners::PROXY_MARK;

/// Who asked, and what is remembered of it, by family.
const FAMILIES: [(&str, &str, &str); 2] = [("4", "ip", "ipv4_addr"), ("6", "ip6", "ipv6_addr")];

/// The table's name, of family `inet`.
pub(super) fn table(device: &str) -> String {
    format!("isthmus-{device}-ports")
}

/// Takes the table away.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub async fn lower(device: &str) -> anyhow::Result<()> {
    let table = table(device);
    guard::nft(&format!("table inet {table} {{}}\ndelete table inet {table}\n")).await
}

/// One transaction that makes the table if it isn't there, and has it guard these ports.
pub(super) fn script(device: &str, ports: &Ports) -> String {
    let table = table(device);
    let (sets, rules) = (sets(), rules(device));
    let mut script = format!(
        "table inet {table} {{\n{sets}\
         chain arriving {{ type filter hook prerouting priority -150; policy accept; }}\n\
         chain leaving {{ type filter hook output priority -150; policy accept; }}\n\
         chain passing {{ type filter hook forward priority -140; policy accept; }}\n\
         chain around {{ }}\nchain asking {{ }}\nchain refuse {{ }}\n}}\n\
         flush table inet {table}\n\
         table inet {table} {{\n{rules}}}\n"
    );
    let Ports { closed, counted, told, refused } = ports;
    for (set, ports) in
        [("closed", closed), ("counted", counted), ("told", told), ("refused", refused)]
    {
        // INVARIANT: writing to a string doesn't fail.
        let _ = writeln!(script, "flush set inet {table} {set}");
        if !ports.is_empty() {
            let _ = writeln!(script, "add element inet {table} {set} {{ {} }}", elements(ports));
        }
    }
    script
}

fn elements(ports: &BTreeSet<Port>) -> String {
    let element = |port: &Port| {
        let protocol = if port.udp { "udp" } else { "tcp" };
        format!("{protocol} . {}", port.number)
    };
    ports.iter().map(element).collect::<Vec<_>>().join(", ")
}

/// `asked`: whom this host opened a flow to from a guarded port, as NTP servers do: their answers
/// aren't visits. `around`: who came around the mesh. `forwarded`: who wanted to send into the mesh
/// from a network of its own behind this host.
fn sets() -> String {
    let mut text = String::new();
    for set in ["closed", "counted", "told", "refused"] {
        text += &format!("set {set} {{ type inet_proto . inet_service; }}\n");
    }
    for (suffix, _, address) in FAMILIES {
        text += &format!(
            "set asked{suffix} {{ type {address} . inet_proto . inet_service . inet_service; \
             flags dynamic,timeout; timeout 1d; size 65535; }}\n\
             set around{suffix} {{ type inet_proto . inet_service . {address}; \
             flags dynamic,timeout; timeout 1h; size 1024; }}\n\
             set forwarded{suffix} {{ type {address}; \
             flags dynamic,timeout; timeout 10m; size 256; }}\n"
        );
    }
    text
}

fn rules(device: &str) -> String {
    let each = |rule: &dyn Fn(&str, &str) -> String| {
        FAMILIES.map(|(suffix, ip, _)| rule(suffix, ip)).concat()
    };
    let port = "meta l4proto . th dport";
    let own_port = "meta l4proto . th sport";
    let answers = each(&|suffix, ip| {
        format!("{ip} saddr . meta l4proto . th sport . th dport @asked{suffix} return\n")
    });
    let count = each(&|suffix, ip| {
        format!("{port} @counted update @around{suffix} {{ {port} . {ip} saddr counter }}\n")
    });
    let goes_on = each(&|suffix, ip| {
        let flow = format!("{ip} daddr . {port} . th sport");
        format!(
            "meta l4proto tcp {flow} @asked{suffix} \
             update @asked{suffix} {{ {flow} timeout 1d }} return\n"
        )
    });
    let is_answer = each(&|suffix, ip| format!("{own_port} . {ip} daddr @around{suffix} return\n"));
    let asks = each(&|suffix, ip| {
        format!("update @asked{suffix} {{ {ip} daddr . {port} . th sport timeout 3m }}\n")
    });
    let forwarded =
        each(&|suffix, ip| format!("update @forwarded{suffix} {{ {ip} saddr counter }}\n"));
    format!(
        "chain refuse {{\n\
         meta l4proto tcp counter reject with tcp reset\n\
         counter reject with icmpx admin-prohibited\n}}\n\
         chain around {{\n{answers}fib daddr type unicast return\n{count}\
         {port} @closed goto refuse\n}}\n\
         chain asking {{\n{goes_on}tcp flags & (syn | ack) != syn return\n{is_answer}{asks}}}\n\
         chain arriving {{\n\
         iifname \"lo\" accept\n\
         iifname \"{device}\" {port} @refused goto refuse\n\
         iifname \"{device}\" accept\n\
         {port} @counted jump around\n\
         {port} @closed jump around\n}}\n\
         chain leaving {{\n\
         oifname \"{device}\" accept\n\
         {own_port} @counted jump asking\n\
         {own_port} @closed jump asking\n\
         oifname \"lo\" meta mark {PROXY_MARK:#x} {port} @refused goto refuse\n\
         meta mark {PROXY_MARK:#x} accept\n\
         oifname \"lo\" {port} @told jump around\n}}\n\
         chain passing {{\n\
         iifname \"{device}\" accept\n\
         oifname != \"{device}\" accept\n\
         {forwarded}counter reject with icmpx admin-prohibited\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_elements_of_sets() {
        let tcp = |number| Port { udp: false, number };
        let ports = Ports {
            closed: [tcp(80), Port { udp: true, number: 123 }].into(),
            told: [tcp(80)].into(),
            ..Ports::default()
        };
        let script = script("isth0", &ports);
        for line in [
            "add element inet isthmus-isth0-ports closed { tcp . 80, udp . 123 }\n",
            "add element inet isthmus-isth0-ports told { tcp . 80 }\n",
            "flush set inet isthmus-isth0-ports counted\n",
            "meta mark 0x15750001 accept\n",
        ] {
            assert!(script.contains(line), "{line} isn't in {script}");
        }
        assert!(!script.contains("add element inet isthmus-isth0-ports counted"));
        assert_eq!(script.matches('{').count(), script.matches('}').count());
    }
}
