//! `scripts/chaos`: faults at random, one after the other; each must leave the mesh as it was.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_netns_tests::chaos::{Chance, Chaos, Fault};

const USAGE: &str = "\
usage: scripts/chaos [OPTION]...
Takes the controller, hosts, both, or the room on a disk away from a mesh whose certificates live for 20 s,
and gives it back. All hosts must be back within 20 s, with their numbers and addresses, by themselves.
options:
  --rounds N         so many faults (50)
  --away SECONDS     so long each (60)
  --seed N           repeats a run
  --only A,B         only these: controller, network, hosts, both, host-disks, controller-disk";

struct Options {
    rounds: usize,
    away: Duration,
    seed: u64,
    faults: Vec<Fault>,
}

fn main() -> ExitCode {
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Options { rounds, away, seed, faults } = options;
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut chaos = Chaos::new("20s", Duration::from_secs(20));
    let (mut failed, mut slowest) = (0, Duration::ZERO);
    for round in 1..=rounds {
        let fault = faults[chance.below(faults.len())];
        match chaos.round(fault, away, &mut chance) {
            Ok(took) => {
                slowest = slowest.max(took);
                println!("{round:3} {:15} back after {:.1} s", fault.name(), took.as_secs_f64());
            }
            Err(what) => {
                failed += 1;
                println!("{round:3} {:15} NOT BACK: {what}", fault.name());
            }
        }
    }
    println!("{failed} of {rounds} failed; the slowest took {:.1} s", slowest.as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut options =
        Options { rounds: 50, away: Duration::from_secs(60), seed: now, faults: Fault::ALL.into() };
    while let Some(argument) = arguments.next() {
        let value = arguments.next()?;
        match &*argument {
            "--rounds" => options.rounds = value.parse().ok()?,
            "--away" => options.away = Duration::from_secs(value.parse().ok()?),
            "--seed" => options.seed = value.parse().ok()?,
            "--only" => {
                let named = |name: &str| Fault::ALL.into_iter().find(|it| it.name() == name);
                options.faults = value.split(',').map(named).collect::<Option<_>>()?;
            }
            _ => return None,
        }
    }
    Some(options)
}
