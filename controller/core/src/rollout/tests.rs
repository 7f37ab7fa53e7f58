//! Rollouts from their first step to their end, in no time.

use std::time::{Duration, Instant};

use isthmus_model::HostId;
use isthmus_model::topology::{SourceFile, parse};
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const CALLER: HostId = HostId(1);
const OTHER: HostId = HostId(2);

fn served(behind: &[Name]) -> Circumstances<'_> {
    Circumstances { behind, has_servers: true }
}

fn declared(more: &str) -> RolloutDecl {
    let text = format!(
        "[host.a]\n[service.api]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\n\
         [service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n\
         [[route.api]]\nname = \"api\"\n\
         [rollout.api]\nroute = \"api\"\nstable = \"api\"\ncanary = \"v2\"\ninterval = \"10s\"\n{more}"
    );
    let files = [SourceFile { name: "mesh.toml".into(), text }];
    let topology = parse(&files).unwrap_or_else(|errors| panic!("{errors:?}"));
    topology.rollouts.into_values().next().unwrap()
}

fn name() -> Name {
    "api".parse().unwrap()
}

fn counts(requests: u64, failures: u64, took: Duration) -> Counts {
    Counts { requests, failures, latencies: vec![(took, requests)] }
}

/// A rollout with its clock.
struct Run {
    declared: RolloutDecl,
    rollout: Rollout,
    trial: Trial,
    now: Instant,
    start: Instant,
}

impl Run {
    fn new(more: &str) -> Self {
        let declared = declared(more);
        let now = Instant::now();
        Self { rollout: Rollout::new(&declared, 0), declared, trial: Trial::new(), now, start: now }
    }

    /// A second, in which agents report this of the canary and much good of the stable.
    fn second(&mut self, canary: &Counts) -> Decision {
        self.now += SECOND;
        self.trial.handle_counts(CALLER, Version::Canary, canary);
        self.trial.handle_served(canary.requests);
        self.trial.handle_counts(
            CALLER,
            Version::Stable,
            &counts(100, 0, Duration::from_millis(20)),
        );
        let decision = self.trial.decide(&self.declared, served(&[]), self.now);
        let then = match decision.clone() {
            Decision::Wait(_) => return decision,
            Decision::Advance => self.rollout.after_success(&name(), &self.declared),
            Decision::Fail(why) => self.rollout.after_failure(&self.declared, why),
        };
        self.rollout.phase = then;
        self.trial = std::mem::take(&mut self.trial).next();
        decision
    }

    /// Until it is over, at most so many seconds; how many it took.
    fn until_over(&mut self, canary: &Counts, most: u64) -> u64 {
        for _ in 0..most {
            if !matches!(self.rollout.phase, Phase::Progressing { .. }) {
                break;
            }
            let _ = self.second(canary);
        }
        (self.now - self.start).as_secs()
    }
}

#[test]
fn a_good_canary_takes_each_step_and_is_promoted() {
    let mut run = Run::new("steps = [5, 50]\nlatency = { p99 = \"100ms\", p50 = \"120%\" }");
    let good = counts(50, 0, Duration::from_millis(20));
    assert_eq!(run.rollout.weight(), 5);
    let took = run.until_over(&good, 100);
    assert_eq!((run.rollout.phase.clone(), run.rollout.weight()), (Phase::Promoted, 100));
    // Two intervals, and a second at the beginning of each.
    assert_eq!(took, 22);
}

#[test]
fn a_bad_canary_is_caught_long_before_the_interval_is_over() {
    // 100 of 2,000 requests per second, a twentieth of them fails.
    let mut run = Run::new("steps = [5, 50]");
    let took = run.until_over(&counts(100, 5, SECOND), 100);
    assert!(matches!(run.rollout.phase, Phase::RolledBack { .. }), "{:?}", run.rollout);
    assert_eq!(run.rollout.weight(), 0);
    assert!(took <= 4, "{took} s");
    assert!(run.rollout.phase.why().contains("success_rate is 99%"), "{:?}", run.rollout);
}

#[test]
fn a_slow_canary_is_caught_by_time_and_by_comparison() {
    for goal in ["p99 = \"100ms\"", "p95 = \"150%\""] {
        let mut run = Run::new(&format!("steps = [5, 50]\nlatency = {{ {goal} }}"));
        let took = run.until_over(&counts(10, 0, Duration::from_millis(220)), 100);
        assert!(matches!(run.rollout.phase, Phase::RolledBack { .. }), "{:?}", run.rollout);
        assert!(took <= 3, "{took} s");
        assert!(run.rollout.phase.why().contains("took longer"), "{:?}", run.rollout);
    }
}

#[test]
fn one_failure_of_three_proves_nothing() {
    let mut run = Run::new("min_requests = 3");
    let _ = run.second(&Counts::default());
    assert!(matches!(run.second(&counts(3, 1, SECOND)), Decision::Wait(_)));
    for _ in 0..9 {
        let _ = run.second(&Counts::default());
    }
    let Decision::Wait(why) = run.second(&Counts::default()) else { panic!("it was judged") };
    assert!(why.contains("1 of 3 requests failed") && why.contains("too few"), "{why}");
    // But not for ever.
    let took = run.until_over(&Counts::default(), 1_000);
    assert!(matches!(run.rollout.phase, Phase::RolledBack { .. }));
    assert!(took <= 101, "{took} s");
}

#[test]
fn without_requests_it_waits_and_says_so() {
    let mut run = Run::new("min_requests = 100");
    let few = counts(1, 0, SECOND);
    for _ in 0..50 {
        let _ = run.second(&few);
    }
    assert_eq!(run.second(&few), Decision::Wait("v2 had 50 of at least 100 requests".to_owned()));
}

#[test]
fn what_agents_report_before_they_have_the_weights_doesnt_count() {
    let declared = declared("");
    let mut trial = Trial::new();
    let now = Instant::now();
    let behind: Vec<Name> = ["a", "b", "c", "d"].map(|name| name.parse().unwrap()).into();
    trial.handle_counts(CALLER, Version::Canary, &counts(100, 100, SECOND));
    let waits = trial.decide(&declared, served(&behind), now + SECOND * 99);
    assert_eq!(
        waits,
        Decision::Wait("waits for a, b, c and 1 more to take the weights".to_owned())
    );
    assert!(matches!(trial.decide(&declared, served(&[]), now + SECOND * 99), Decision::Wait(_)));
    assert_eq!(trial.tally(Version::Canary).requests(), 0);
}

#[test]
fn orders_are_obeyed_where_they_make_sense() {
    use Order::{Abort, Pause, Promote, Resume, Retry};
    let declared = declared("steps = [10, 100]\nauto_promote = false\non_failure = \"pause\"");
    let mut rollout = Rollout::new(&declared, 0);
    // The phases that follow, and what of the five orders is refused in each.
    let story = [
        (Pause, "paused", 10, [true, false, false, false, true]),
        (Resume, "progressing", 10, [false, true, false, false, true]),
        (Abort, "rolled back", 0, [true, true, false, true, false]),
        (Retry, "progressing", 10, [false, true, false, false, true]),
        (Promote, "promoted", 100, [true, true, true, false, true]),
        (Abort, "rolled back", 0, [true, true, false, true, false]),
    ];
    for (order, phase, weight, refused) in story {
        rollout.phase = rollout.obey(order, "eve", &declared).unwrap();
        assert_eq!((rollout.phase.name(), rollout.weight()), (phase, weight), "{order:?}");
        let found = [Pause, Resume, Promote, Abort, Retry]
            .map(|order| rollout.obey(order, "eve", &declared).is_err());
        assert_eq!(found, refused, "{phase}");
    }
    let paused = Rollout::new(&declared, 0).after_failure(&declared, "slow".to_owned());
    assert_eq!(paused, Phase::Paused { weight: 10, why: "slow".to_owned() });
    rollout.phase = Phase::Progressing { weight: 100 };
    assert_eq!(rollout.after_success(&name(), &declared).name(), "paused");
}

#[test]
fn other_steps_go_on_from_the_weight_that_was_reached() {
    let rollout = Rollout::new(&declared("steps = [10, 100]"), 0);
    let finer = declared("steps = [5, 20, 100]");
    assert!(rollout.is_of(&finer));
    assert_eq!(rollout.after_success(&name(), &finer), Phase::Progressing { weight: 20 });
}

#[test]
fn what_is_stored_is_read_again() {
    let mut rollout = Rollout::new(&declared(""), 17);
    let why = "so".to_owned();
    for phase in [
        Phase::Progressing { weight: 5 },
        Phase::Paused { weight: 5, why: why.clone() },
        Phase::Promoted,
        Phase::RolledBack { why },
    ] {
        rollout.phase = phase;
        let json = serde_json::to_string(&rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&json).unwrap(), rollout);
    }
}

proptest! {
    /// Whatever is reported: with enough requests it is over in time, weights only rise until it
    /// is, and no failures never end in a rollback.
    #[test]
    fn it_always_ends(
        requests in 100_u64..1_000,
        failing in 0_u64..200,
        millis in 1_u64..300,
        steps in proptest::collection::btree_set(1_u8..=99, 1..5),
    ) {
        let list = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let goal = "latency = { p99 = \"100ms\", p90 = \"200%\" }";
        let mut run = Run::new(&format!("steps = [{list}]\n{goal}"));
        let failures = requests * failing / 1_000;
        let report = counts(requests, failures, Duration::from_millis(millis));
        let most = steps.len() as u64 * 101;
        let mut last = 0;
        for _ in 0..most {
            if let Phase::Progressing { weight } = run.rollout.phase {
                prop_assert!(weight >= last);
                last = weight;
                let _ = run.second(&report);
            }
        }
        let good = failures == 0 && millis < 35;
        match run.rollout.phase {
            Phase::Promoted => {
                // What was reported, which is whole requests.
                prop_assert!(failures * 1_000 <= requests * 15 && millis < 105);
            }
            Phase::RolledBack { .. } => prop_assert!(!good),
            Phase::Progressing { .. } | Phase::Paused { .. } => prop_assert!(false, "{:?}", run.rollout),
        }
    }
}

/// A step that watches, past its interval.
fn watching(declared: &RolloutDecl) -> (Trial, Instant) {
    let (mut trial, now) = (Trial::new(), Instant::now());
    assert!(matches!(trial.decide(declared, served(&[]), now), Decision::Wait(_)));
    (trial, now + declared.interval)
}

#[test]
fn requests_that_no_server_had_promote_nothing() {
    let declared = declared("min_requests = 50");
    let (mut trial, now) = watching(&declared);
    trial.handle_counts(CALLER, Version::Canary, &counts(100_000, 0, SECOND));
    let Decision::Wait(why) = trial.decide(&declared, served(&[]), now) else {
        panic!("it is promoted by one host's word")
    };
    assert!(why.contains("report 0"), "{why}");
    // Nor do a few real ones make up for many that weren't.
    trial.handle_served(60);
    assert!(matches!(trial.decide(&declared, served(&[]), now), Decision::Wait(_)));
    // Where nobody stands before the canary, callers are all there is.
    let nobody = Circumstances { has_servers: false, ..served(&[]) };
    assert_eq!(trial.decide(&declared, nobody, now), Decision::Advance);
}

#[test]
fn one_callers_word_hides_no_failures_of_others() {
    let declared = declared("min_requests = 50");
    let (mut trial, now) = watching(&declared);
    trial.handle_served(200_000);
    trial.handle_counts(OTHER, Version::Canary, &counts(200, 100, SECOND));
    trial.handle_counts(CALLER, Version::Canary, &counts(100_000, 0, SECOND));
    let decision = trial.decide(&declared, served(&[]), now);
    assert!(matches!(decision, Decision::Fail(_)), "{decision:?}");
}
