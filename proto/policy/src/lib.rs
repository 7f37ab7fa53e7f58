//! Policy engine: the one place that decides whether one identity may speak to another.
//!
//! The agent enforces with it, the controller slices with it, `agentctl` explains and simulates with
//! it. It is pure: no clock, no input or output, no state that changes.
//!
//! A [`Query`] names both ends, what the packet carries and, for a service that speaks HTTP, perhaps
//! a request. The answer is a [`Verdict`]: an [`Outcome`] and what decided it. The order is
//!
//! 1. the *deny* rules, in order of the files,
//! 2. the [built-in](BuiltIn) allowances that a mesh can't do without,
//! 3. the *allow* rules, in order of the files,
//! 4. the policy's default.
//!
//! The first that matches decides. What a rule covers depends on the destination:
//!
//! - Towards a service, a rule without `ports` covers the service's own port and protocol, and ping.
//!   Towards a host or device it covers everything. With `ports` it covers exactly those.
//! - A rule with `http` covers only requests: traffic to the own port of a service that speaks HTTP,
//!   and there only the requests that one of its entries matches.
//!
//! Traffic to the own port of an HTTP service can't be decided by its first packet. Asked without a
//! request, the engine answers [`Outcome::Inspect`] where some request could be allowed, and
//! [`Outcome::Deny`] where none could: then the flow needn't reach the proxy at all.
//!
//! A request's path is compared in a canonical form ([`path`]). A path that two programs could
//! read in two ways is brought into one or refused, as the service's `paths` says; and under `as-is`
//! it is refused wherever a rule about paths would have to decide it.
//!
//! So is its host ([`isthmus_model::host`]): one without a canonical form fits no allow rule that names
//! hosts, and every such deny rule.
//!
//! What a request says twice can be read in several ways: an allow rule matches only if every reading
//! does, a deny rule if any does ([`fields`]). A condition (`when`) that can't be told, since a key is
//! missing or types differ, doesn't match an allow rule and matches a deny rule. Tokens and their
//! claims come in as values, verified: the engine believes them.
//!
//! **Audit.** Where the policy audits, what would be denied passes; where a deny rule audits, that
//! rule doesn't deny and the search goes on. Either way [`Verdict::would_deny`] names the denier.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod changes;
mod check;
mod condition;
mod engine;
mod explain;
pub mod fields;
mod index;
pub mod path;
mod paths;
mod policy;
mod suggest;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "vectors"))]
pub mod vectors;
mod verdict;

pub use changes::{Access, Changes, Reach, changes};
pub use check::{TestResult, run_tests};
pub use explain::{Explanation, Step};
pub use paths::Starts;
pub use policy::Policy;
pub use suggest::Suggestion;
pub use verdict::{
    BuiltIn, DecidedBy, Decision, Outcome, Query, Request, RuleId, Stream, Token, Verdict,
};
