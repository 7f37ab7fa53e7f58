//! How much of the machine went elsewhere.

use std::collections::{HashMap, HashSet};
use std::fs;

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
pub(crate) struct Shares {
    pub(crate) others: f64,
    pub(crate) stolen: f64,
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
    pub(crate) fn since(earlier: Self) -> Shares {
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
