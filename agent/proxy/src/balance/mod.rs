//! Which endpoint takes a request: who is ready for any at all ([`ready`]), and who of them, by the
//! service's policy. By default, of two picked at random the one with the lower cost is likelier
//! ("power of two choices", Mitzenmacher 2001); the cost is peak-EWMA's.
//!
//! No clock, no chance, no IO: times and random numbers come in as arguments.

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
