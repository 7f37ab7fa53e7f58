//! Which endpoint takes a request. By default, of two picked at random the one with the lower cost
//! ("power of two choices", Mitzenmacher 2001); the cost is peak-EWMA's.
//!
//! No clock, no chance, no IO: times and random numbers come in as arguments.

mod budget;
mod ejection;
mod ewma;
mod hash;
mod retry;

pub(crate) use budget::Budget;
pub(crate) use ejection::{Admission, Ejection};
pub(crate) use ewma::PeakEwma;
pub(crate) use hash::{HashTable, hash};
pub(crate) use retry::{Attempt, may_repeat, wants_retry};

/// Picks one of `count` candidates, by two halves of a random number. None if there is nobody.
pub(crate) fn p2c(count: usize, random: u64, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let (high, low) = ((random >> 32) as usize, random as u32 as usize);
    let first = high.checked_rem(count)?;
    let Some(others) = low.checked_rem(count - 1) else { return Some(first) };
    // Not the first again.
    let second = (first + 1 + others) % count;
    Some(if cost(second) < cost(first) { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence that is as good as random (Weyl, then a finaliser).
    fn random(number: u64) -> u64 {
        let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits ^ bits >> 27
    }

    #[test]
    fn equal_endpoints_share_equally() {
        let mut share = [0; 4];
        for number in 0..40_000 {
            share[p2c(4, random(number), |_| 1.0).unwrap()] += 1;
        }
        assert!(share.iter().all(|count| (9_500..10_500).contains(count)), "{share:?}");
    }

    #[test]
    fn the_cheaper_of_two_takes_it_and_the_dearest_of_many_gets_nothing() {
        for number in 0..1_000 {
            assert_eq!(p2c(2, random(number), |at| [5.0, 1.0][at]), Some(1));
            assert_ne!(p2c(3, random(number), |at| [9.0, 1.0, 1.0][at]), Some(0));
        }
        assert_eq!((p2c(0, 7, |_| 0.0), p2c(1, 7, |_| 0.0)), (None, Some(0)));
    }
}
