//! Advice about a firewall that is in the way: its name, and the rules that let the overlay pass.

use std::net::IpAddr;

use isthmus_model::Problem;

use super::{PROXY, TUNNELS};

/// This host's firewall, as far as it can be told from its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Firewall {
    kind: Kind,
    /// Chains that drop what comes in and no rule of theirs accepts.
    dropping: Vec<Chain>,
    rules: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Ufw,
    Firewalld,
    #[default]
    Other,
}

/// A base chain: `ip filter INPUT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain(String);

impl Firewall {
    /// From what `nft list ruleset` says, and `/etc/ufw/ufw.conf`.
    pub(super) fn read(rules: &str, ufw_conf: &str) -> Self {
        let ufw = ufw_conf.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes"));
        let kind = if ufw || rules.contains("chain ufw-before-input") {
            Kind::Ufw
        } else if rules.lines().any(|line| line.trim() == "table inet firewalld {") {
            Kind::Firewalld
        } else {
            Kind::Other
        };
        Self { kind, dropping: dropping(rules), rules: of_others(rules) }
    }

    /// As somebody would look for it.
    fn name(&self) -> String {
        match (self.kind, self.dropping.first()) {
            (Kind::Ufw, _) => "ufw".to_owned(),
            (Kind::Firewalld, _) => "firewalld".to_owned(),
            (Kind::Other, Some(chain)) => format!("the firewall (nftables, chain {})", chain.0),
            (Kind::Other, None) => "a firewall".to_owned(),
        }
    }

    /// What lets in everything that comes by `device`.
    fn allow_device(&self, device: &str) -> String {
        match (self.kind, self.dropping.first()) {
            (Kind::Ufw, _) => format!("`ufw allow in on {device}`"),
            (Kind::Firewalld, _) => format!(
                "`firewall-cmd --permanent --zone=trusted --add-interface={device} && firewall-cmd \
                 --reload`"
            ),
            (Kind::Other, Some(chain)) => format!(
                "`nft insert rule {} iifname {device} accept`, also where the rules are kept",
                chain.0
            ),
            (Kind::Other, None) => {
                format!("`iptables -I INPUT -i {device} -j ACCEPT`, and ip6tables likewise")
            }
        }
    }

    fn allow_udp(&self, port: u16) -> String {
        match (self.kind, self.dropping.first()) {
            (Kind::Ufw, _) => format!("`ufw allow {port}/udp`"),
            (Kind::Firewalld, _) => {
                format!("`firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload`")
            }
            (Kind::Other, Some(chain)) => format!(
                "`nft insert rule {} udp dport {port} accept`, also where the rules are kept",
                chain.0
            ),
            (Kind::Other, None) => format!("`iptables -I INPUT -p udp --dport {port} -j ACCEPT`"),
        }
    }
}

/// `blocked` are the host's own addresses at which the proxy wasn't reached.
pub(super) fn proxy_problem(
    firewall: &Firewall,
    device: &str,
    proxy_port: u16,
    blocked: &[IpAddr],
) -> Option<Problem> {
    let example = blocked.first()?;
    let text = format!(
        "{} drops what {device} hands to the proxy (tried: TCP {example}:{proxy_port}): HTTP hangs \
         here, for callers and for services",
        firewall.name()
    );
    let remedy = format!(
        "{} (the mesh's policy decides what comes in there; no rule of the agent's could overrule \
         another table's drop)",
        firewall.allow_device(device)
    );
    Some(Problem::new(PROXY, text, remedy))
}

/// Where no tunnel is up, and what drops by default doesn't know the tunnels' port.
pub(super) fn tunnel_problem(firewall: &Firewall, port: u16) -> Option<Problem> {
    // firewalld's chains accept, and end with a rule that doesn't.
    let drops = !firewall.dropping.is_empty() || firewall.kind == Kind::Firewalld;
    if !drops || mentions(&firewall.rules, port) {
        return None;
    }
    let text = format!(
        "{} drops what comes in by default, and has no rule for UDP {port}: no tunnel comes up that \
         another host begins",
        firewall.name()
    );
    Some(Problem::new(TUNNELS, text, firewall.allow_udp(port)))
}

/// Base chains at the hook "input" whose policy is to drop.
fn dropping(rules: &str) -> Vec<Chain> {
    let (mut table, mut chain, mut found) = ("", "", Vec::new());
    for line in rules.lines().map(str::trim) {
        let named = |what: &str| line.strip_prefix(what)?.strip_suffix(" {");
        if let Some(name) = named("table ") {
            table = name;
        } else if let Some(name) = named("chain ") {
            chain = name;
        } else if line.contains(" hook input ") && line.contains("policy drop") {
            found.push(Chain(format!("{table} {chain}")));
        }
    }
    found
}

/// The rules without the agent's own tables, which name its port, too.
fn of_others(rules: &str) -> String {
    let mut is_ours = false;
    let of_others = rules.lines().filter(|line| {
        if line.starts_with("table ") {
            is_ours = line.starts_with("table inet isthmus-");
        }
        !is_ours
    });
    of_others.collect::<Vec<_>>().join("\n")
}

fn mentions(text: &str, port: u16) -> bool {
    let port = port.to_string();
    text.split(|letter: char| !letter.is_ascii_digit()).any(|number| number == port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &str = "table inet isthmus-isth0 {\n\tchain input {\n\
        \t\ttype filter hook input priority -150; policy accept;\n\t}\n}\n\
        table ip filter {\n\tchain INPUT {\n\
        \t\ttype filter hook input priority filter; policy drop;\n\
        \t\ttcp dport 22 accept\n\t}\n\tchain OUTPUT {\n\
        \t\ttype filter hook output priority filter; policy drop;\n\t}\n}\n";
    const UFW: &str = "# /etc/ufw/ufw.conf\nENABLED=yes\nLOGLEVEL=low\n";

    fn own() -> Vec<IpAddr> {
        vec!["100.64.0.16".parse().unwrap()]
    }

    #[test]
    fn the_command_is_the_one_of_the_firewall_that_is_there() {
        for (rules, conf, command) in [
            (NFT, UFW, "ufw allow in on isth0"),
            ("table ip filter {\nchain ufw-before-input {\n}\n}", "", "ufw allow in on isth0"),
            ("table inet firewalld {\n}", "", "firewall-cmd --permanent --zone=trusted"),
            (NFT, "ENABLED=no", "nft insert rule ip filter INPUT iifname isth0 accept"),
            ("", "", "iptables -I INPUT -i isth0 -j ACCEPT"),
        ] {
            let firewall = Firewall::read(rules, conf);
            let problem = proxy_problem(&firewall, "isth0", 15001, &own()).unwrap();
            assert!(
                problem.remedy.trim_start_matches('`').starts_with(command),
                "{}",
                problem.remedy
            );
            assert!(problem.text.contains("TCP 100.64.0.16:15001"), "{}", problem.text);
        }
    }

    #[test]
    fn what_arrives_is_no_problem_whatever_the_rules_are() {
        assert_eq!(proxy_problem(&Firewall::read(NFT, UFW), "isth0", 15001, &[]), None);
    }

    #[test]
    fn only_chains_that_drop_what_comes_in_are_in_the_way() {
        let chains = Firewall::read(NFT, "").dropping;
        assert_eq!(chains, [Chain("ip filter INPUT".to_owned())]);
    }

    #[test]
    fn tunnels_may_be_kept_out_where_no_rule_knows_their_port() {
        let problem = tunnel_problem(&Firewall::read(NFT, ""), 51820).unwrap();
        assert!(problem.remedy.contains("udp dport 51820 accept"), "{}", problem.remedy);
        let allowed = NFT.replace("tcp dport 22", "udp dport 51820");
        assert_eq!(tunnel_problem(&Firewall::read(&allowed, ""), 51820), None);
        assert_eq!(tunnel_problem(&Firewall::read("", UFW), 51820), None);
        let firewalld = Firewall::read("table inet firewalld {\n}", "");
        assert!(tunnel_problem(&firewalld, 51820).is_some());
        let ours = format!("table inet isthmus-isth0 {{\n\tudp sport 51820 drop\n}}\n{NFT}");
        assert!(tunnel_problem(&Firewall::read(&ours, ""), 51820).is_some(), "our own rules");
        let another = NFT.replace("tcp dport 22", "udp dport 518200");
        assert!(tunnel_problem(&Firewall::read(&another, ""), 51820).is_some());
    }
}
