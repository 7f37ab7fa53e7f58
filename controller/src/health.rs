//! Store health: reports to operators and the service manager, and recovery.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Code, Problem};
use sd_notify::NotifyState;
use tokio::time::timeout;
use tracing::warn;

use crate::mesh::Mesh;
use crate::store::{Change, StoreError};

const CODE: Code = Code::StoreFailing;
/// Between two attempts to write where writing fails.
const RETRY: Duration = Duration::from_secs(3);

/// Health of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    #[default]
    Well,
    /// Nothing can be changed, for this reason.
    Fails(String),
    /// What this process knows isn't what is stored: it must end.
    Lost(String),
}

impl Mesh {
    /// Makes changes durable, and takes note of how that went.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let done = self.store.commit(changes);
        self.note(&done);
        done.inspect(|()| self.staff.committed(changes))
    }

    fn note(&self, done: &Result<(), StoreError>) {
        let health = match done {
            Ok(()) => Health::Well,
            Err(error @ (StoreError::Moved(_) | StoreError::InUse(_))) => {
                Health::Lost(error.to_string())
            }
            Err(error) => Health::Fails(error.to_string()),
        };
        self.problems.set(CODE, health.problem());
        self.health.send_if_modified(|known| {
            let differs = *known != health;
            *known = health;
            differs
        });
    }

    /// Tries to write again while that fails, and tells the service manager, for ever.
    pub(crate) async fn follow_store(self: Arc<Self>) {
        let mut health = self.health.subscribe();
        loop {
            let now = health.borrow_and_update().clone();
            notify(&[NotifyState::Status(&now.sentence())]);
            if now == Health::Well {
                let _ = health.changed().await;
                // Where agents are may not have been stored.
                self.relocations.news.notify_one();
                continue;
            }
            if timeout(RETRY, health.changed()).await.is_err() {
                let _ = self.work(|mesh| mesh.commit(&[])).await;
            }
        }
    }

    /// Waits until this process knows no longer what is stored; says why.
    pub(crate) async fn lost(&self) -> String {
        let mut health = self.health.subscribe();
        let lost = |health: &Health| matches!(health, Health::Lost(_));
        let why = health.wait_for(lost).await.map(|health| health.sentence());
        match why {
            Ok(why) => why,
            // The sender is part of `self`.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Health {
    fn problem(&self) -> Option<Problem> {
        match self {
            Self::Well => None,
            Self::Fails(why) | Self::Lost(why) => Some(Problem::new(
                CODE,
                format!("nothing can be changed: {why}"),
                "make room on the controller's disk, or make its state directory writable",
            )),
        }
    }

    /// One line for people: what `systemctl status` shows.
    fn sentence(&self) -> String {
        match self {
            Self::Well => "Serves the mesh".to_owned(),
            Self::Fails(why) => format!("Serves the mesh, but nothing can be changed: {why}"),
            Self::Lost(why) => format!("Must start again: {why}"),
        }
    }
}

pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "failed to tell the service manager");
    }
}
