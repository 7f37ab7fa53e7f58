//! When the keeper wakes up.
//!
//! Any thread can leave the node with a deadline that comes sooner than the keeper knows. The alarm
//! is behind the node's lock, and tells such a thread to wake the keeper:
//!
//! ```text
//!   keeper    lock ─ do what is due ─ set ─ unlock ─ sleep until then, or until it's woken ─ again
//!   others    lock ─ work ─ bring forward ─ unlock ─ wake the keeper, if told to
//! ```
//!
//! A wake-up isn't lost between the keeper's unlocking and its sleep: an eventfd stays readable until
//! the keeper has drained it, which it does before it locks again.

use std::time::Instant;

/// What the keeper sleeps until, as far as it knows or has been told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alarm {
    /// None: until it's woken.
    at: Option<Instant>,
}

impl Alarm {
    /// The keeper will sleep until then.
    pub(super) const fn set(&mut self, due: Option<Instant>) {
        self.at = due;
    }

    /// There is something to do then. Whether the keeper is to be woken: it would come too late.
    #[must_use]
    pub(super) fn bring_forward(&mut self, due: Option<Instant>) -> bool {
        let is_late = due.is_some_and(|due| self.at.is_none_or(|at| due < at));
        if is_late {
            self.at = due;
        }
        is_late
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shuttle::sync::{Arc, Condvar, Mutex};
    use shuttle::thread;

    use super::*;

    /// In place of the eventfd, and of the keeper's `epoll_wait`.
    #[derive(Default)]
    struct Bed {
        sleep: Mutex<Sleep>,
        changed: Condvar,
    }

    #[derive(Default)]
    struct Sleep {
        is_rung: bool,
        /// None: awake.
        until: Option<Option<Instant>>,
        is_over: bool,
    }

    /// In place of the node: when there will be something to do.
    #[derive(Default)]
    struct Engine {
        due: Option<Instant>,
        alarm: Alarm,
    }

    impl Bed {
        fn ring(&self) {
            self.sleep.lock().unwrap().is_rung = true;
            self.changed.notify_all();
        }

        /// Sleeps until it's rung: time stands still. Whether to go on.
        fn sleep(&self, until: Option<Instant>) -> bool {
            let mut sleep = self.sleep.lock().unwrap();
            sleep.until = Some(until);
            self.changed.notify_all();
            while !sleep.is_rung {
                sleep = self.changed.wait(sleep).unwrap();
            }
            (sleep.is_rung, sleep.until) = (false, None);
            !sleep.is_over
        }

        /// Until when the keeper sleeps, once nothing will wake it sooner.
        fn settled(&self) -> Option<Instant> {
            let mut sleep = self.sleep.lock().unwrap();
            loop {
                match sleep.until {
                    Some(until) if !sleep.is_rung => return until,
                    Some(_) | None => sleep = self.changed.wait(sleep).unwrap(),
                }
            }
        }

        fn end(&self) {
            self.sleep.lock().unwrap().is_over = true;
            self.ring();
        }
    }

    fn keep(engine: &Mutex<Engine>, bed: &Bed) {
        loop {
            let mut locked = engine.lock().unwrap();
            let due = locked.due;
            locked.alarm.set(due);
            drop(locked);
            if !bed.sleep(due) {
                return;
            }
        }
    }

    /// A thread that leaves the node with these deadlines, one after the other.
    fn work(engine: &Mutex<Engine>, bed: &Bed, deadlines: &[Option<Instant>]) {
        for due in deadlines {
            let mut locked = engine.lock().unwrap();
            locked.due = *due;
            let is_late = locked.alarm.bring_forward(*due);
            drop(locked);
            if is_late {
                bed.ring();
            }
        }
    }

    fn nobody_oversleeps() {
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let (engine, bed) = (Arc::new(Mutex::new(Engine::default())), Arc::new(Bed::default()));
        let run = |deadlines: Vec<Option<Instant>>| {
            let (engine, bed) = (Arc::clone(&engine), Arc::clone(&bed));
            thread::spawn(move || work(&engine, &bed, &deadlines))
        };
        let keeper = {
            let (engine, bed) = (Arc::clone(&engine), Arc::clone(&bed));
            thread::spawn(move || keep(&engine, &bed))
        };
        let threads = [
            run(vec![at(5), at(3), at(9)]),
            run(vec![at(4), None, at(2)]),
            run(vec![at(7), at(1), at(6)]),
        ];
        for thread in threads {
            thread.join().unwrap();
        }
        let until = bed.settled();
        let due = engine.lock().unwrap().due.unwrap();
        assert!(until.is_some_and(|until| until <= due), "until {until:?}, due {due:?}");
        bed.end();
        keeper.join().unwrap();
    }

    #[test]
    fn the_keeper_never_oversleeps_a_deadline() {
        shuttle::check_random(nobody_oversleeps, 5_000);
        shuttle::check_pct(nobody_oversleeps, 5_000, 3);
    }
}
