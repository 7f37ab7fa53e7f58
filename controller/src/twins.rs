//! Two machines with one identity: a virtual machine that was copied with its state directory.
//!
//! Each run of an agent has a number of its own, drawn at random. Where another run connects while the
//! former still answers, these are two machines: the one that was there first stays, whoever comes is
//! turned away, and operators are told. One that doesn't answer is gone, and the other is its successor.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::{Code, Name, Problem};
use isthmus_proto::v1;
use parking_lot::Mutex;

use crate::mesh::Mesh;
use crate::time;

const CODE: Code = Code::IdentityTwice;
/// A machine that was turned away asks again every half minute.
const REMEMBERED: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_secs(5);

/// The hosts that two machines claimed to be, and when the second one did so last.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    seen: Mutex<BTreeMap<Name, Instant>>,
}

impl Twins {
    /// A second machine was turned away.
    pub(crate) fn note(&self, mesh: &Mesh, host: &Name, first: IpAddr, second: IpAddr) {
        let text = format!(
            "a second machine, at {second}, came with the identity of host {host}, whose machine at {first} is connected"
        );
        mesh.events.push(v1::SecurityEvent {
            at: time::now(),
            reported_by: "controller".to_owned(),
            from_host: host.to_string(),
            claimed_source: second.to_string(),
            packets: 1,
            text: text.clone(),
        });
        let remedy = format!(
            "on whichever of the two is the copy, stop the agent, remove its state directory, and join with a token of its own; if it is {second} that should stay, stop the agent at {first}"
        );
        mesh.problems.raise(Problem::new(CODE, text, remedy).about(host.as_str()));
        self.seen().insert(host.clone(), Instant::now());
    }

    fn forget_old(&self, mesh: &Mesh, now: Instant) {
        self.seen().retain(|host, at| {
            let lasts = now.duration_since(*at) < REMEMBERED;
            if !lasts {
                mesh.problems.clear(CODE, host.as_str());
            }
            lasts
        });
    }

    fn seen(&self) -> parking_lot::MutexGuard<'_, BTreeMap<Name, Instant>> {
        self.seen.lock()
    }
}

/// Forgets those that came no more, for ever; also those that found no place.
pub(crate) async fn follow(mesh: Arc<Mesh>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        mesh.twins.forget_old(&mesh, Instant::now());
        mesh.crowd.forget_old(&mesh.problems, Instant::now());
    }
}
