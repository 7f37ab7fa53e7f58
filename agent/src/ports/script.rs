//! nft script for ports. A table of its own, which isn't replaced but brought up to date: it
//! remembers who came, and whom this host asked.

use std::fmt::Write as _;

use super::behind::{MAP, no_bridges};
use super::{Behind, Place, Port, Ports};
use crate::guard::Nft;
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
pub(crate) async fn lower(device: &str) -> anyhow::Result<()> {
    let nft = Nft::default();
    // Where there are no bridges, the kernel may know nothing of them.
    drop(nft.run(&no_bridges(&table(device))).await);
    nft.run(&no_table(device)).await
}

/// Has bridges keep to containers' ports.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub(super) async fn apply_bridges(nft: &Nft, device: &str, behind: &Behind) -> anyhow::Result<()> {
    nft.run(&behind.bridge_script(&table(device))).await
}

/// Takes that away.
pub(super) async fn lower_bridges(nft: &Nft, device: &str) {
    drop(nft.run(&no_bridges(&table(device))).await);
}

/// The commands that take the table away. Deleting needs it to be there: declaring it first makes it so.
fn no_table(device: &str) -> String {
    let table = table(device);
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Has the kernel guard these ports. Where somebody put something else in the table's place, it is
/// made anew, and forgets who came.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub(super) async fn apply(nft: &Nft, device: &str, ports: &Ports) -> anyhow::Result<()> {
    let script = script(device, ports);
    if nft.run(&script).await.is_ok() {
        return Ok(());
    }
    nft.run(&(no_table(device) + &script)).await
}

/// Guards these ports while no agent runs.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub(crate) async fn raise(device: &str, ports: &Ports) -> anyhow::Result<()> {
    apply(&Nft::default(), device, ports).await
}

/// One transaction that makes the table if it isn't there, and has it guard these ports.
pub(super) fn script(device: &str, ports: &Ports) -> String {
    let table = table(device);
    let (sets, rules) = (sets() + &ports.behind.sets(), rules(device, &ports.behind));
    let mut script = format!(
        "table inet {table} {{\n{sets}\
         chain arriving {{ type filter hook prerouting priority -150; policy accept; }}\n\
         chain leaving {{ type filter hook output priority -150; policy accept; }}\n\
         chain passing {{ type filter hook forward priority -140; policy accept; }}\n\
         chain around {{ }}\nchain visiting {{ }}\nchain asking {{ }}\nchain answering {{ }}\n\
         chain refuse {{ }}\n}}\n\
         flush table inet {table}\n\
         table inet {table} {{\n{rules}}}\n"
    );
    let Ports { closed, counted, told, refused, strict, own, speakers, behind } = ports;
    let mut fill = |set: &str, elements: Vec<String>| {
        // INVARIANT: writing to a string doesn't fail.
        let kind = if set.starts_with(MAP) { "map" } else { "set" };
        let _ = writeln!(script, "flush {kind} inet {table} {set}");
        if !elements.is_empty() {
            let elements = elements.join(", ");
            let _ = writeln!(script, "add element inet {table} {set} {{ {elements} }}");
        }
    };
    for (set, ports) in
        [("closed", closed), ("counted", counted), ("told", told), ("refused", refused)]
    {
        fill(set, ports.iter().map(|port| element(*port)).collect());
    }
    let speaker = |(port, user): &(Port, u32)| format!("{} . {user}", element(*port));
    fill("speakers", speakers.iter().map(speaker).collect());
    for (suffix, is_ipv6) in [("4", false), ("6", true)] {
        let of_family = |(address, _): &Place| address.is_ipv6() == is_ipv6;
        let place = |(address, port): &Place| format!("{address} . {}", element(*port));
        let strict = strict.iter().filter(|it| of_family(it)).map(place);
        fill(&format!("strict{suffix}"), strict.collect());
        let own = own.iter().filter(|(it, _)| of_family(it));
        let own = own.map(|(at, user)| format!("{} . {user}", place(at)));
        fill(&format!("own{suffix}"), own.collect());
    }
    for (set, elements) in behind.elements() {
        fill(&set, elements);
    }
    script
}

fn element(port: Port) -> String {
    let protocol = if port.udp { "udp" } else { "tcp" };
    format!("{protocol} . {}", port.number)
}

/// `asked`: whom a service opened a flow to from its own port, as NTP servers do: their answers aren't
/// visits. `speakers`: as whom services do that, lest others here let anybody in. `around`: who came around the mesh. `forwarded`: who wanted to send into the mesh
/// from a network of its own behind this host.
fn sets() -> String {
    let mut text = String::new();
    for set in ["closed", "counted", "told", "refused"] {
        text += &format!("set {set} {{ type inet_proto . inet_service; }}\n");
    }
    text += "set speakers { type inet_proto . inet_service . uid; }\n";
    for (suffix, _, address) in FAMILIES {
        text += &format!(
            "set asked{suffix} {{ type {address} . inet_proto . inet_service . inet_service; \
             flags dynamic,timeout; timeout 1d; size 65535; }}\n\
             set around{suffix} {{ type inet_proto . inet_service . {address}; \
             flags dynamic,timeout; timeout 1h; size 1024; }}\n\
             set forwarded{suffix} {{ type {address}; \
             flags dynamic,timeout; timeout 10m; size 256; }}\n\
             set strict{suffix} {{ type {address} . inet_proto . inet_service; }}\n\
             set own{suffix} {{ type {address} . inet_proto . inet_service . uid; }}\n"
        );
    }
    text
}

fn rules(device: &str, behind: &Behind) -> String {
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
    let place = |ip: &str| format!("{ip} saddr . {own_port}");
    let is_own = each(&|suffix, ip| format!("{} . meta skuid @own{suffix} return\n", place(ip)));
    // An accepted connection belongs to whoever accepted it, who may be a lesser user than whoever
    // listens: so only what accepts it is looked at. What has no socket here (a SYN cookie) is nobody's.
    let impostor = each(&|suffix, ip| {
        let place = place(ip);
        let tcp = "tcp flags & (syn | ack) == (syn | ack)";
        ["meta l4proto udp", tcp]
            .map(|kind| format!("{kind} {place} @strict{suffix} jump answering\n"))
            .concat()
    });
    let forwarded =
        each(&|suffix, ip| format!("update @forwarded{suffix} {{ {ip} saddr counter }}\n"));
    let (chains, passing) = behind.rules(device);
    format!(
        "{chains}chain refuse {{\n\
         meta l4proto tcp counter reject with tcp reset\n\
         counter reject with icmpx admin-prohibited\n}}\n\
         chain around {{\n{answers}goto visiting\n}}\n\
         chain visiting {{\nfib daddr type unicast return\n{count}\
         {port} @closed goto refuse\n}}\n\
         chain answering {{\n{is_own}counter drop\n}}\n\
         chain asking {{\n{goes_on}tcp flags & (syn | ack) != syn return\n{is_answer}{asks}}}\n\
         chain arriving {{\n\
         iifname \"lo\" accept\n\
         iifname \"{device}\" {port} @refused goto refuse\n\
         iifname \"{device}\" accept\n\
         {port} @counted jump around\n\
         {port} @closed jump around\n}}\n\
         chain leaving {{\n\
         {impostor}\
         oifname \"{device}\" accept\n\
         {own_port} . meta skuid @speakers jump asking\n\
         oifname \"lo\" meta mark {PROXY_MARK:#x} {port} @refused goto refuse\n\
         meta mark {PROXY_MARK:#x} accept\n\
         oifname \"lo\" {port} @told jump visiting\n}}\n\
         chain passing {{\n\
         iifname \"{device}\" accept\n\
         oifname != \"{device}\" accept\n\
         {passing}{forwarded}counter reject with icmpx admin-prohibited\n}}\n"
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
