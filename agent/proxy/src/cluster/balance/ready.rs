//! Eligible endpoints: by site, by health, and by how long it has been there.

use std::time::Duration;

use super::choice::Level;
use super::ejection::Admission;

/// Envoy's overprovisioning factor: a site whose workloads are healthy to 1/1.4 can do all its own.
const OVERPROVISIONING: f64 = 1.4;
/// Envoy's least share at the start of a slow start.
const LEAST: f64 = 0.1;
/// A ramp's steps.
const STEPS: u32 = 50;

/// Properties of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Whether it is of the caller's site.
    pub(crate) near: bool,
    pub(crate) weight: u32,
    pub(crate) admission: Admission,
}

/// Endpoints that take requests until something changes.
///
/// Requests stay at the caller's own site as far as its healthy workloads go: with 1.4 times their
/// share, which is Envoy's way. If all sites together can't take everything, those of which less
/// than the panic threshold is healthy use all that they have: better some failures than a few
/// workloads that are overrun.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) near: Level,
    pub(crate) far: Level,
    /// Of the requests.
    pub(crate) near_share: f64,
    /// Those that may take one request each, to prove themselves.
    pub(crate) due: Vec<usize>,
    /// Whether a level uses what isn't healthy.
    pub(crate) panic: bool,
    /// When it has to be found anew, if nothing happens before.
    pub(crate) until: Option<Duration>,
    open: Vec<bool>,
}

impl Ready {
    pub(crate) fn new(
        candidates: &[Candidate],
        slow_start: Option<Duration>,
        panic_threshold: u8,
        now: Duration,
    ) -> Self {
        let mut until = None;
        let mut soonest = |time: Duration| {
            until = Some(until.map_or(time, |until: Duration| until.min(time)));
        };
        let mut due = Vec::new();
        let mut weigh = |at: usize, candidate: &Candidate| match candidate.admission {
            Admission::Open { since } => {
                let ramp = slow_start.filter(|time| now < since + *time);
                let Some(time) = ramp else { return f64::from(candidate.weight) };
                soonest((now + time / STEPS).min(since + time));
                let grown = now.saturating_sub(since).as_secs_f64() / time.as_secs_f64();
                f64::from(candidate.weight) * grown.clamp(LEAST, 1.0)
            }
            Admission::Closed { until } => {
                if now < until {
                    soonest(until);
                } else if candidate.weight > 0 {
                    due.push(at);
                }
                0.0
            }
            Admission::Probing => 0.0,
        };
        let weights: Vec<f64> =
            candidates.iter().enumerate().map(|(at, it)| weigh(at, it)).collect();
        let [near, far] = [true, false].map(|near| Half::new(candidates, &weights, near));
        let near_can = (near.healthy * OVERPROVISIONING).min(1.0);
        let far_can = (far.healthy * OVERPROVISIONING).min(1.0 - near_can);
        let all = near_can + far_can;
        let panics = |half: &Half| {
            all < 1.0 && half.count > 0 && half.healthy * 100.0 < f64::from(panic_threshold)
        };
        let near_share = match (near.count, far.count) {
            (0, _) => 0.0,
            (_, 0) => 1.0,
            _ if all > 0.0 => near_can / all,
            _ => 1.0,
        };
        let ready = |half: &Half| {
            let all = panics(half);
            let weight =
                |at: usize| if all { f64::from(candidates[at].weight) } else { weights[at] };
            Level::new(half.places.iter().map(|at| (*at, weight(*at))))
        };
        let (near_level, far_level) = (ready(&near), ready(&far));
        let mut open = vec![false; candidates.len()];
        for at in near_level.places().iter().chain(far_level.places()) {
            open[*at] = true;
        }
        let panic = panics(&near) || panics(&far);
        Self { near: near_level, far: far_level, near_share, due, panic, until, open }
    }

    /// The level that takes a request, by a number from 0 to 1; then the other one.
    pub(crate) fn levels(&self, point: f64) -> [&Level; 2] {
        if point < self.near_share { [&self.near, &self.far] } else { [&self.far, &self.near] }
    }

    pub(crate) fn is_open(&self, at: usize) -> bool {
        self.open.get(at).is_some_and(|open| *open)
    }
}

/// The endpoints of the caller's site, or all others.
struct Half {
    places: Vec<usize>,
    count: usize,
    /// Their share.
    healthy: f64,
}

impl Half {
    fn new(candidates: &[Candidate], weights: &[f64], near: bool) -> Self {
        let belongs = |at: &usize| candidates[*at].near == near && candidates[*at].weight > 0;
        let places: Vec<usize> = (0..candidates.len()).filter(belongs).collect();
        let healthy = places.iter().filter(|at| weights[**at] > 0.0).count();
        let count = places.len();
        let part = if count == 0 { 0.0 } else { healthy as f64 / count as f64 };
        Self { places, count, healthy: part }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const NOW: Duration = Duration::from_secs(1000);

    fn endpoint(near: bool, healthy: bool) -> Candidate {
        let admission = if healthy {
            Admission::Open { since: Duration::ZERO }
        } else {
            Admission::Closed { until: NOW + S }
        };
        Candidate { near, weight: 1, admission }
    }

    fn ready(near: (usize, usize), far: (usize, usize)) -> Ready {
        let part = |of_near, (healthy, all): (usize, usize)| {
            (0..all).map(move |at| endpoint(of_near, at < healthy))
        };
        let all: Vec<Candidate> = part(true, near).chain(part(false, far)).collect();
        Ready::new(&all, None, 50, NOW)
    }

    #[test]
    fn the_own_site_comes_first_and_spills_over_by_health() {
        for (near, far, share, panic) in [
            ((4, 4), (4, 4), 1.0, false),
            ((3, 4), (4, 4), 1.0, false), // 0.75 times 1.4
            ((2, 4), (4, 4), 0.7, false),
            ((1, 4), (4, 4), 0.35, false),
            ((0, 4), (4, 4), 0.0, false),
            ((0, 0), (4, 4), 0.0, false),
            ((2, 4), (0, 4), 1.0, true),
            ((0, 4), (0, 4), 1.0, true),
            ((1, 4), (0, 0), 1.0, true),
            ((2, 4), (0, 0), 1.0, false),
            ((1, 4), (1, 4), 0.5, true),
        ] {
            let ready = ready(near, far);
            assert!((ready.near_share - share).abs() < 1e-9, "{near:?} {far:?}: {ready:?}");
            assert_eq!(ready.panic, panic, "{near:?} {far:?}: {ready:?}");
        }
    }

    #[test]
    fn in_panic_all_of_a_site_are_used() {
        assert_eq!(ready((1, 4), (0, 0)).near.places(), [0, 1, 2, 3]);
        assert_eq!(ready((2, 4), (0, 0)).near.places(), [0, 1]);
        assert_eq!(ready((0, 1), (0, 0)).near.places(), [0]);
        let calm = Ready::new(&[endpoint(true, true), endpoint(true, false)], None, 0, NOW);
        assert_eq!((calm.near.places(), calm.panic), (&[0][..], false));
        let nobody = Ready::new(&[endpoint(true, false)], None, 0, NOW);
        assert_eq!(nobody.near.places(), [0; 0]);
        assert_eq!(Ready::new(&[], None, 50, NOW).levels(0.0)[0].places(), [0; 0]);
    }

    #[test]
    fn an_ejected_one_is_due_after_its_time() {
        let all = [endpoint(true, true), endpoint(true, false)];
        let before = Ready::new(&all, None, 50, NOW);
        assert_eq!((before.until, before.due.as_slice()), (Some(NOW + S), &[][..]));
        assert!(before.is_open(0) && !before.is_open(1) && !before.is_open(2));
        let after = Ready::new(&all, None, 50, NOW + S);
        assert_eq!((after.until, after.due.as_slice()), (None, &[1][..]));
    }

    #[test]
    fn a_new_endpoint_comes_to_its_share_slowly() {
        let new = Candidate { admission: Admission::Open { since: NOW }, ..endpoint(true, true) };
        let at = |passed: Duration| {
            let ready = Ready::new(&[endpoint(true, true), new], Some(30 * S), 50, NOW + passed);
            let level = &ready.near;
            let turns = (0..10_000).filter(|turn| level.in_turn(*turn) == Some(1)).count();
            (turns as f64 / 10_000.0, ready.until)
        };
        let share = |passed| at(passed).0;
        assert!((share(Duration::ZERO) - 0.1 / 1.1).abs() < 0.01);
        assert!((share(15 * S) - 0.5 / 1.5).abs() < 0.01);
        assert!((share(30 * S) - 0.5).abs() < 0.01);
        assert_eq!(at(Duration::ZERO).1, Some(NOW + 30 * S / 50));
        assert_eq!(at(30 * S).1, None);
    }

    #[test]
    fn weights_hold_and_zero_gets_nothing() {
        let weigh = |weight| Candidate { weight, ..endpoint(true, true) };
        let ready = Ready::new(&[weigh(3), weigh(1), weigh(0)], None, 50, NOW);
        assert_eq!(ready.near.places(), [0, 1]);
        let first = (0..1000).filter(|turn| ready.near.in_turn(*turn) == Some(0)).count();
        assert!((740..=760).contains(&first), "{first}");
    }
}
