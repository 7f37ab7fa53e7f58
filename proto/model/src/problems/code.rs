//! The kinds of problems, each with a name that stays: scripts and people look for it.

use std::fmt;
use std::str::FromStr;

macro_rules! codes {
    ($($variant:ident $name:literal $means:literal)*) => {
        /// A kind of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $means] $variant,)*
        }

        impl Code {
            /// All of them, in order of their names.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As scripts know it: "guard-missing". It never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What is wrong in general, what that costs, and what to do.
            #[must_use]
            pub const fn means(self) -> &'static str {
                match self { $(Self::$variant => $means,)* }
            }
        }
    };
}

codes! {
    AgentDown "agent-down"
        "The agent doesn't answer on its socket: it isn't running, or hangs. Nothing of the mesh works on this host, and nothing leaves it in plaintext either. Start it; its log says why it ended."
    AgentMissing "agent-missing"
        "There is no isthmus-agent on this machine, so it can't be a host of a mesh. Install the package isthmus-agent."
    AgentTooOld "agent-too-old"
        "A host's agent is too old for something that the topology says. What it would read too widely isn't sent to it. Update the agent."
    AroundMesh "around-mesh"
        "A service's port can be reached without the mesh, past tunnel and policy. Let everybody come by the mesh, then close it by `exposure = \"mesh\"`."
    Audit "audit"
        "Policy only logs what it would deny: all of it, a namespace's, a service's or a rule's. What is logged as \"would deny\" passes. Once nothing is logged that should pass, take `audit` away."
    BridgesUnguarded "bridges-unguarded"
        "A bridge can't be kept from letting one container send as another, so containers on it are kept out of the mesh. The kernel needs nftables for bridges (CONFIG_NF_TABLES_BRIDGE)."
    CapabilityMissing "capability-missing"
        "The agent lacks a Linux capability that it works by. Run it by its unit, or grant what the problem names."
    CertificateNotKept "certificate-not-kept"
        "The agent has a new certificate, but couldn't write it: a restart goes back to the one before. Make room on the disk, or make the state directory writable."
    CertificateUnusable "certificate-unusable"
        "A certificate, its key or a list of authorities can't be read or used. What was read before stays in use. The file is read again as soon as it, its owner or its mode changes; nothing needs a restart."
    CgroupsMissing "cgroups-missing"
        "There is no cgroup v2 hierarchy, so that services can't be told by systemd unit, cgroup or container. Mount it, or boot with systemd.unified_cgroup_hierarchy=1."
    ClockSkew "clock-skew"
        "A clock is wrong, so that certificates and tokens seem not to be valid yet, or no longer. Have it kept in time by NTP."
    ContainerEngine "container-engine"
        "No engine tells which containers run, or one doesn't answer: those that begin now aren't known by name, image or label. Start Docker or Podman's socket, or name it by `engines` under [containers] in the agent's settings."
    ControllerForeign "controller-foreign"
        "What answers at the controller's address has a certificate by another CA than this host's mesh: it is another mesh's controller, or this mesh's was set up anew. Traffic goes on by the last revision; changes and certificates don't reach this host. Restore the controller's state, or leave and join again with a new token; or give the address back to this mesh's controller."
    ControllerUnreachable "controller-unreachable"
        "The agent reaches no controller. Traffic goes on by the last revision; changes and certificates don't reach this host. See whether the controller runs and TCP 7443 passes."
    ControllersNotKept "controllers-not-kept"
        "The agent couldn't write where controllers and the mesh are. Make room on the disk, or make the state directory writable."
    DeviceQueueFull "device-queue-full"
        "Packets into the mesh were dropped since the overlay device's queue was full: the agent has too little processor time, or somebody floods. A longer queue takes bursts."
    DnsNoUpstream "dns-no-upstream"
        "The host asks mesh DNS for all names, and mesh DNS knows nobody to ask for those outside the mesh. Name a server in [dns] upstream."
    DnsSilent "dns-silent"
        "Mesh DNS doesn't answer at one of the host's addresses: another server has port 53, or a firewall drops the question. See `ss -lnp`."
    EndpointsRestless "endpoints-restless"
        "A host's addresses change all the time, and others are told of few of the changes. Fix them by `endpoints` in its agent's settings."
    ExternalAddress "external-address"
        "The name of an [external.NAME] leads where no server outside the mesh can be (loopback, link-local, metadata, the mesh itself), and isn't followed."
    ExternalUnresolved "external-unresolved"
        "The name of an [external.NAME] has no address, as this host's resolver says. Requests to it get 503."
    FirewallProxy "firewall-proxy"
        "A firewall of the host's drops what the overlay hands to the proxy: HTTP hangs. Let the overlay's device pass; the mesh's policy decides there."
    FirewallTunnels "firewall-tunnels"
        "A firewall of the host's keeps tunnels out: no tunnel is up, and what drops by default has no rule for their port."
    ForeignListener "foreign-listener"
        "A process that isn't the service's listens on its port, and gets what is meant for it (unless `listener = \"strict\"`). Stop it, or correct `workload`."
    GatewayDoor "gateway-door"
        "A gateway can't listen on one of its ports, so that nobody comes in there. Stop who has it, or give the gateway another; it is tried again every three seconds."
    GuardMissing "guard-missing"
        "The overlay's addresses aren't guarded: a neighbour on the underlay could speak as a workload. Install nftables."
    GuardTaken "guard-taken"
        "Somebody changed or removed the overlay's packet filter; it was put back. Have firewalls flush their own tables only, not the whole ruleset."
    GuardUnwatched "guard-unwatched"
        "The kernel doesn't tell the agent of changes to packet filters, so it looks now and then. It needs CAP_NET_ADMIN."
    HostAway "host-away"
        "A host's agent isn't connected to the controller. Its traffic goes on by the last revision; it hears of no change. See whether the machine is on, the agent runs, and TCP 7443 passes."
    HostLeft "host-left"
        "The topology declares a host that has left the mesh, or was removed from it. Take it out of the topology, or let it join again."
    HostNotJoined "host-not-joined"
        "The topology declares a host that has never joined. Make a token for it, and join there."
    HostSilent "host-silent"
        "A host doesn't answer through its tunnel: requests go elsewhere, or get 503. See whether it is on, whether its agent runs, and whether its UDP port passes."
    HostUnknown "host-unknown"
        "A host has a certificate that this controller never gave: its state was restored from a backup that is older than that host."
    IdentityTwice "identity-twice"
        "Two machines have one host's identity: one is a copy of the other, with its state directory. The second is turned away. Let the copy join by a token of its own."
    Ipv6Missing "ipv6-missing"
        "The overlay has only IPv4 on this host, since IPv6 is switched off. It is used as soon as it is back."
    JoinFailed "join-failed"
        "The host was given a token by systemd (LoadCredential), and didn't become a member by it. Make a token where an operator is, and give it to `agentctl join -` on the host."
    JoinPlaces "join-places"
        "All places of the controller's port are taken by callers without a certificate; others are turned away. Members keep theirs."
    KernelOld "kernel-old"
        "The kernel is older than what the agent was made for: Linux 5.10 at least, 5.19 for notes of senders, 6.2 for offload of UDP."
    KeyReadable "key-readable"
        "A private key can be read by others than its owner: take the rights away; if others have been on this machine, join anew."
    KeysMissing "keys-missing"
        "The keys of a [jwt.NAME] can't be had, so that its tokens can't be verified: requests that need one get 503, or 401 where older keys know it not."
    LoopbackDown "loopback-down"
        "The loopback interface is down: nothing that the proxy or mesh DNS does on this host works."
    MeshNotForgotten "mesh-not-forgotten"
        "This host is no member of its mesh any more, but couldn't remove what it kept of it."
    MetricsUnserved "metrics-unserved"
        "Metrics can't be served at the address of the settings. Stop who has the port, or choose another."
    NetworkManaged "network-managed"
        "systemd-networkd or NetworkManager is set up to manage the overlay's device, and may take its addresses and routes away. Have it leave the device alone."
    NetworkTaken "network-taken"
        "Somebody took addresses, routes or rules of the overlay away; they were put back. Have whoever does it leave the device alone."
    NetworkUnwatched "network-unwatched"
        "The kernel doesn't tell the agent of changes to the network, so it looks every five seconds. It needs AF_NETLINK."
    NftMissing "nft-missing"
        "There is no nft, or the kernel refuses its rules. Without it a host has no overlay (unless `guard = \"optional\"`). Install nftables."
    NoIdentity "no-identity"
        "Containers or virtual machines with a network of their own sent to the mesh through this host: nobody knows which service that is, so it is refused."
    NotAMember "not-a-member"
        "This host is in no mesh yet. Have an operator make a token, and join."
    NotListening "not-listening"
        "Nothing listens on the port of a service that somebody may call: its callers are refused on this host. Start it; correct `port` or `listen`; or leave `port` out if the service only calls others."
    NotReached "not-reached"
        "A service's application listens where its callers don't reach it: on loopback alone, or by UDP on one family. Write `listen` into the topology, or have it listen on all addresses."
    NotRoot "not-root"
        "This check was made without root's rights, and couldn't look at everything."
    NotUndone "not-undone"
        "A revision that nobody confirmed couldn't be undone, since the topology before doesn't fit the mesh any more. Confirm it, then apply one that fits."
    PathNarrow "path-narrow"
        "The path to a host carries less than IPv6's 1,280 bytes in the tunnel: packets go out in fragments, slowly. Raise the MTU of the link that is too narrow."
    PeerUnreachable "peer-unreachable"
        "No tunnel to a host has come up, though packets wait for it: UDP doesn't reach it, or its answers don't reach this host. Let the tunnels' port pass both ways."
    PortTaken "port-taken"
        "Somebody else has a port of the agent's; another serves in its stead. Stop that program and restart the agent, or choose another port."
    PortsTaken "ports-taken"
        "Somebody changed or removed the packet filter that guards services' ports; it was put back."
    PortsUnguarded "ports-unguarded"
        "Ports that only the mesh may reach aren't closed around it. Install nftables."
    ProxyPlaces "proxy-places"
        "The proxy had no place for some connections: whoever makes very many has more than his share already, or all are taken. The log (debug) says who; if it is no attack, serve by more hosts."
    ResolverUntold "resolver-untold"
        "The host's resolver doesn't ask mesh DNS, so that names of services aren't known to programs."
    RevisionRefused "revision-refused"
        "This host can't work by the newest revision, and goes on by the one before. Other hosts work by the new one."
    RouteClash "route-clash"
        "A route of this host leads out of the mesh with some of the mesh's addresses. What is sent there is refused. Remove the route, or give the mesh another range."
    Selector "selector"
        "A service's `workload` fits no process that could be on this host, or anybody's. Correct it."
    SelectorTie "selector-tie"
        "One process fits the workloads of two services of its host equally well, and speaks as one of them: rules about the other aren't applied to it. Tell them apart by another selector."
    SendersNotNoted "senders-not-noted"
        "The kernel can't note who sends UDP: sockets that are closed at once aren't known. It needs Linux 5.19 and CAP_BPF."
    SettingsInvalid "settings-invalid"
        "The agent's settings can't be used, so that it doesn't start. Correct the line that the problem names."
    SnapshotNotKept "snapshot-not-kept"
        "The agent works by a revision that it couldn't write: a restart goes back to the one before. Make room on the disk, or make the state directory writable."
    SnapshotTooNew "snapshot-too-new"
        "The kept revision was made for a newer agent, and isn't worked by. Update the agent."
    SocketsUnknown "sockets-unknown"
        "The kernel doesn't say whose socket a flow is of: every process of this host speaks as the host. It needs sock_diag (CONFIG_INET_DIAG)."
    StateNotWritable "state-not-writable"
        "Nothing can be written to the state directory. All works from memory; a restart would forget what is new."
    StoreFailing "store-failing"
        "The controller can't store changes: nothing can be changed until it can. Make room on its disk, or make its state directory writable."
    StoreRestored "store-restored"
        "The controller's state is older than the mesh: it was restored from a backup. Apply the topology that is to be."
    TunMissing "tun-missing"
        "There is no /dev/net/tun, or the kernel has no TUN devices. Without it a host has no overlay."
    TunnelKeyForeign "tunnel-key-foreign"
        "The tunnel's key isn't the one that others know this host by: no tunnel works. Restore it, or join again."
    Unconfirmed "unconfirmed"
        "A revision was applied on trial, and is undone at the time that the problem names unless an operator confirms it. `agentctl confirm` keeps it."
    UnderlayMissing "underlay-missing"
        "This host has no address but loopback's: no tunnel can leave it. Bring its network up."
    UnknownResources "unknown-resources"
        "The controller sent something that this agent doesn't know. Update the agent."
}

impl Code {
    /// Whether a revision can bring it to a host that had nothing of it. `apply` says so then.
    #[must_use]
    pub const fn comes_with_revisions(self) -> bool {
        matches!(
            self,
            Self::AroundMesh
                | Self::CertificateUnusable
                | Self::ForeignListener
                | Self::GatewayDoor
                | Self::KeysMissing
                | Self::NotReached
                | Self::Selector
                | Self::SelectorTie
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.iter().find(|code| code.name() == text);
        named.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

/// There is no such code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no code of a problem; `agentctl check --codes` lists them")]
pub struct UnknownCode(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unlike_and_in_order_and_say_what_to_do() {
        assert!(Code::ALL.is_sorted_by(|one, next| one.name() < next.name()));
        for code in Code::ALL {
            assert_eq!(code.name().parse(), Ok(*code));
            assert!(code.means().trim_end().ends_with('.'), "{code}");
        }
        assert!("guard".parse::<Code>().is_err());
    }
}
