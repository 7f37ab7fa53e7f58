//! Outliers by success rate: who fails more often than its like, if not in a row.

use std::sync::atomic::{AtomicU32, Ordering};

use isthmus_model::Outlier;

/// An endpoint's answers in an interval.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    all: AtomicU32,
    good: AtomicU32,
}

impl Tally {
    pub(crate) fn count(&self, good: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if good {
            self.good.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All and good ones since this was last asked.
    pub(crate) fn take(&self) -> (u32, u32) {
        (self.all.swap(0, Ordering::Relaxed), self.good.swap(0, Ordering::Relaxed))
    }
}

/// The places of those whose success rate is too low, as Envoy finds them: below the mean by more
/// than so many standard deviations. `tallies` are all and good answers of each.
pub(crate) fn outliers(tallies: &[(u32, u32)], settings: &Outlier) -> Vec<usize> {
    let volume = settings.success_rate_request_volume.max(1);
    let rates: Vec<(usize, f64)> = tallies
        .iter()
        .enumerate()
        .filter(|(_, (all, _))| *all >= volume)
        .map(|(at, (all, good))| (at, f64::from(*good) / f64::from(*all)))
        .collect();
    let enough = rates.len() >= settings.success_rate_minimum_hosts.max(2) as usize;
    if settings.success_rate_stdev_factor == 0 || !enough {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let factor = f64::from(settings.success_rate_stdev_factor) / 1000.0;
    let limit = mean - variance.sqrt() * factor;
    rates.into_iter().filter(|(_, rate)| *rate < limit).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_more_often_than_its_like_is_an_outlier() {
        let settings = Outlier::default();
        let mut tallies = vec![(200, 199); 5];
        assert_eq!(outliers(&tallies, &settings), [0; 0]);
        tallies.push((200, 140));
        assert_eq!(outliers(&tallies, &settings), [5]);
        let strict = Outlier { success_rate_stdev_factor: 2500, ..settings };
        assert_eq!(outliers(&tallies, &strict), [0; 0], "of six none can be so far off");
        let off = Outlier { success_rate_stdev_factor: 0, ..settings };
        assert_eq!(outliers(&tallies, &off), [0; 0]);
    }

    #[test]
    fn few_endpoints_and_few_requests_say_nothing() {
        let settings = Outlier::default();
        assert_eq!(outliers(&[(200, 200), (200, 200), (200, 0)], &settings), [0; 0]);
        assert_eq!(outliers(&[(99, 0), (99, 99), (99, 99), (99, 99), (99, 99)], &settings), [0; 0]);
        assert_eq!(outliers(&[], &settings), [0; 0]);
    }

    #[test]
    fn a_tally_begins_anew() {
        let tally = Tally::default();
        tally.count(true);
        tally.count(false);
        assert_eq!((tally.take(), tally.take()), ((2, 1), (0, 0)));
    }
}
