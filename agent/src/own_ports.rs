//! Ports that the agent can't do without, and who has them instead.

use std::io;

use anyhow::Context as _;
use isthmus_model::{Problem, Problems};
use isthmus_net::holders;
use isthmus_net::sock_diag::Protocol;

const TAKEN: &str = "port-taken";

/// A port of the agent's.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub protocol: Protocol,
    pub number: u16,
    /// What it is for, with the setting that chooses it.
    pub what_for: &'static str,
}

impl Port {
    /// What opening it came to. That somebody else has it is a problem until it is opened.
    ///
    /// # Errors
    /// Names whoever has it.
    pub fn opened<T>(self, problems: &Problems, opened: io::Result<T>) -> anyhow::Result<T> {
        let subject = self.to_string();
        match opened {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let problem = self.taken();
                let said = problem.text.clone();
                problems.raise(problem.about(subject));
                Err(anyhow::Error::new(error).context(said))
            }
            opened => {
                problems.clear(TAKEN, &subject);
                opened.with_context(|| format!("Failed to open {self} for {}", self.what_for))
            }
        }
    }

    fn taken(self) -> Problem {
        let holders = holders::of_port(self.protocol, self.number).unwrap_or_default();
        let named: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let who = if named.is_empty() { "somebody".to_owned() } else { named.join(", ") };
        Problem::new(
            TAKEN,
            format!("{self}, for {}, is taken by {who}", self.what_for),
            "stop that program, or choose another port in the agent's settings",
        )
    }
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
    fn a_taken_port_is_a_problem_that_names_who_has_it_until_it_is_free() {
        let squatter = UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = squatter.local_addr().unwrap().port();
        let port = Port { protocol: Protocol::Udp, number, what_for: "tunnels (listen_port)" };
        let problems = Problems::default();
        let bind = || port.opened(&problems, UdpSocket::bind(("127.0.0.1", number)));
        let said = format!("{:#}", bind().unwrap_err());
        let who = format!("(process {}, user ", std::process::id());
        assert!(said.starts_with(&format!("UDP port {number}, for tunnels")), "{said}");
        assert!(said.contains(&who), "{said}");
        assert!(problems.all()[0].text.contains(&who));
        drop(squatter);
        bind().unwrap();
        assert_eq!(problems.all(), []);
        let refused = Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied));
        let said = format!("{:#}", port.opened(&problems, refused).unwrap_err());
        assert!(said.contains("for tunnels (listen_port): permission denied"), "{said}");
    }
}
