//! Memory of a hop: idle, with idle connections, after many at once.

use std::time::Duration;

use isthmus_netns_tests::wait_for;

use super::load::Protocol;
use super::path::{GENERATORS_CPU, Path, pause};
use crate::report::Figures;

const IDLE: &str = "idle, MB";
const OWN: &str = "its own";
const HELD: &str = "1,000 idle, MB";
const EACH: &str = "KB/idle connection";
const AFTER: &str = "after 1,000 busy, MB";

const CONNECTIONS: u32 = 1000;
/// After its start an agent gives back what only that needed.
const CALM: Duration = Duration::from_secs(12);
const SETTLE: Duration = Duration::from_secs(25);
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures a path's programs, started anew for this.
pub(crate) fn measure(figures: &mut Figures, path: &mut Path) {
    path.restart();
    // Many rules are compiled again when the controller is there, and freed memory goes back later.
    pause(if path.has_many_rules() { SETTLE } else { CALM });
    let (Some(idle), Some(own)) = (path.resident_mb(), path.anonymous_mb()) else { return };
    let Some(target) = path.target(Protocol::Http1) else { return };
    let file = Protocol::Http1.file("1k");
    let start = format!("exec taskset -c {GENERATORS_CPU} {}", path.identity());
    figures.record(&path.name, IDLE, idle);
    figures.record(&path.name, OWN, own);

    let line = format!("{start} {} hold {target} {file} {CONNECTIONS}", path.bench);
    let _ = std::fs::remove_file(path.client.folder().join("hold.log"));
    let mut holder = path.client.spawn_sh("hold", &line);
    wait_for("the connections are held", PATIENCE, || {
        assert!(holder.is_running(), "{}", holder.output());
        holder.output().contains("held")
    });
    if let Some(held) = path.resident_mb() {
        figures.record(&path.name, HELD, held);
        figures.record(&path.name, EACH, (held - idle) * 1024.0 / f64::from(CONNECTIONS));
    }
    holder.kill();

    path.client.sh(&format!("{start} wrk -t1 -c{CONNECTIONS} -d2s http://{target}{file}"));
    pause(Duration::from_secs(1));
    if let Some(after) = path.resident_mb() {
        figures.record(&path.name, AFTER, after);
    }
}
