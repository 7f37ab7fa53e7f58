//! Operators: roles, certificates and the audit log.
//!
//! An operator's act is written to the audit log in the transaction that does it, so neither is there without the
//! other; what was tried in vain is written down after.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_controller_core::{Act, Audit, Operator, Operators, Role, TooMany};
use isthmus_model::Name;
use isthmus_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::{error, info};

use crate::caller::{Caller, in_time, peer};
use crate::mesh::Mesh;
use crate::store::{Change, Saved, StoreError};
use crate::time;

/// Who undoes what nobody confirmed. An operator of this name only shares its lines.
pub(crate) const CONTROLLER: &str = "controller";

/// Known operators.
#[derive(Debug)]
pub(crate) struct Staff {
    /// Whoever serves one for long watches it.
    operators: watch::Sender<Arc<Operators>>,
    audit: Mutex<Audit>,
    /// When each was heard of last in this run, and from where.
    seen: Mutex<BTreeMap<Name, (i64, IpAddr)>>,
}

/// An operator whose request is let in; in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Acting {
    pub(crate) name: Name,
    pub(crate) role: Role,
    pub(crate) from: IpAddr,
    /// When their certificate was issued.
    issued: i64,
}

/// Something that an operator wants done.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    pub(crate) who: String,
    from: String,
    what: String,
}

/// End of a former member's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    /// When, in seconds since the epoch.
    pub(crate) at: i64,
    /// The operator who removed it; none if it left by itself.
    pub(crate) by: Option<String>,
}

/// Name of such an act, put before the host's name.
const REMOVE: &str = "remove host ";
/// What a host does that leaves.
const LEAVE: &str = "leave the mesh";
/// Before its name: no operator's begins so.
const HOST: &str = "host ";

/// Why an operator isn't added or revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nobody of this name is known here")]
    Unknown,
    #[error("nobody else is an administrator")]
    LastAdmin,
}

/// Lets only operators pass whose certificate is worth something. Runs before a request's body is read.
#[derive(Clone)]
pub(crate) struct OperatorsOnly(pub(crate) Arc<Mesh>);

impl Interceptor for OperatorsOnly {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = peer(&request)?;
        match &peer.caller {
            Caller::Operator { name, issued, .. } => {
                in_time(&peer.caller)?;
                let acting = self.0.admit(name, *issued, peer.address.ip())?;
                request.extensions_mut().insert(acting);
                Ok(request)
            }
            Caller::Host { .. } => {
                Err(Status::permission_denied("Only operators may call this, not hosts."))
            }
            Caller::Anonymous => Err(Status::unauthenticated(
                "Only operators may call this: give their credentials (operator.toml).",
            )),
        }
    }
}

impl Staff {
    pub(crate) fn new(saved: &Saved) -> Self {
        Self {
            operators: watch::Sender::new(Arc::new(saved.operators.iter().cloned().collect())),
            audit: Mutex::new(saved.acts.iter().cloned().collect()),
            seen: Mutex::default(),
        }
    }

    /// All that are written down.
    pub(crate) fn operators(&self) -> Arc<Operators> {
        Arc::clone(&self.operators.borrow())
    }

    /// Watches what becomes of them.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Operators>> {
        self.operators.subscribe()
    }

    /// Takes note of what is durable now.
    pub(crate) fn committed(&self, changes: &[Change]) {
        for change in changes {
            if let Change::Act(act) = change {
                self.audit().insert(act.clone());
            }
            if let Change::Operator(operator) = change {
                self.operators.send_modify(|all| *all = Arc::new(all.with(operator.clone())));
            }
        }
    }

    fn audit(&self) -> MutexGuard<'_, Audit> {
        self.audit.lock()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<Name, (i64, IpAddr)>> {
        self.seen.lock()
    }
}

impl Acting {
    /// Says whether the operator's certificate is still worth something.
    pub(crate) fn is_good(&self, operators: &Operators) -> bool {
        operators.role(&self.name, self.issued).is_some()
    }

    /// Something that the operator wants done.
    pub(crate) fn wants(&self, what: String) -> Deed {
        Deed { who: self.name.to_string(), from: self.from.to_string(), what }
    }
}

impl Deed {
    /// An act of the controller itself.
    pub(crate) fn of_controller(what: String) -> Self {
        Self { who: CONTROLLER.to_owned(), from: String::new(), what }
    }

    /// An act of a host on itself.
    pub(crate) fn of_leaving(host: &Name, from: IpAddr) -> Self {
        Self { who: format!("{HOST}{host}"), from: from.to_string(), what: LEAVE.to_owned() }
    }

    /// That a host is to be removed, in words.
    pub(crate) fn removal(host: &str) -> String {
        format!("{REMOVE}{host}")
    }

    fn act(&self, done: bool, result: &str) -> Act {
        Act {
            number: 0,
            at: time::now(),
            who: self.who.clone(),
            from: self.from.clone(),
            what: self.what.clone(),
            done,
            result: result.to_owned(),
            times: 1,
        }
    }
}

/// The operator behind a request, if their role is enough for what they want.
pub(crate) fn permit<T>(request: &Request<T>, needed: Role) -> Result<Acting, Status> {
    let acting = request.extensions().get::<Acting>().cloned();
    let acting = acting.ok_or_else(|| Status::internal("The request has no operator."))?;
    if acting.role >= needed {
        return Ok(acting);
    }
    Err(Status::permission_denied(format!(
        "Operator {} has the role {}, and this needs {needed}: ask an administrator for `agentctl operator role {} {needed}`.",
        acting.name, acting.role, acting.name
    )))
}

impl Mesh {
    /// An operator comes with a certificate.
    pub(crate) fn admit(&self, name: &Name, issued: i64, from: IpAddr) -> Result<Acting, Status> {
        let role = self.staff.operators().role(name, issued).ok_or_else(|| revoked(name))?;
        self.staff.seen().insert(name.clone(), (time::now(), from));
        Ok(Acting { name: name.clone(), role, from, issued })
    }

    /// That something was done, as part of what does it. The lock keeps numbers apart.
    pub(crate) fn done(
        &self,
        _: &crate::mesh::Tokens<'_>,
        deed: &Deed,
        result: &str,
    ) -> Vec<Change> {
        self.written(deed.act(true, result))
    }

    fn written(&self, act: Act) -> Vec<Change> {
        let (act, goes) = self.staff.audit().next(act);
        std::iter::once(Change::Act(act)).chain(goes.map(Change::ActGone)).collect()
    }

    /// That something was tried in vain.
    pub(crate) fn in_vain(&self, deed: &Deed, why: &str) {
        let _tokens = self.tokens();
        info!(operator = deed.who, what = deed.what, why, "an operator tried in vain");
        let changes = self.written(deed.act(false, why));
        if let Err(error) = self.commit(&changes) {
            error!(%error, operator = deed.who, what = deed.what, "what was tried isn't written down");
        }
    }

    fn keep_an_admin(&self, operators: &Operators, next: &Operator) -> Result<(), OperatorError> {
        let is_kept = operators.with(next.clone()).has_admin(self.staff.seen().keys());
        if is_kept { Ok(()) } else { Err(OperatorError::LastAdmin) }
    }

    /// Adds an operator, or gives one another role. Returns when a certificate of theirs is to say that it was
    /// issued.
    pub(crate) fn add_operator(
        &self,
        name: &Name,
        role: Role,
        is_new: bool,
        deed: &Deed,
    ) -> Result<i64, OperatorError> {
        let tokens = self.tokens();
        if !is_new && !self.knows_operator(name) {
            return Err(OperatorError::Unknown);
        }
        let operators = self.staff.operators();
        let added = operators.add(name, role, &deed.who, time::now())?;
        self.keep_an_admin(&operators, &added)?;
        let mut changes = vec![Change::Operator(added)];
        changes.extend(self.done(&tokens, deed, "done"));
        self.commit(&changes)?;
        Ok(operators.issue_time(name, time::now()))
    }

    fn knows_operator(&self, name: &Name) -> bool {
        self.staff.operators().find(name).is_some()
            || self.staff.seen().contains_key(name)
            || self.staff.audit().knows(name.as_str())
    }

    /// Makes worthless what an operator has. Of somebody who was never heard of only if that is `meant`.
    pub(crate) fn revoke_operator(
        &self,
        name: &Name,
        is_meant: bool,
        deed: &Deed,
    ) -> Result<(), OperatorError> {
        let tokens = self.tokens();
        let operators = self.staff.operators();
        if !is_meant && !self.knows_operator(name) {
            return Err(OperatorError::Unknown);
        }
        let revoked = operators.revoke(name, &deed.who, time::now())?;
        if !is_meant {
            self.keep_an_admin(&operators, &revoked)?;
        }
        let mut changes = vec![Change::Operator(revoked)];
        changes.extend(self.done(&tokens, deed, "done"));
        self.commit(&changes)?;
        Ok(())
    }

    /// All operators that are written down or were heard of.
    pub(crate) fn list_operators(&self) -> Vec<v1::OperatorInfo> {
        let operators = self.staff.operators();
        let seen = self.staff.seen().clone();
        let mut all: BTreeMap<Name, v1::OperatorInfo> =
            operators.all().map(|one| (one.name.clone(), info_of(one))).collect();
        for (name, (at, from)) in seen {
            let info = all.entry(name.clone()).or_insert_with(|| v1::OperatorInfo {
                name: name.to_string(),
                role: Role::Admin.to_string(),
                ..v1::OperatorInfo::default()
            });
            (info.seen, info.seen_from) = (at, from.to_string());
        }
        all.into_values().collect()
    }

    /// Hosts that left or were removed, as far back as it is written down, each with the last time.
    pub(crate) fn departures(&self) -> HashMap<String, Departure> {
        let audit = self.staff.audit();
        let mut gone = HashMap::new();
        for act in audit.latest_first().filter(|act| act.done) {
            let left = act.who.strip_prefix(HOST).filter(|_| act.what == LEAVE);
            let removed = act.what.strip_prefix(REMOVE);
            if let Some(host) = left.or(removed) {
                let by = left.is_none().then(|| act.who.clone());
                gone.entry(host.to_owned()).or_insert(Departure { at: act.at, by });
            }
        }
        gone
    }

    /// Acts of operators, the latest first.
    pub(crate) fn acts(&self, who: &str, most: usize) -> Vec<v1::Act> {
        let audit = self.staff.audit();
        let acts = audit.latest_first().filter(|act| who.is_empty() || act.who == who);
        acts.take(most).map(message).collect()
    }
}

pub(crate) fn revoked(name: &Name) -> Status {
    Status::unauthenticated(format!(
        "Operator {name} was revoked: these credentials are worth nothing any more. An administrator makes others by `agentctl operator add {name} --role ROLE --out DIR`, and whoever is root on the controller's machine by `isthmus-controller operator {name} --out DIR`."
    ))
}

fn info_of(operator: &Operator) -> v1::OperatorInfo {
    v1::OperatorInfo {
        name: operator.name.to_string(),
        role: operator.role.to_string(),
        added: operator.added,
        added_by: operator.added_by.clone(),
        revoked: if operator.is_revoked() { operator.void_until } else { 0 },
        revoked_by: operator.revoked_by.clone(),
        ..v1::OperatorInfo::default()
    }
}

fn message(act: &Act) -> v1::Act {
    v1::Act {
        number: act.number,
        at: act.at,
        who: act.who.clone(),
        from: act.from.clone(),
        what: act.what.clone(),
        done: act.done,
        result: act.result.clone(),
        times: act.times,
    }
}
