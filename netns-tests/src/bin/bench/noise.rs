//! Noise and facts of this machine: how much of it went elsewhere, what a process takes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use std::{env, fs};

use isthmus_netns_tests::wait_for;

use crate::report::Figures;

const OTHERS: &str = "others' CPU, %";
const STOLEN: &str = "stolen CPU, %";

/// The kernel's own threads serve the lab, too.
const KTHREADD: u32 = 2;

/// CPU time so far, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    /// Of all kinds, idle too.
    all: f64,
    /// In processes and for them.
    processes: f64,
    stolen: f64,
    /// In this program, what it started, and the kernel's threads.
    lab: f64,
}

/// Parts of the machine's CPU time.
#[derive(Clone, Copy, Debug)]
struct Shares {
    others: f64,
    stolen: f64,
}

impl Noise {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cpu: Vec<f64> = stat
            .lines()
            .next()
            .map(|line| line.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect())
            .unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal
        let at = |field: usize| cpu.get(field).copied().unwrap_or_default();
        Self {
            all: cpu.iter().take(8).sum(),
            processes: at(0) + at(1) + at(2),
            stolen: at(7),
            lab: lab(),
        }
    }

    /// What went elsewhere since then. Processes that came and went meanwhile count, too: what isn't
    /// ours is theirs.
    fn since(earlier: Self) -> Shares {
        let now = Self::now();
        let all = (now.all - earlier.all).max(1.0);
        let others = (now.processes - earlier.processes) - (now.lab - earlier.lab);
        Shares { others: others.max(0.0) / all, stolen: (now.stolen - earlier.stolen) / all }
    }
}

fn lab() -> f64 {
    let processes = processes();
    let mut ours = HashSet::from([std::process::id(), KTHREADD]);
    loop {
        let before = ours.len();
        let children = processes.iter().filter(|(_, process)| ours.contains(&process.parent));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        ours.extend(children);
        if ours.len() == before {
            break;
        }
    }
    ours.iter().filter_map(|pid| processes.get(pid)).map(|process| process.ticks).sum()
}

struct Process {
    parent: u32,
    /// With those of its children that have ended.
    ticks: f64,
}

fn processes() -> HashMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, Process::read(&stat)?))
        })
        .collect()
}

impl Process {
    fn read(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
        // State is field 3: the parent is field 4, and utime, stime, cutime and cstime are 14 to 17.
        let ticks: f64 = fields.get(11..15)?.iter().filter_map(|it| it.parse::<f64>().ok()).sum();
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks })
    }
}

/// Where a program is: nodes have a search path of their own, without what cargo installed.
pub(crate) fn which(program: &str) -> Option<String> {
    let folders = env::var_os("PATH")?;
    let found = env::split_paths(&folders).map(|it| it.join(program)).find(|it| it.is_file())?;
    Some(found.display().to_string())
}

/// User and system time of a process.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or("", |it| it.1).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0);
    // Fields 14 and 15 (utime, stime), counted from the state, which is field 3.
    let by_ticks = (ticks(11) + ticks(12)) / 100.0;
    exact_seconds(pid).unwrap_or(by_ticks)
}

/// The same to a nanosecond, of the threads that are there now, where the kernel tells.
fn exact_seconds(pid: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanos = threads.flatten().map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<f64>().ok()
    });
    Some(nanos.sum::<Option<f64>>()? / 1e9)
}

/// Resident memory of a process; 0 if it is gone.
pub(crate) fn resident_mb(pid: u32) -> f64 {
    memory_mb(pid, "VmRSS:")
}

/// Without the program's own pages, and other files'.
pub(crate) fn anonymous_mb(pid: u32) -> f64 {
    memory_mb(pid, "RssAnon:")
}

fn memory_mb(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Waits until the machine is idle, for a while; tells how busy it was in the end.
pub(crate) fn wait_for_calm() -> f64 {
    let idle = || -> Option<(f64, f64)> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<f64> = stat
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        Some((fields.get(3)? + fields.get(4)?, fields.iter().sum()))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let Some(before) = idle() else { return f64::NAN };
        let until = Instant::now() + Duration::from_secs(2);
        wait_for("two seconds", Duration::from_secs(3), || Instant::now() >= until);
        let Some(after) = idle() else { return f64::NAN };
        let busy = 1.0 - (after.0 - before.0) / (after.1 - before.1);
        if busy < 0.05 || Instant::now() >= deadline {
            return busy;
        }
    }
}

/// Records what went elsewhere while a path was measured.
pub(crate) fn record_noise(figures: &mut Figures, path: &str, before: Noise) {
    let Shares { others, stolen } = Noise::since(before);
    figures.record(path, OTHERS, others * 100.0);
    figures.record(path, STOLEN, stolen * 100.0);
}

/// What a reader must know before believing the rest.
pub(crate) fn noise_of_rounds(figures: &Figures) -> String {
    let of = |measure| {
        let mut shares = figures.all(measure);
        shares.sort_by(f64::total_cmp);
        let median = shares.get(shares.len() / 2).copied().unwrap_or(f64::NAN);
        format!("{median:.1} % (at most {:.1})", shares.last().copied().unwrap_or(f64::NAN))
    };
    format!(
        "during the rounds other processes took {} of the machine's CPU time, its host {}",
        of(OTHERS),
        of(STOLEN)
    )
}
