//! Load balancing: which endpoint takes a request. [`ready`] says which endpoints may take requests at all; the
//! service's policy picks one of them.
//!
//! The default policy draws two endpoints at random and prefers the one with the lower cost ("power of two choices",
//! Mitzenmacher 2001): peak-EWMA latency times requests under way. The preference is the square of the cost ratio, so
//! that equals share equally, also with one request at a time. The other policies are `least-request`,
//! `round-robin`, and `ring-hash` or `maglev` by header, cookie or caller. Hashes have no seed, so that all hosts
//! agree, and they ignore sites. Weights are exact under every policy.
//!
//! The caller's own site comes first. It keeps 1.4 times the share of its endpoints that is healthy and spills the rest
//! over, as Envoy does. With `slow_start`, new and returning endpoints grow from a tenth of their weight. Where less
//! than `panic_threshold` is healthy, all endpoints are used. The ready set is computed anew only when something has
//! changed, and what is known of an endpoint outlives revisions.
//!
//! No clock, no randomness, no IO: times and random numbers come in as arguments.

mod budget;
mod choice;
mod ejection;
mod ewma;
mod hash;
mod ready;
mod retry;
mod success_rate;
#[cfg(test)]
mod tests;

pub(crate) use budget::Budget;
pub(crate) use choice::{Level, Sharpness};
pub(crate) use ejection::{Admission, Ejection, Failure};
pub(crate) use ewma::PeakEwma;
pub(crate) use hash::{HashTable, hash};
pub(crate) use ready::{Candidate, Ready};
pub(crate) use retry::{Attempt, may_repeat, wants_retry};
pub(crate) use success_rate::{Tally, outliers};
