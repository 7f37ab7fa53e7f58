//! Keeps on disk what the agent works by already.
//!
//! A disk that is full, or fails, is no reason to throw away a certificate: the agent works by it from
//! memory, says that it isn't kept, and tries again until it is. (Snapshots: `StateDir::tend`.)

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Code, Problem};
use parking_lot::{Mutex, MutexGuard};

use crate::identity::{Member, TlsIdentity};
use crate::state_dir::StateDir;
use crate::status::Shared;

/// Codes of problems: what a restart would forget.
const CERTIFICATE: Code = Code::CertificateNotKept;
const CONTROLLERS: Code = Code::ControllersNotKept;
const AGAIN: Duration = Duration::from_secs(5);
const REMEDY: &str =
    "make room in the state directory, or make it writable; it is tried again every 5 s";

/// Writes to the state directory, again and again where that is needed.
pub(crate) struct Keeper {
    disk: Arc<StateDir>,
    shared: Arc<Shared>,
    owed: Mutex<Owed>,
    writing: Mutex<()>,
}

/// Changes that aren't on disk yet.
#[derive(Default)]
struct Owed {
    tls: Option<TlsIdentity>,
    member: Option<Member>,
}

impl Keeper {
    #[must_use]
    pub(crate) fn new(disk: Arc<StateDir>, shared: Arc<Shared>) -> Arc<Self> {
        // Of a membership before.
        for code in [CERTIFICATE, CONTROLLERS] {
            shared.problems.set(code, None);
        }
        Arc::new(Self { disk, shared, owed: Mutex::default(), writing: Mutex::default() })
    }

    /// Keeps a certificate and its key.
    pub(crate) async fn tls(self: &Arc<Self>, tls: TlsIdentity) {
        self.owed().tls = Some(tls);
        self.settle().await;
    }

    /// Keeps where controllers are, and the mesh.
    pub(crate) async fn member(self: &Arc<Self>, member: Member) {
        self.owed().member = Some(member);
        self.settle().await;
    }

    /// Tries again what is owed, for ever.
    pub(crate) async fn follow(self: &Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(AGAIN).await;
            if !self.owed().is_empty() {
                self.settle().await;
            }
        }
    }

    async fn settle(self: &Arc<Self>) {
        let this = Arc::clone(self);
        // A panic in there has been told; what is owed still is.
        let _ = tokio::task::spawn_blocking(move || this.write()).await;
    }

    /// One at a time: an older value must not overtake a newer one.
    fn write(&self) {
        let _turn = self.writing.lock();
        let problems = &self.shared.problems;
        let problem = |code, what: &str, error: anyhow::Error| {
            Problem::new(code, format!("{what} couldn't be kept on disk: {error:#}"), REMEDY)
        };
        let failed = self.attempt(|owed| &mut owed.tls, |tls| self.disk.write_tls(tls));
        let what = "this host's renewed certificate";
        problems.set(CERTIFICATE, failed.map(|error| problem(CERTIFICATE, what, error)));
        let failed = self.attempt(|owed| &mut owed.member, |it| self.disk.write_member(it));
        let what = "the addresses of the controller and of the mesh";
        problems.set(CONTROLLERS, failed.map(|error| problem(CONTROLLERS, what, error)));
    }

    /// Writes one of them, if it is owed; says why it still is.
    fn attempt<T>(
        &self,
        slot: impl Fn(&mut Owed) -> &mut Option<T>,
        write: impl FnOnce(&T) -> anyhow::Result<()>,
    ) -> Option<anyhow::Error> {
        let value = slot(&mut self.owed()).take()?;
        let error = write(&value).err()?;
        // Unless there is a newer one by now.
        slot(&mut self.owed()).get_or_insert(value);
        Some(error)
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock()
    }
}

impl Owed {
    const fn is_empty(&self) -> bool {
        self.tls.is_none() && self.member.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::tests::{identity, member};
    use crate::owners::SharedCgroups;
    use crate::settings::Settings;

    fn codes(shared: &Shared) -> Vec<String> {
        shared.problems.all().into_iter().map(|problem| problem.code).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_disk_refuses_is_kept_as_soon_as_it_takes_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("agent");
        let disk = Arc::new(StateDir::open(&path).unwrap());
        disk.write_identity(&identity()).unwrap();
        let shared = Shared::new(Settings::default(), SharedCgroups::default());
        let keeper = Keeper::new(Arc::clone(&disk), Arc::clone(&shared));
        // A folder where the new file would go: refused, also for root.
        for name in ["tls.pem.new", "member.toml.new"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        let renewed = identity().tls;
        let moved = Member { controllers: vec!["192.0.2.9:7443".to_owned()], ..member() };
        keeper.tls(renewed.clone()).await;
        keeper.member(moved.clone()).await;
        assert_eq!(codes(&shared), [CERTIFICATE.name(), CONTROLLERS.name()]);

        for name in ["tls.pem.new", "member.toml.new"] {
            fs::remove_dir(path.join(name)).unwrap();
        }
        let healed = async {
            while !codes(&shared).is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            never = keeper.follow() => match never {},
            healed = tokio::time::timeout(Duration::from_secs(60), healed) => healed.unwrap(),
        }
        let kept = disk.identity().unwrap().unwrap();
        assert_eq!((kept.tls.leaf, kept.member), (renewed.leaf, moved));
    }
}
