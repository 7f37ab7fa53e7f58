//! Everything that must survive a restart, and what may happen to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::topology::{Diagnostic, SourceFile, Topology};
use isthmus_model::{Exposure, HostId, MeshPrefix, Name, PublicKey, Revision, TrustDomain};

use crate::allocation::{Allocation, AllocationError};
use crate::diagnostic;
use crate::inventory::{Inventory, Member, RequestHash, brought_by};
use crate::leaving::Leaving;
use crate::rollout::{Phase, Rollout};

/// Numbers that a lost history may have given, at most: nobody says how many.
const LOST_NUMBERS: u32 = 1_000;

/// Immutable identity of a mesh, made by `init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshIdentity {
    /// Its name.
    pub name: Name,
    /// The root of its identities.
    pub trust_domain: TrustDomain,
    /// Its IPv6 prefix.
    pub prefix: MeshPrefix,
    /// Who may reach services around it, where the topology doesn't say.
    pub exposure: Exposure,
}

/// A mesh at one revision. Every operation leaves it alone and returns the next one.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// What never changes.
    pub identity: MeshIdentity,
    /// The number of this state; 0 before anything has happened.
    pub revision: Revision,
    /// The operator's files.
    pub files: Arc<[SourceFile]>,
    /// What they say.
    pub topology: Arc<Topology>,
    /// Members.
    pub inventory: Inventory,
    /// Allocated numbers and addresses.
    pub allocation: Allocation,
    /// Progress of the topology's rollouts.
    pub rollouts: BTreeMap<Name, Rollout>,
    /// Workloads that are draining.
    pub leaving: Leaving,
}

/// A host that wants to join.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// The name that it wants to have.
    pub name: Name,
    /// Its tunnel key.
    pub public_key: PublicKey,
    /// Labels that its token grants.
    pub labels: BTreeMap<String, String>,
    /// The time, in seconds since the epoch.
    pub now: i64,
    /// When the certificate that it will get expires.
    pub certificate_expires: i64,
    /// What tells this request from any other.
    pub request: RequestHash,
    /// Whether its token is bound to its name: an operator wants this host, be it a member or not.
    pub is_expected: bool,
}

/// A host that is a member now.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The mesh with it.
    pub next: State,
    /// Its number.
    pub id: HostId,
    /// What its certificates say beside the number.
    pub generation: u32,
}

/// Why a host can't join, whatever its token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another member has the name.
    #[error(
        "a host named {0:?} is a member already. If this is that host, `agentctl token create --host {0}` makes a token with which it joins anew, under the same number and addresses; if that host is gone for good, `agentctl host remove {0}` makes the name free"
    )]
    NameTaken(Name),
    /// What the topology says of this name is more than the token grants.
    #[error(
        "the topology puts {what} on host {name:?}, which only a token for that name may get: `agentctl token create --host {name}`"
    )]
    NameIsPlaced {
        /// The name.
        name: Name,
        /// A service or device.
        what: String,
    },
    /// Another member or device has the tunnel key.
    #[error("the tunnel key is {0}'s already; every host needs a key of its own")]
    KeyTaken(String),
    /// There are no addresses for it.
    #[error("{cause}; {}", .cause.help())]
    Allocation {
        /// The missing grant.
        #[from]
        cause: AllocationError,
    },
}

impl State {
    /// A mesh in which nothing has happened yet.
    #[must_use]
    pub fn new(identity: MeshIdentity) -> Self {
        Self {
            identity,
            revision: Revision(0),
            files: Arc::new([]),
            topology: Arc::new(Topology::default()),
            inventory: Inventory::default(),
            allocation: Allocation::default(),
            rollouts: BTreeMap::new(),
            leaving: Leaving::default(),
        }
    }

    /// The member that this very request has made, if it has: the answer was lost.
    #[must_use]
    pub fn repeats(&self, host: &Name, request: &RequestHash) -> Option<&Member> {
        let member = self.inventory.member(host.as_str())?;
        (member.request.as_ref() == Some(request)).then_some(member)
    }

    /// A host joins. One that an operator expects may be a member already: it joins anew, under its
    /// number, and whoever has its former keys is no member any more.
    ///
    /// # Errors
    ///
    /// Its name or key is taken, or there are no addresses for it.
    pub fn join(&self, newcomer: Newcomer) -> Result<Admission, JoinError> {
        let before = self.inventory.member(newcomer.name.as_str());
        if before.is_some() && !newcomer.is_expected {
            return Err(JoinError::NameTaken(newcomer.name));
        }
        if !newcomer.is_expected
            && let Some(what) = brought_by(&newcomer.name, &newcomer.labels, &self.topology)
        {
            return Err(JoinError::NameIsPlaced { name: newcomer.name, what });
        }
        let owner = self.owner_of(newcomer.public_key, &newcomer.name);
        if let Some(owner) = owner {
            return Err(JoinError::KeyTaken(owner));
        }
        let mut next = self.next();
        if let Some(member) = next.inventory.member_mut(newcomer.name.as_str()) {
            member.public_key = newcomer.public_key;
            member.labels.extend(newcomer.labels);
            member.endpoints.clear();
            member.certificate_expires = newcomer.certificate_expires;
            member.generation += 1;
            member.request = Some(newcomer.request);
            member.rotation = None;
            let (id, generation) = (member.id, member.generation);
            next.reconcile()?;
            return Ok(Admission { next, id, generation });
        }
        let id = next.allocation.next_host();
        next.inventory.insert(Member {
            name: newcomer.name,
            id,
            public_key: newcomer.public_key,
            labels: newcomer.labels,
            endpoints: Vec::new(),
            joined: newcomer.now,
            certificate_expires: newcomer.certificate_expires,
            generation: 0,
            request: Some(newcomer.request),
            rotation: None,
        });
        next.reconcile()?;
        Ok(Admission { next, id, generation: 0 })
    }

    /// A host is removed; none if there is no such member.
    ///
    /// # Errors
    ///
    /// None that is known: removing takes no addresses.
    pub fn remove(&self, host: &str) -> Result<Option<Self>, AllocationError> {
        let mut next = self.next();
        if next.inventory.remove(host).is_none() {
            return Ok(None);
        }
        next.leaving = next.leaving.within(&next.inventory);
        next.reconcile()?;
        Ok(Some(next))
    }

    /// An operator applies a topology. Rollouts that are about the same routes and versions as before
    /// go on where they are; others begin.
    ///
    /// # Errors
    ///
    /// What in it contradicts the mesh as it is.
    pub fn apply(
        &self,
        files: Arc<[SourceFile]>,
        topology: Topology,
        now: i64,
    ) -> Result<Self, Vec<Diagnostic>> {
        let contradictions = self.contradictions(&files, &topology);
        if !contradictions.is_empty() {
            return Err(contradictions);
        }
        let leaving = self.leaving.after((&self.topology, &topology), &self.inventory, now);
        let mut next = Self {
            rollouts: self.rollouts_of(&topology, now),
            files,
            topology: Arc::new(topology),
            ..self.next()
        };
        // Where there are too few addresses for both, those who come go before those who leave.
        let attempt = |leaving| {
            let mut next = Self { leaving, ..next.clone() };
            next.reconcile().map(|()| next)
        };
        let reconciled = attempt(leaving).or_else(|_| attempt(Leaving::default()));
        next = reconciled
            .map_err(|error| vec![diagnostic::allocation(&error, &next.topology, &next.files)])?;
        Ok(next)
    }

    /// Time passes: workloads that were about to go do so; none if there are none.
    ///
    /// # Errors
    ///
    /// None that is known: it takes no addresses.
    pub fn let_go(&self, now: i64) -> Result<Option<Self>, AllocationError> {
        let leaving = self.leaving.at(now);
        if leaving == self.leaving {
            return Ok(None);
        }
        let mut next = Self { leaving, ..self.next() };
        next.reconcile()?;
        Ok(Some(next))
    }

    /// Says that the mesh's addresses clash with a route of a host's. No topology brings that about, since
    /// these stay as they are once hosts have joined; so none is held up by it.
    #[must_use]
    pub fn clash(host: &Name, route: &str) -> String {
        format!(
            "host {host} stays behind, whatever changes: its route \"{route}\" clashes with the mesh's \
             addresses; remove the route on {host}"
        )
    }

    /// The same topology, written differently: nothing that a host knows changes.
    #[must_use]
    pub fn rewrite(&self, files: Arc<[SourceFile]>) -> Self {
        Self { files, ..self.clone() }
    }

    /// Agents are reachable elsewhere; none if these are no news.
    #[must_use]
    pub fn relocate(&self, news: &BTreeMap<Name, Vec<SocketAddr>>) -> Option<Self> {
        let mut next = self.next();
        let mut moved = false;
        for (host, endpoints) in news {
            if let Some(member) = next.inventory.member_mut(host.as_str())
                && member.endpoints != *endpoints
            {
                member.endpoints.clone_from(endpoints);
                moved = true;
            }
        }
        moved.then_some(next)
    }

    /// A member has a new certificate; none if there is no such member. No host learns of it.
    #[must_use]
    pub fn renew(&self, host: &str, certificate_expires: i64) -> Option<Self> {
        let mut next = self.clone();
        next.inventory.member_mut(host)?.certificate_expires = certificate_expires;
        Some(next)
    }

    /// Goes on beyond revisions and numbers that were given by a history that this one knows nothing of, the
    /// revision up to `revision` and the hosts up to `host` among them.
    #[must_use]
    pub fn beyond(&self, revision: Revision, host: HostId) -> Self {
        let mut next = self.clone();
        next.revision = Revision(self.revision.0.max(revision.0) + 1);
        next.allocation.skip(host, LOST_NUMBERS);
        next
    }

    /// A rollout reaches another phase; none if it isn't in the one that this was decided in.
    #[must_use]
    pub fn advance_rollout(
        &self,
        name: &Name,
        decided_in: &Phase,
        then: Phase,
        now: i64,
    ) -> Option<Self> {
        let mut next = self.next();
        let rollout = next.rollouts.get_mut(name).filter(|it| it.phase == *decided_in)?;
        rollout.phase = then;
        rollout.since = now;
        Some(next)
    }

    fn rollouts_of(&self, topology: &Topology, now: i64) -> BTreeMap<Name, Rollout> {
        let declared = topology.rollouts.iter();
        let rollout = |(name, declared): (&Name, _)| {
            let before = self.rollouts.get(name).filter(|it| it.is_of(declared)).cloned();
            (name.clone(), before.unwrap_or_else(|| Rollout::new(declared, now)))
        };
        declared.map(rollout).collect()
    }

    fn reconcile(&mut self) -> Result<(), AllocationError> {
        self.allocation.reconcile(&self.topology, &self.inventory, &self.leaving)
    }

    pub(crate) fn next(&self) -> Self {
        Self { revision: Revision(self.revision.0 + 1), ..self.clone() }
    }

    /// Who else has a tunnel key, as people say it.
    pub(crate) fn owner_of(&self, key: PublicKey, but: &Name) -> Option<String> {
        let others = self.inventory.members().filter(|member| member.name != *but);
        let host = others.into_iter().find(|member| member.has_key(key));
        let device = self.topology.devices.iter().find(|(_, device)| device.public_key == key);
        host.map(|member| format!("host {:?}", member.name.as_str()))
            .or_else(|| device.map(|(name, _)| format!("device {:?}", name.as_str())))
    }

    fn contradictions(&self, files: &[SourceFile], topology: &Topology) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut mesh = |key, wanted: String, ours: String| {
            found.push(diagnostic::mesh_key(
                files,
                key,
                format!("`{key}` is {wanted:?}, but this controller's mesh has {ours:?}"),
                format!("write {ours:?}, leave `{key}` out, or apply to another controller"),
            ));
        };
        if let Some(name) = topology.mesh.name.as_ref().filter(|name| **name != self.identity.name)
        {
            mesh("name", name.to_string(), self.identity.name.to_string());
        }
        let domain = topology.mesh.trust_domain.as_ref();
        if let Some(domain) = domain.filter(|domain| **domain != self.identity.trust_domain) {
            mesh("trust_domain", domain.to_string(), self.identity.trust_domain.to_string());
        }
        for (name, device) in &topology.devices {
            let twin = self.inventory.members().find(|member| member.has_key(device.public_key));
            let Some(twin) = twin else { continue };
            found.push(diagnostic::at(
                files,
                &device.origin,
                format!("device {:?} has the tunnel key of host {:?}", name.as_str(), twin.name),
                "give the device a key pair of its own: `wg genkey`".to_owned(),
            ));
        }
        found
    }
}
