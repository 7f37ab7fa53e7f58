//! Socket to program look-up, within bounds.
//!
//! The answer is found by reading what processes have open, and packets wait meanwhile, other users'
//! too: whoever opens many flows that are searched for mustn't cost others more than a part of the
//! time. So a search that packets wait for is short, each user has so much time for them, all
//! together have, too, and what isn't found so is searched for by a thread. That flow's first packet
//! is lost; whoever tries again is known then. Failures are remembered as well.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use isthmus_net::process;

/// Time limit of a search that packets wait for.
const SHORT: Duration = Duration::from_millis(2);
/// Time limit of a search that nothing waits for.
const LONG: Duration = Duration::from_millis(200);
/// What a user's short searches may take of each second, and everybody's together.
const SHARE_OF_USER: Duration = Duration::from_millis(50);
const SHARE_OF_ALL: Duration = Duration::from_millis(150);
const PERIOD: Duration = Duration::from_secs(1);
/// Time before a failed search is repeated for its socket.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// Answers remembered.
const REMEMBERED: usize = 8192;
/// Searches that wait for the thread; of each user it has one at most.
const WAITING: usize = 64;

/// A socket, as far as it tells who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) uid: u32,
    pub(crate) cgroup_id: Option<u64>,
    pub(crate) inode: u32,
}

/// Looks for a socket's program in no more than a time.
type Search = fn(&Held, Option<&Path>, Duration) -> Option<PathBuf>;

/// Finds programs and remembers them.
#[derive(Debug)]
pub(crate) struct Programs {
    search: Search,
    known: HashMap<Held, Known>,
    spent: Spent,
    long: Option<Long>,
}

#[derive(Clone, Debug)]
enum Known {
    Program(Arc<Path>),
    /// It wasn't found then.
    Unknown(Instant),
}

/// The time that short searches took in this period.
#[derive(Debug)]
struct Spent {
    since: Instant,
    all: Duration,
    by_user: HashMap<u32, Duration>,
}

/// The thread, and what it was asked.
#[derive(Debug)]
struct Long {
    questions: SyncSender<(Held, Option<PathBuf>)>,
    answers: Receiver<(Held, Option<PathBuf>)>,
    /// Users who have asked it and have no answer yet.
    asking: HashSet<u32>,
}

impl Programs {
    pub(crate) fn new(now: Instant) -> Self {
        Self::searching_by(
            |held, cgroup, time| process::exe_of(held.inode, held.uid, cgroup, time),
            now,
        )
    }

    fn searching_by(search: Search, now: Instant) -> Self {
        let spent = Spent { since: now, all: Duration::ZERO, by_user: HashMap::new() };
        Self { search, known: HashMap::new(), spent, long: None }
    }

    /// Forgets what a program's path was compared with.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }

    /// The program of a socket whose cgroup has this directory. None if it can't be told, or not yet.
    pub(crate) fn of(
        &mut self,
        held: Held,
        cgroup: impl FnOnce() -> Option<PathBuf>,
        now: Instant,
    ) -> Option<Arc<Path>> {
        self.take_answers(now);
        match self.known.get(&held) {
            Some(Known::Program(program)) => return Some(Arc::clone(program)),
            Some(Known::Unknown(then)) if now < *then + FORGOTTEN => return None,
            Some(Known::Unknown(_)) | None => {}
        }
        let cgroup = cgroup();
        if self.spent.may(held.uid, now) {
            let began = Instant::now();
            let found = (self.search)(&held, cgroup.as_deref(), SHORT);
            let took = began.elapsed();
            self.spent.add(held.uid, took);
            if found.is_some() || took < SHORT {
                return self.remember(held, found, now);
            }
        }
        self.ask(held, cgroup, now);
        None
    }

    fn remember(&mut self, held: Held, found: Option<PathBuf>, now: Instant) -> Option<Arc<Path>> {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        let found: Option<Arc<Path>> = found.map(Arc::from);
        let known = found.clone().map_or(Known::Unknown(now), Known::Program);
        self.known.insert(held, known);
        found
    }

    /// Leaves a search to the thread, unless it is busy or has one of this user already.
    fn ask(&mut self, held: Held, cgroup: Option<PathBuf>, now: Instant) {
        if self.long.is_none() {
            self.long = Long::start(self.search);
        }
        let Some(long) = &mut self.long else { return };
        if long.asking.contains(&held.uid) {
            return;
        }
        match long.questions.try_send((held, cgroup)) {
            Ok(()) => {
                long.asking.insert(held.uid);
                self.remember(held, None, now);
            }
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => self.long = None,
        }
    }

    fn take_answers(&mut self, now: Instant) {
        while let Some(long) = &mut self.long
            && let Ok((held, found)) = long.answers.try_recv()
        {
            long.asking.remove(&held.uid);
            self.remember(held, found, now);
        }
    }
}

impl Spent {
    fn may(&mut self, uid: u32, now: Instant) -> bool {
        if now >= self.since + PERIOD {
            *self = Self { since: now, all: Duration::ZERO, by_user: HashMap::new() };
        }
        let own = self.by_user.get(&uid).copied().unwrap_or_default();
        own < SHARE_OF_USER && self.all < SHARE_OF_ALL
    }

    fn add(&mut self, uid: u32, time: Duration) {
        self.all += time;
        // INVARIANT: bounded by what all may spend in a period; a search takes some microseconds.
        *self.by_user.entry(uid).or_default() += time;
    }
}

impl Long {
    /// None if there can't be another thread: then searches are short.
    fn start(search: Search) -> Option<Self> {
        let (questions, asked) = sync_channel::<(Held, Option<PathBuf>)>(WAITING);
        let (answer, answers): (Sender<(Held, Option<PathBuf>)>, _) = channel();
        let work = move || {
            for (held, cgroup) in asked {
                let found = search(&held, cgroup.as_deref(), LONG);
                if answer.send((held, found)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("programs".to_owned()).spawn(work);
        if let Err(error) = thread {
            tracing::warn!(%error, "programs with many open files won't be recognised");
            return None;
        }
        Some(Self { questions, answers, asking: HashSet::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 1000;
    const PATIENCE: Duration = Duration::from_secs(30);

    fn held(uid: u32, inode: u32) -> Held {
        Held { uid, cgroup_id: None, inode }
    }

    /// As a process with very many files: found in time only by who has time.
    fn slow(held: &Held, _: Option<&Path>, time: Duration) -> Option<PathBuf> {
        if held.uid == USER {
            let began = Instant::now();
            while began.elapsed() < time.min(Duration::from_millis(20)) {
                std::hint::spin_loop();
            }
        }
        (held.uid != USER || time > SHORT).then(|| "/bin/program".into())
    }

    fn nothing(_: &Held, _: Option<&Path>, _: Duration) -> Option<PathBuf> {
        None
    }

    #[test]
    fn who_makes_searches_last_spends_a_users_share_and_no_more() {
        let now = Instant::now();
        let mut programs = Programs::searching_by(slow, now);
        let began = Instant::now();
        for inode in 0..1000 {
            programs.of(held(USER, inode), || None, now);
        }
        // A thousand searches of 20 ms are 20 s, of 2 ms are 2 s.
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let found = programs.of(held(USER + 1, 7), || None, now);
        assert_eq!(found.as_deref(), Some(Path::new("/bin/program")), "others are found at once");
    }

    #[test]
    fn what_takes_long_is_found_meanwhile() {
        let now = Instant::now();
        let mut programs = Programs::searching_by(slow, now);
        assert_eq!(programs.of(held(USER, 1), || None, now), None);
        let end = Instant::now() + PATIENCE;
        while programs.of(held(USER, 1), || None, now).is_none() {
            assert!(Instant::now() < end, "the thread never answers");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failure_is_remembered_for_a_while() {
        let now = Instant::now();
        let mut programs = Programs::searching_by(nothing, now);
        let mut asked = 0;
        for seconds in [0, 0, 0, 1, 1] {
            let now = now + FORGOTTEN * seconds;
            let cgroup = || {
                asked += 1;
                None
            };
            assert_eq!(programs.of(held(USER, 1), cgroup, now), None);
        }
        assert_eq!(asked, 2);
    }
}
