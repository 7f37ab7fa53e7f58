//! Statistical evidence that a failure rate is too large, from a few observations.

/// The probability of at least `bad` bad ones among `all`, if each is bad with probability `share`.
///
/// Small values say: it isn't by chance that there are so many.
pub(super) fn chance_of(bad: u64, all: u64, share: f64) -> f64 {
    if bad == 0 || share >= 1.0 {
        return 1.0;
    }
    if bad > all || share <= 0.0 {
        return 0.0;
    }
    // Below the mean it is far from small, and exactness is of no use.
    if bad as f64 <= all as f64 * share {
        return 1.0;
    }
    let (k, n) = (bad as f64, all as f64);
    let ln_choose = ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k);
    let first = (ln_choose + k * share.ln() + (n - k) * (1.0 - share).ln()).exp();
    // Beyond the mean each term is smaller than the one before.
    let odds = share / (1.0 - share);
    let mut term = first;
    let mut sum = first;
    let mut at = k;
    while at < n && term > sum * 1e-9 {
        term *= (n - at) / (at + 1.0) * odds;
        sum += term;
        at += 1.0;
    }
    sum.min(1.0)
}

/// Stirling's series; exact to nine digits from 10 on, and summed up below.
fn ln_factorial(n: f64) -> f64 {
    if n < 10.0 {
        return (2..=n as u32).map(|it| f64::from(it).ln()).sum();
    }
    let inverse = 1.0 / n;
    let correction = inverse / 12.0 - inverse.powi(3) / 360.0 + inverse.powi(5) / 1260.0;
    n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + correction
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chances_are_those_of_the_binomial_distribution() {
        let close = |found: f64, exact: f64| (found / exact - 1.0).abs() < 1e-6;
        assert!(close(chance_of(1, 3, 0.01), 1.0 - 0.99_f64.powi(3)));
        assert!(close(chance_of(3, 3, 0.01), 1e-6));
        // By exact sums.
        assert!(close(chance_of(5, 100, 0.01), 0.003_432_321_588), "{}", chance_of(5, 100, 0.01));
        assert!(close(chance_of(60, 100, 0.5), 0.028_443_966_820), "{}", chance_of(60, 100, 0.5));
    }

    #[test]
    fn the_ends_are_certain() {
        assert_eq!(chance_of(0, 0, 0.01), 1.0);
        assert_eq!(chance_of(0, 10, 0.0), 1.0);
        assert_eq!(chance_of(1, 10, 0.0), 0.0);
        assert_eq!(chance_of(10, 10, 1.0), 1.0);
    }

    proptest! {
        #[test]
        fn more_bad_ones_are_less_likely(all in 1_u64..100_000, bad in 0_u64..1_000, share in 0.0_f64..1.0) {
            let bad = bad.min(all);
            let one = chance_of(bad, all, share);
            let more = chance_of(bad + 1, all, share);
            prop_assert!((0.0..=1.0).contains(&one));
            prop_assert!(more <= one * (1.0 + 1e-9));
        }
    }
}
