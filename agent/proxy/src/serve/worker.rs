//! One thread's share of the connections, and who looks after them.
//!
//! A connection stays on its thread with all that it uses: its tasks, its connections to
//! applications. So nothing is handed over, and no lock on a request's way is ever waited for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use isthmus_http::activity::Patience;
use isthmus_model::ServiceId;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};

use super::connection;
use crate::caller::connection::Connection;
use crate::caller::context::Shared;
use crate::cluster::permits::Permit;
use crate::config::limits::Limits;
use crate::config::parties::Side;

/// Between two looks at all connections, if the limits' times are long.
const LONGEST_TICK: Duration = Duration::from_secs(1);
const SHORTEST_TICK: Duration = Duration::from_millis(10);
/// At the end: between two looks for connections that became idle.
const LAST_LOOKS: Duration = Duration::from_millis(50);
/// Of these, what a connection gets on which nothing has come yet: its request may be on its way.
const FRESH_LOOKS: u32 = 10;
/// Between two looks for application connections that nobody used.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// The way to a worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerHandle {
    arrivals: mpsc::UnboundedSender<Arrival>,
    connections: Arc<AtomicUsize>,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Arrival {
    stream: std::net::TcpStream,
    /// The gateway and its port, of a client from outside.
    gateway: Option<(ServiceId, u16)>,
    stay: LoadGuard,
}

/// Keeps a connection's place, among all and among its worker's.
#[derive(Debug)]
struct LoadGuard {
    connections: Arc<AtomicUsize>,
    _place: Permit,
}

impl WorkerHandle {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Arrival>) {
        let (arrivals, receiver) = mpsc::unbounded_channel();
        (Self { arrivals, connections: Arc::default() }, receiver)
    }

    pub(crate) fn load(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Hands over a connection. Its place bounds how many there can be.
    pub(crate) fn enter(
        &self,
        stream: std::net::TcpStream,
        gateway: Option<(ServiceId, u16)>,
        place: Permit,
    ) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let stay = LoadGuard { connections: Arc::clone(&self.connections), _place: place };
        // A worker that is gone takes the connection with it.
        let _ = self.arrivals.send(Arrival { stream, gateway, stay });
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves what comes through a door until it closes; then finishes requests under way.
pub(crate) async fn run(shared: Arc<Shared>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
    let tick = tick(&shared.limits);
    let mut flock = ConnectionSet::new(patience(&shared.limits, tick));
    let mut views = shared.view.clone();
    let mut has_views = true;
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept = Instant::now();
    let mut drained: Option<Instant> = None;
    let mut looks = 0;
    while drained.is_none() || !flock.tasks.is_empty() {
        tokio::select! {
            arrival = arrivals.recv(), if drained.is_none() => match arrival {
                Some(arrival) => flock.admit(&shared, arrival),
                None => {
                    flock.ask_all_to_leave();
                    drained = Some(Instant::now() + shared.limits.drain);
                    ticks = interval_at(Instant::now() + LAST_LOOKS, LAST_LOOKS);
                }
            },
            Some(_) = flock.tasks.join_next() => {}
            changed = views.changed(), if has_views => {
                has_views = changed.is_ok();
                views.mark_unchanged();
                flock.judge_all();
            }
            _ = ticks.tick() => {
                if drained.is_some() {
                    looks += 1;
                    flock.let_idle_go(looks > FRESH_LOOKS);
                    continue;
                }
                shared.clock.tick();
                flock.end_the_quiet();
                flock.end_the_late();
                if swept.elapsed() >= SWEEP_INTERVAL {
                    shared.backends.sweep();
                    swept = Instant::now();
                }
            }
            () = sleep_until(drained.unwrap_or_else(Instant::now)), if drained.is_some() => {
                let connections = flock.tasks.len();
                tracing::info!(connections, "Cut connections that were still busy");
                return;
            }
        }
    }
}

/// The connections of one worker.
struct ConnectionSet {
    tasks: JoinSet<()>,
    members: Vec<Tracked>,
    patience: Patience,
}

struct Tracked {
    connection: Weak<Connection>,
    task: AbortHandle,
}

impl ConnectionSet {
    fn new(patience: Patience) -> Self {
        Self { tasks: JoinSet::new(), members: Vec::new(), patience }
    }

    fn admit(&mut self, shared: &Arc<Shared>, Arrival { stream, gateway, stay }: Arrival) {
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        let Some(connection) = connection::identify(shared, &stream, gateway) else {
            shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
            let _ = stream.set_zero_linger();
            return;
        };
        let connection = Arc::new(connection);
        let weak = Arc::downgrade(&connection);
        let present = ActiveGuard::new(Arc::clone(shared), stay);
        let task = self.tasks.spawn(async move {
            let _present = present;
            connection::run(connection, stream).await;
        });
        self.members.push(Tracked { connection: weak, task });
    }

    /// Cuts those whose callers may no longer reach their service.
    fn judge_all(&mut self) {
        self.members.retain(|member| {
            let Some(connection) = member.connection.upgrade() else { return false };
            if connection.is_denied() {
                connection.on_revoked();
                member.task.abort();
            } else if connection.cut_denied() {
                member.end_cut(&connection);
            }
            true
        });
    }

    /// Ends requests whose tokens have expired, and those that take too long.
    fn end_the_late(&self) {
        let now = SystemTime::now();
        for member in &self.members {
            if let Some(connection) = member.connection.upgrade()
                && !connection.activity.is_quiet()
                && connection.cut_late(now)
            {
                member.end_cut(&connection);
            }
        }
    }

    /// Has those leave that nobody used, whose head didn't come in time, or who don't read.
    fn end_the_quiet(&mut self) {
        let patience = self.patience;
        self.members.retain(|member| {
            let Some(connection) = member.connection.upgrade() else { return false };
            // A caller's own agent sees to it first, without any harm to its other callers.
            let unread = match connection.parties.side {
                Side::Client => patience.unread,
                Side::Server => patience.unread * 2,
            };
            if connection.activity.is_not_reading(unread) {
                tracing::debug!(from = %connection.parties.from, "Cut a caller that doesn't read");
                connection.activity.cut();
                member.task.abort();
            } else if connection.activity.is_too_quiet(patience) {
                member.let_go(&connection);
            }
            true
        });
    }

    /// After the requests that are under way, or about to be: what has come already is served.
    fn ask_all_to_leave(&self) {
        for connection in self.members.iter().filter_map(|member| member.connection.upgrade()) {
            connection.activity.ask_to_leave();
        }
    }

    fn let_idle_go(&self, also_fresh: bool) {
        for member in &self.members {
            if let Some(connection) = member.connection.upgrade()
                && connection.activity.is_idle()
                && (also_fresh || !connection.activity.is_fresh())
            {
                member.let_go(&connection);
            }
        }
    }
}

impl Tracked {
    /// Of a connection with requests that were cut: HTTP/2 ends them alone, HTTP/1 has one.
    fn end_cut(&self, connection: &Connection) {
        tracing::info!(
            from = %connection.parties.from,
            to = %connection.parties.to,
            "Cut requests that may not go on"
        );
        if connection.activity.is_http2() {
            connection.activity.look_again();
        } else {
            connection.on_cut();
            self.task.abort();
        }
    }

    /// Of a connection without requests: HTTP/2 says goodbye, HTTP/1 has no words for it.
    fn let_go(&self, connection: &Connection) {
        if connection.activity.is_http2() {
            connection.activity.ask_to_leave();
        } else {
            self.task.abort();
        }
    }
}

/// Counts a connection in and out, also when its task is aborted.
struct ActiveGuard {
    shared: Arc<Shared>,
    _stay: LoadGuard,
}

impl ActiveGuard {
    fn new(shared: Arc<Shared>, stay: LoadGuard) -> Self {
        shared.metrics.active.fetch_add(1, Ordering::Relaxed);
        Self { shared, _stay: stay }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.shared.metrics.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An eighth of the shortest patience is how late its end may be seen.
fn tick(limits: &Limits) -> Duration {
    (limits.head.min(limits.idle).min(limits.unread) / 8).clamp(SHORTEST_TICK, LONGEST_TICK)
}

fn patience(limits: &Limits, tick: Duration) -> Patience {
    let ticks = |time: Duration| (time.as_millis() / tick.as_millis().max(1)) as u32;
    Patience { head: ticks(limits.head), idle: ticks(limits.idle), unread: ticks(limits.unread) }
}
