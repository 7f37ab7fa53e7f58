//! Drafts: a topology whose tables were read, each by itself, and nothing between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decl::MeshDecl;
use super::read::At;
use super::tables::device::DeviceDraft;
use super::tables::host::HostDraft;
use super::tables::policy::{PolicyDraft, RuleDraft};
use super::tables::ratelimit::RateLimitDraft;
use super::tables::rollout::RolloutDraft;
use super::tables::route::RouteDraft;
use super::tables::service::ServiceDraft;
use super::tables::test::TestDraft;
use crate::jwt::JwtProvider;
use crate::name::Name;

/// A topology whose tables are right, each by itself.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// None unless `[mesh]` is there.
    pub(super) mesh: Option<Declared<MeshDecl>>,
    pub(super) policy: Option<Declared<PolicyDraft>>,
    pub(super) hosts: BTreeMap<Name, Declared<HostDraft>>,
    pub(super) services: BTreeMap<Name, Declared<ServiceDraft>>,
    pub(super) devices: BTreeMap<Name, Declared<DeviceDraft>>,
    pub(super) jwt: BTreeMap<Name, Declared<Arc<JwtProvider>>>,
    pub(super) rules: Vec<RuleDraft>,
    pub(super) routes: Vec<RouteDraft>,
    pub(super) rollouts: BTreeMap<Name, Declared<RolloutDraft>>,
    pub(super) ratelimits: BTreeMap<Name, Declared<RateLimitDraft>>,
    /// Number per service.
    pub(super) route_counts: BTreeMap<Name, usize>,
    pub(super) tests: Vec<TestDraft>,
}

/// Something with a name, even if what is declared of it is wrong.
#[derive(Debug)]
pub(super) struct Declared<D> {
    pub(super) at: At,
    pub(super) draft: Option<D>,
}
