//! Recent rates: the proxy's counters, looked at now and a while ago.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isthmus_proxy::{Metrics, MetricsSnapshot, SeriesLabels, SeriesSnapshot, StatusClass};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Between two looks.
const STEP: Duration = Duration::from_secs(10);
/// A minute of them.
const LOOKS: usize = 6;

/// The looks of the last minute.
#[derive(Debug)]
pub(crate) struct Windows {
    started: Instant,
    looks: Mutex<VecDeque<Look>>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    counted: MetricsSnapshot,
}

/// Traffic within a time.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) time: Duration,
    pub(crate) series: Vec<SeriesSnapshot>,
    pub(crate) ejections: Vec<(String, u64)>,
}

impl Windows {
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), looks: Mutex::default() }
    }

    /// Looks now and then, for ever.
    pub(crate) async fn keep(&self, metrics: &Metrics) {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look(metrics.snapshot());
        }
    }

    fn look(&self, counted: MetricsSnapshot) {
        let mut looks = self.looks.lock();
        looks.push_back(Look { at: Instant::now(), counted });
        if looks.len() > LOOKS {
            looks.pop_front();
        }
    }

    /// What was counted within the last seconds, or since the start if that is less, or if it is all
    /// that is asked for.
    pub(crate) fn within(&self, asked: Option<Duration>, counted: &MetricsSnapshot) -> Window {
        let now = Instant::now();
        let looks = self.looks.lock();
        // The youngest look that is old enough, else the oldest one.
        let old_enough = |look: &&Look| asked.is_some_and(|asked| now - look.at >= asked);
        let is_young = asked.is_none_or(|asked| now - self.started < asked);
        let look = looks.iter().rev().find(old_enough).or_else(|| looks.front());
        match look.filter(|_| !is_young) {
            Some(look) => Window {
                time: now - look.at,
                series: series_since(&counted.series, &look.counted.series),
                ejections: ejections_since(&counted.ejections, &look.counted.ejections),
            },
            None => Window {
                time: now - self.started,
                series: counted.series.clone(),
                ejections: counted.ejections.clone(),
            },
        }
    }
}

fn series_since(now: &[SeriesSnapshot], before: &[SeriesSnapshot]) -> Vec<SeriesSnapshot> {
    let key =
        |it: &SeriesSnapshot| -> (SeriesLabels, StatusClass) { (it.labels.clone(), it.status) };
    let before: BTreeMap<_, _> = before.iter().map(|it| (key(it), it)).collect();
    let since = |now: &SeriesSnapshot| {
        let Some(before) = before.get(&key(now)) else { return now.clone() };
        SeriesSnapshot {
            labels: now.labels.clone(),
            status: now.status,
            successes: now.successes.saturating_sub(before.successes),
            retries: now.retries.saturating_sub(before.retries),
            request_bytes: now.request_bytes.saturating_sub(before.request_bytes),
            response_bytes: now.response_bytes.saturating_sub(before.response_bytes),
            latency: now.latency.since(&before.latency),
        }
    };
    now.iter().map(since).filter(|it| it.latency.count() > 0).collect()
}

fn ejections_since(now: &[(String, u64)], before: &[(String, u64)]) -> Vec<(String, u64)> {
    let before: BTreeMap<_, _> = before.iter().cloned().collect();
    let since = |(service, count): &(String, u64)| {
        (service.clone(), count - before.get(service).copied().unwrap_or(0).min(*count))
    };
    now.iter().map(since).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use isthmus_proxy::{Histogram, Ruling, Side};

    use super::*;

    fn counted(requests: u64, ejections: u64) -> MetricsSnapshot {
        let mut latency = Histogram::default();
        (0..requests).for_each(|_| latency.observe(Duration::from_millis(5)));
        let labels = SeriesLabels {
            side: Side::Client,
            source: "service:client".to_owned(),
            service: "web".to_owned(),
            backend: "web".to_owned(),
            route: String::new(),
            ruling: Ruling::Allow,
        };
        let series = SeriesSnapshot {
            labels,
            status: StatusClass::Success,
            successes: requests,
            retries: 0,
            request_bytes: 0,
            response_bytes: 100 * requests,
            latency,
        };
        let ejections = vec![("web".to_owned(), ejections)];
        MetricsSnapshot { series: vec![series], ejections, ..MetricsSnapshot::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_holds_what_came_within_it() {
        let windows = Windows::new();
        // Ten requests in each step, the last of which has just begun.
        for step in 0..=9 {
            windows.look(counted(10 * step, step));
            tokio::time::advance(STEP).await;
        }
        let now = counted(100, 10);
        let of = |asked: Option<u64>| {
            let window = windows.within(asked.map(Duration::from_secs), &now);
            let series = window.series.first();
            let bytes = series.map_or(0, |it| it.response_bytes);
            let ejections: u64 = window.ejections.iter().map(|it| it.1).sum();
            let count = series.map_or(0, |it| it.latency.count());
            (window.time.as_secs(), count, bytes, ejections)
        };
        assert_eq!(of(Some(10)), (10, 10, 1000, 1));
        assert_eq!(of(Some(15)), (20, 20, 2000, 2));
        assert_eq!(of(Some(60)), (60, 60, 6000, 6));
        assert_eq!(of(Some(90)), (60, 60, 6000, 6), "more than is kept");
        assert_eq!(of(None), (100, 100, 10_000, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_agent_tells_all_it_has() {
        let windows = Windows::new();
        windows.look(counted(3, 0));
        tokio::time::advance(Duration::from_secs(5)).await;
        let window = windows.within(Some(Duration::from_secs(60)), &counted(7, 0));
        assert_eq!((window.time.as_secs(), window.series[0].latency.count()), (5, 7));
        windows.look(counted(7, 0));
        tokio::time::advance(Duration::from_secs(70)).await;
        let window = windows.within(Some(Duration::from_secs(60)), &counted(7, 0));
        assert!(window.series.is_empty());
    }
}
