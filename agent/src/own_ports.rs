//! Ports that the agent can't do without, and who has them instead.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;
use isthmus_model::{Code, Problem, Problems};
use isthmus_net::holders::{self, Holder};
use isthmus_net::sock_diag::Protocol;

use crate::settings::Settings;

const TAKEN: Code = Code::PortTaken;
const ANYBODYS: Range<u16> = 61_000..u16::MAX;
const PRIVILEGED: Range<u16> = 600..1024;
const ATTEMPTS: u32 = 16;

/// A port of the agent's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub protocol: Protocol,
    pub number: u16,
    /// Its purpose, with the setting that chooses it.
    pub what_for: &'static str,
}

/// The ports that serve: those of the settings, unless somebody else has them.
#[derive(Debug)]
pub(crate) struct OwnPorts {
    tunnels: AtomicU16,
    proxy: AtomicU16,
}

impl OwnPorts {
    #[must_use]
    pub(crate) const fn of(settings: &Settings) -> Self {
        Self {
            tunnels: AtomicU16::new(settings.listen_port),
            proxy: AtomicU16::new(settings.proxy_port),
        }
    }

    pub(crate) fn set(&self, tunnels: u16, proxy: u16) {
        self.tunnels.store(tunnels, Ordering::Relaxed);
        self.proxy.store(proxy, Ordering::Relaxed);
    }

    /// Of those that others serve in the stead of: who has them now.
    pub(crate) fn tell_again(&self, settings: &Settings, problems: &Problems) {
        for (port, serving) in
            [(Port::tunnels(settings), self.tunnels()), (Port::proxy(settings), self.proxy())]
        {
            if serving != port.number {
                port.tell_again(problems, serving);
            }
        }
    }

    /// UDP.
    #[must_use]
    pub(crate) fn tunnels(&self) -> u16 {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// TCP.
    #[must_use]
    pub(crate) fn proxy(&self) -> u16 {
        self.proxy.load(Ordering::Relaxed)
    }
}

impl Port {
    pub(crate) const fn proxy(settings: &Settings) -> Self {
        Self {
            protocol: Protocol::Tcp,
            number: settings.proxy_port,
            what_for: "the proxy (proxy_port)",
        }
    }

    pub(crate) const fn tunnels(settings: &Settings) -> Self {
        Self {
            protocol: Protocol::Udp,
            number: settings.listen_port,
            what_for: "tunnels (listen_port)",
        }
    }

    /// Opens it. Where somebody else has it, which is a problem until it can be opened, another port
    /// serves in its stead: no user of this host keeps it out of the mesh. Returns which it is.
    ///
    /// # Errors
    /// When none can be opened.
    pub(crate) fn open<T>(
        self,
        problems: &Problems,
        open: impl Fn(u16) -> io::Result<T>,
    ) -> anyhow::Result<(T, u16)> {
        let subject = self.to_string();
        let (opened, number) = match open(self.number) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let who = self.holders();
                let (opened, number) = open_another(open)
                    .with_context(|| format!("{self}, for {}, is taken by {who}", self.what_for))?;
                problems.raise(self.taken(&who, number).about(subject));
                (opened, number)
            }
            opened => {
                problems.clear(TAKEN, &subject);
                let opened = opened
                    .with_context(|| format!("Failed to open {self} for {}", self.what_for))?;
                (opened, self.number)
            }
        };
        Ok((opened, number))
    }

    /// Says anew who has a port that another serves in the stead of, or that nobody has it any more.
    pub(crate) fn tell_again(self, problems: &Problems, instead: u16) {
        let problem = match holders::of_port(self.protocol, self.number) {
            Ok(holders) if holders.is_empty() => self.free(instead),
            Ok(_) | Err(_) => self.taken(&self.holders(), instead),
        };
        problems.raise(problem.about(self.to_string()));
    }

    fn free(self, instead: u16) -> Problem {
        Problem::new(
            TAKEN,
            format!(
                "{self}, for {}, was taken and is free again; port {instead} still serves in its stead",
                self.what_for
            ),
            "`systemctl restart isthmus-agent`: it takes the port that is free again",
        )
    }

    fn holders(self) -> String {
        let holders = holders::of_port(self.protocol, self.number).unwrap_or_default();
        let named: Vec<String> = holders.iter().map(ToString::to_string).collect();
        if named.is_empty() { "somebody".to_owned() } else { named.join(", ") }
    }

    fn taken(self, who: &str, instead: u16) -> Problem {
        let holders = holders::of_port(self.protocol, self.number).unwrap_or_default();
        let end = stop(&holders);
        Problem::new(
            TAKEN,
            format!(
                "{self}, for {}, is taken by {who}; port {instead} serves in its stead",
                self.what_for
            ),
            match self.protocol {
                Protocol::Udp => format!(
                    "{end} and restart the agent, or choose another port in the agent's settings; until \
                     then firewalls have to let the other port pass"
                ),
                Protocol::Tcp => {
                    format!(
                        "{end} and restart the agent, or choose another port in the agent's settings"
                    )
                }
            },
        )
    }
}

/// Remedy for a port that another program holds.
#[must_use]
pub(crate) fn stop(holders: &[Holder]) -> String {
    let processes = holders.iter().filter_map(|it| Some(it.process.as_ref()?.0));
    let processes: BTreeSet<u32> = processes.filter(|it| *it != std::process::id()).collect();
    let named: Vec<String> = processes.iter().map(ToString::to_string).collect();
    match &*named {
        [] => "stop the program that has it (`ss -lnp` names it)".to_owned(),
        named => format!("`kill {}` (or stop its service)", named.join(" ")),
    }
}

/// Opens one above those that the kernel gives to programs that want any; and where somebody has taken
/// all of these, one that takes a privilege.
fn open_another<T>(open: impl Fn(u16) -> io::Result<T>) -> io::Result<(T, u16)> {
    for ports in [ANYBODYS, PRIVILEGED] {
        for _ in 0..ATTEMPTS {
            let number = ports.start + getrandom::u32()? as u16 % (ports.end - ports.start);
            match open(number) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                opened => return opened.map(|opened| (opened, number)),
            }
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transport = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{transport} port {}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn another_serves_for_a_taken_port_and_who_has_it_is_named_until_it_is_free() {
        let squatter = UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = squatter.local_addr().unwrap().port();
        let port = Port { protocol: Protocol::Udp, number, what_for: "tunnels (listen_port)" };
        let problems = Problems::default();
        let open = || port.open(&problems, |number| UdpSocket::bind(("127.0.0.1", number)));
        let (socket, another) = open().unwrap();
        assert_eq!(socket.local_addr().unwrap().port(), another);
        assert_ne!(another, number);
        let said = &problems.all()[0].text;
        assert!(said.starts_with(&format!("UDP port {number}, for tunnels")), "{said}");
        assert!(said.contains(&format!("(process {}, user ", std::process::id())), "{said}");
        assert!(said.ends_with(&format!("port {another} serves in its stead")), "{said}");

        drop(squatter);
        let own = OwnPorts { tunnels: another.into(), proxy: 15_001.into() };
        let settings = Settings { listen_port: number, ..Settings::default() };
        own.tell_again(&settings, &problems);
        let [told] = &*problems.all() else { panic!("{:?}", problems.all()) };
        assert!(told.text.contains("is free again"), "{told:?}");
        assert!(told.remedy.contains("restart isthmus-agent"), "{told:?}");
        assert_eq!(open().unwrap().1, number);
        assert_eq!(problems.all(), []);
        let anybodys_taken = |number: u16| match number {
            ..1024 => Ok(number),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        };
        let (opened, number) = port.open(&problems, anybodys_taken).unwrap();
        assert_eq!(opened, number);
        let all_taken = |_| Err::<(), _>(io::ErrorKind::AddrInUse.into());
        let said = format!("{:#}", port.open(&problems, all_taken).unwrap_err());
        assert!(said.contains("is taken by"), "{said}");
        let refused = |_| Err::<(), _>(io::ErrorKind::PermissionDenied.into());
        let said = format!("{:#}", port.open(&problems, refused).unwrap_err());
        assert!(said.contains("for tunnels (listen_port): permission denied"), "{said}");
    }
}
