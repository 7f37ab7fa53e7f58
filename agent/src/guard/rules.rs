//! The guard's rules: what the kernel is told, made of what this host is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;

use ipnet::IpNet;
use isthmus_model::Snapshot;

use crate::addresses::own;
use crate::dns::PORT;
use crate::own_ports::OwnPorts;
use crate::owners::PROXY_MARK;
use crate::settings::Settings;

/// All that the rules follow from. Two guards that are equal make the same rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The overlay's device.
    pub device: String,
    /// All addresses of the mesh.
    pub prefixes: Vec<IpNet>,
    /// The tunnels' UDP ports: that of the settings, and one that serves in its stead.
    pub tunnel_ports: BTreeSet<u16>,
    /// The proxy's TCP ports, likewise.
    pub proxy_ports: BTreeSet<u16>,
    /// The user that the agent runs as: nobody else speaks from its ports.
    pub user: u32,
    /// Applications to which the proxy speaks from their callers' addresses, and what that takes.
    pub answers: BTreeSet<SocketAddr>,
    /// The host's own addresses, if mesh DNS answers there.
    pub names: Vec<IpAddr>,
    showing: Showing,
}

/// Mark of the proxy's packets on loopback with another's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Showing {
    /// Marks what the filter has seen to come from the proxy. Nobody learns it who could not change the
    /// filter, too: who only may write packets to loopback would have to guess.
    mark: u32,
}

impl Guard {
    /// The guard of a member of the mesh that has these addresses.
    #[must_use]
    pub(crate) fn of(settings: &Settings, serving: &OwnPorts, prefixes: &[IpNet]) -> Self {
        Self {
            device: settings.device.clone(),
            prefixes: prefixes.to_vec(),
            tunnel_ports: [settings.listen_port, serving.tunnels()].into(),
            proxy_ports: [settings.proxy_port, serving.proxy()].into(),
            user: isthmus_net::process::own_user(),
            answers: BTreeSet::new(),
            names: Vec::new(),
            showing: Showing::of_this_run(),
        }
    }

    /// The same, where mesh DNS answers at the host's own addresses.
    #[must_use]
    pub fn with_names(self, settings: &Settings, snapshot: &Snapshot) -> Self {
        let names = if settings.dns.listen { own(snapshot).to_vec() } else { Vec::new() };
        Self { names, ..self }
    }

    /// The same, where the proxy speaks as their callers to these applications.
    #[must_use]
    pub fn with_answers(self, answers: BTreeSet<SocketAddr>) -> Self {
        Self { answers, ..self }
    }

    /// The name of the table that holds all of it, of family `inet`.
    #[must_use]
    pub fn table(&self) -> String {
        table(&self.device)
    }

    /// What `nft -f` is told: one transaction, which replaces whatever the table held.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = no_rules(&self.device);
        // INVARIANT: writing to a string doesn't fail.
        let _ = writeln!(script, "table inet {} {{", self.table());
        // A chain that others lead to comes before them.
        let chains =
            [self.looping(), self.arriving(), self.passing(), self.speaking(), self.leaving()];
        for chain in chains.into_iter().chain(self.showing()) {
            script.push_str(&chain);
        }
        script.push_str("}\n");
        script
    }

    /// Anybody may bind an IPv6 address that the host doesn't have, and speak as it to this host.
    fn looping(&self) -> String {
        let foreign = |prefix: &IpNet, side: &str| {
            let ip = family(prefix).ip;
            format!("{ip} {side} {prefix} fib {side} type != local counter drop")
        };
        let rules =
            self.prefixes.iter().flat_map(|it| [foreign(it, "saddr"), foreign(it, "daddr")]);
        chain("looping", None, self.of_proxy().chain(rules))
    }

    /// What the proxy says as somebody else to an application, and what that answers.
    fn of_proxy(&self) -> impl Iterator<Item = String> {
        let mark = self.showing.mark;
        self.answers.iter().flat_map(move |at| {
            let (ip, address, port) = (ip_of(at), at.ip(), at.port());
            [
                format!("meta mark {mark:#x} {ip} daddr {address} tcp dport {port} return"),
                format!("{ip} saddr {address} tcp sport {port} return"),
            ]
        })
    }

    /// Marks what the proxy says as somebody else, after everybody who knows it by its own mark: a
    /// container with the host's network can set that, too. So it must be the agent's user and, where
    /// it can be told, in the agent's cgroup.
    fn showing(&self) -> Option<String> {
        if self.answers.is_empty() {
            return None;
        }
        let (user, mark) = (self.user, self.showing.mark);
        let of_agent = own_cgroup().map(|it| format!("socket cgroupv2 {it} ")).unwrap_or_default();
        let passes = format!("meta mark set {mark:#x} return");
        let rules = self.answers.iter().flat_map(|at| {
            let (ip, address, port) = (ip_of(at), at.ip(), at.port());
            let marked = format!(
                "oifname \"lo\" {ip} daddr {address} tcp dport {port} meta mark {PROXY_MARK:#x}"
            );
            [
                format!("{marked} meta skuid {user} {of_agent}{passes}"),
                // Whoever has an owner isn't the proxy. Who has none is the kernel, which ends connections
                // of sockets that are closed already.
                format!("{marked} meta skuid != 4294967294 return"),
                format!("{marked} {passes}"),
            ]
        });
        Some(chain("showing", Some(("output", 100)), rules))
    }

    /// Before any translation of addresses, which would hide whom a packet was for. Packets that are
    /// to be forwarded come by here, too.
    fn arriving(&self) -> String {
        let known =
            format!("iifname vmap {{ \"{}\" : accept, \"lo\" : goto looping }}", self.device);
        let of_prefix = |prefix: &IpNet| {
            let ip = family(prefix).ip;
            let [to, from] = quoting(prefix);
            let source = format!("{ip} saddr {prefix} counter drop");
            [source, format!("{ip} daddr {prefix} fib daddr type local counter drop"), to, from]
        };
        let rules = [known].into_iter().chain(self.prefixes.iter().flat_map(of_prefix));
        chain("arriving", Some(("prerouting", -300)), rules)
    }

    fn passing(&self) -> String {
        let rules = self.prefixes.iter().map(|prefix| {
            let Family { ip, refuse } = family(prefix);
            format!("oifname != \"{}\" {ip} daddr {prefix} counter {refuse}", self.device)
        });
        chain("passing", Some(("forward", -150)), rules)
    }

    /// Refused rather than dropped, so that programs hear of it at once.
    fn leaving(&self) -> String {
        let known =
            format!("oifname vmap {{ \"{}\" : accept, \"lo\" : goto speaking }}", self.device);
        let of_prefix = |prefix: &IpNet| {
            let Family { ip, refuse } = family(prefix);
            ["daddr", "saddr"].map(|side| format!("{ip} {side} {prefix} counter {refuse}"))
        };
        let rules = [known].into_iter().chain(self.prefixes.iter().flat_map(of_prefix));
        let rules = rules.chain(["goto speaking".to_owned()]);
        chain("leaving", Some(("output", -150)), rules)
    }

    /// While the agent is down, anybody may have its ports, but nobody gets an answer there.
    fn speaking(&self) -> String {
        let user = self.user;
        let others = format!("meta skuid != {user} counter drop");
        let tunnels = self.tunnel_ports.iter().map(|port| format!("udp sport {port} {others}"));
        let proxy = self.proxy_ports.iter().flat_map(|port| {
            // A listener whose queue is full accepts by SYN cookies, which belong to no socket.
            let accepts = format!("tcp sport {port} tcp flags & (syn | ack) == (syn | ack)");
            [
                format!("{accepts} meta skuid {user} return"),
                format!("{accepts} counter drop"),
                format!("tcp sport {port} {others}"),
            ]
        });
        let unsaid = self.names.iter().copied().map(nobody_answers);
        chain("speaking", None, tunnels.chain(proxy).chain(unsaid))
    }
}

impl Showing {
    /// One for all guards of this process.
    fn of_this_run() -> Self {
        static MARK: OnceLock<u32> = OnceLock::new();
        // Where there is no randomness the agent doesn't start.
        Self { mark: *MARK.get_or_init(|| getrandom::u32().unwrap_or_default() | 1) }
    }
}

/// The agent's own cgroup as `nft` names it; none where that says nothing, or can't be said.
fn own_cgroup() -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
    let is_there = Path::new("/sys/fs/cgroup").join(path).join("cgroup.procs").exists();
    (!path.is_empty() && is_there && path.bytes().all(is_plain))
        .then(|| format!("level {} \"{path}\"", path.split('/').count()))
}

const fn ip_of(at: &SocketAddr) -> &'static str {
    match at {
        SocketAddr::V4(_) => "ip",
        SocketAddr::V6(_) => "ip6",
    }
}

/// What takes the table away. Deleting needs it to be there: declaring it first makes it so.
#[must_use]
pub(super) fn no_rules(device: &str) -> String {
    let table = table(device);
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

fn table(device: &str) -> String {
    format!("isthmus-{device}")
}

/// A chain of the guard's table, which lets pass what none of its rules speaks of. Without a hook
/// (and its priority) it is one that others lead to.
fn chain(name: &str, hook: Option<(&str, i32)>, rules: impl IntoIterator<Item = String>) -> String {
    let hook = hook.map(|(hook, priority)| {
        format!("type filter hook {hook} priority {priority}; policy accept;\n")
    });
    let mut text = format!("chain {name} {{\n{}", hook.unwrap_or_default());
    for rule in rules {
        text.push_str(&rule);
        text.push('\n');
    }
    text + "}\n"
}

struct Family {
    ip: &'static str,
    refuse: &'static str,
}

const fn family(prefix: &IpNet) -> Family {
    match prefix {
        IpNet::V4(_) => Family { ip: "ip", refuse: "reject with icmp type admin-prohibited" },
        IpNet::V6(_) => Family { ip: "ip6", refuse: "reject with icmpv6 type admin-prohibited" },
    }
}

/// Matches and drops errors about packets of the overlay: none of them was ever on another interface,
/// so whoever complains of one made it up, to break a flow or to make its packets small.
fn quoting(prefix: &IpNet) -> [String; 2] {
    let (protocol, kinds, source, address_bits) = match prefix {
        IpNet::V4(_) => {
            ("icmp", "destination-unreachable, redirect, time-exceeded, parameter-problem", 160, 32)
        }
        IpNet::V6(_) => (
            "icmpv6",
            "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
            128,
            128,
        ),
    };
    // The quoted packet's header follows eight bytes of the error's.
    [source, source + address_bits].map(|offset| {
        let bits = prefix.prefix_len();
        let value = leading_bits(prefix);
        format!("{protocol} type {{ {kinds} }} @th,{offset},{bits} {value:#x} counter drop")
    })
}

/// Matches and drops what the kernel says when nobody listens where DNS is asked: it quotes the query.
fn nobody_answers(address: IpAddr) -> String {
    let (error, destination, port) = match address {
        IpAddr::V4(_) => ("icmp type destination-unreachable icmp code", 192, 240),
        IpAddr::V6(_) => ("icmpv6 type destination-unreachable icmpv6 code", 256, 400),
    };
    let (bits, value) = match address {
        IpAddr::V4(address) => (32, address.to_bits().into()),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    format!(
        "{error} port-unreachable @th,{destination},{bits} {value:#x} @th,{port},16 {PORT} counter drop"
    )
}

/// The prefix as the number that its bits are.
fn leading_bits(prefix: &IpNet) -> u128 {
    let (bits, len) = match prefix {
        IpNet::V4(net) => (u128::from(net.network().to_bits()), 32 - net.prefix_len()),
        IpNet::V6(net) => (net.network().to_bits(), 128 - net.prefix_len()),
    };
    bits.checked_shr(len.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_guarded_both_ways() {
        let script = guard().script();
        for rule in [
            "ip saddr 100.64.0.0/10 counter drop",
            "ip6 saddr fd00:1:2::/48 counter drop",
            "ip daddr 100.64.0.0/10 fib daddr type local counter drop",
            "ip6 daddr fd00:1:2::/48 fib daddr type local counter drop",
            "ip6 saddr fd00:1:2::/48 fib saddr type != local counter drop",
            "oifname != \"isth0\" ip6 daddr fd00:1:2::/48 counter reject",
            "ip6 saddr fd00:1:2::/48 counter reject",
            "@th,160,10 0x191 counter drop",
            "@th,256,48 0xfd0000010002 counter drop",
            "udp sport 51820 meta skuid != 7 counter drop",
            "icmp code port-unreachable @th,192,32 0x64400010 @th,240,16 53 counter drop",
            "port-unreachable @th,256,128 0xfd000001000200000000001000000000 @th,400,16 53 counter drop",
        ] {
            assert!(script.contains(rule), "{rule} isn't in {script}");
        }
    }

    #[test]
    fn only_the_proxy_speaks_as_somebody_else_and_only_where_it_is_to() {
        let none = guard().script();
        assert!(!none.contains("chain showing") && !none.contains("0x77"), "{none}");
        let at = ["100.64.0.17:8080", "[fd00:1:2::5]:8080"].map(|it| it.parse().unwrap());
        let script = guard().with_answers(at.into()).script();
        for rule in [
            "meta mark 0x77 ip daddr 100.64.0.17 tcp dport 8080 return\n",
            "ip6 saddr fd00:1:2::5 tcp sport 8080 return\n",
            "oifname \"lo\" ip daddr 100.64.0.17 tcp dport 8080 meta mark 0x15750001 meta skuid 7 ",
            "meta mark set 0x77 return\n",
        ] {
            assert!(script.contains(rule), "{rule} isn't in {script}");
        }
        let returns = script.find("tcp sport 8080 return").unwrap();
        assert!(returns < script.find("fib saddr type != local").unwrap(), "{script}");
    }

    #[test]
    fn the_script_replaces_whatever_was_there() {
        let script = guard().script();
        let empty = "table inet isthmus-isth0 {}\ndelete table inet isthmus-isth0\n";
        assert!(script.starts_with(&format!("{empty}table inet isthmus-isth0 {{\n")), "{script}");
        assert_eq!(no_rules("isth0"), empty);
        assert_eq!(script.matches('{').count(), script.matches('}').count());
    }

    #[test]
    fn a_prefix_as_a_number() {
        for (prefix, number) in
            [("100.64.0.0/10", 0x191), ("10.0.0.0/8", 10), ("fd00:1:2::/48", 0xfd00_0001_0002)]
        {
            assert_eq!(leading_bits(&prefix.parse().unwrap()), number, "{prefix}");
        }
    }

    fn guard() -> Guard {
        Guard {
            device: "isth0".to_owned(),
            prefixes: vec!["100.64.0.0/10".parse().unwrap(), "fd00:1:2::/48".parse().unwrap()],
            tunnel_ports: [51820].into(),
            proxy_ports: [15001].into(),
            user: 7,
            answers: BTreeSet::new(),
            names: vec!["100.64.0.16".parse().unwrap(), "fd00:1:2::10:0:0".parse().unwrap()],
            showing: Showing { mark: 0x77 },
        }
    }
}
