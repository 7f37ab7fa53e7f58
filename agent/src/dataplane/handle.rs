//! Handle of the data plane for the control plane: a bounded queue of commands, which it never
//! waits for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use anyhow::{Context as _, anyhow};
use isthmus_core::{CompiledSnapshot, Deaf};
use isthmus_model::HostId;
use isthmus_net::poll::Waker;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Listed, Sample};

/// Flows and status are asked for by people.
const COMMANDS: usize = 64;

pub(super) enum Command {
    Switch(Arc<CompiledSnapshot>, oneshot::Sender<()>),
    Keys(Keys, oneshot::Sender<()>),
    Flows(usize, oneshot::Sender<Listed>),
    Sample(oneshot::Sender<Sample>),
    Ping(Ping, oneshot::Sender<Option<HostId>>),
    Turns(oneshot::Sender<Vec<u64>>),
    Moved,
    Deaf(Deaf),
    Write(Vec<u8>),
    Stop,
}

/// The host's tunnel key, and while it changes the other one.
pub(super) struct Keys(pub(super) Private, pub(super) Option<Private>);

type Private = Zeroizing<[u8; 32]>;

/// Request of [`Handle::ping`]; its token comes back in the event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    pub target: IpAddr,
    pub identifier: u16,
    pub sequence: u16,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: SyncSender<Command>,
    waker: Waker,
    asked: Asked,
}

/// Finds the port that a connection to the proxy asked for. It ends with the data plane.
#[derive(Clone)]
pub(super) struct Asked(
    pub(super) Arc<dyn Fn(SocketAddr, SocketAddr) -> Option<u16> + Send + Sync>,
);

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl Handle {
    pub(super) fn new(waker: Waker, asked: Asked) -> (Self, Receiver<Command>) {
        let (commands, obeyed) = sync_channel(COMMANDS);
        (Self { commands, waker, asked }, obeyed)
    }

    /// Makes `state` the revision in force; returns when it is.
    ///
    /// # Errors
    /// When the data plane is gone.
    pub(crate) async fn switch(&self, state: Arc<CompiledSnapshot>) -> anyhow::Result<()> {
        self.ask(|reply| Command::Switch(state, reply)).await
    }

    /// This host has these keys from now on; returns when it has.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) async fn use_keys(
        &self,
        key: Private,
        second: Option<Private>,
    ) -> anyhow::Result<()> {
        self.ask(|reply| Command::Keys(Keys(key, second), reply)).await
    }

    /// Up to `limit` flows, and how many there are.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) async fn flows(&self, limit: usize) -> anyhow::Result<Listed> {
        self.ask(|reply| Command::Flows(limit, reply)).await
    }

    /// Counters and peers.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) async fn sample(&self) -> anyhow::Result<Sample> {
        self.ask(Command::Sample).await
    }

    /// Sends an echo; the answer comes as an event. Tells which host is asked.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) async fn ping(&self, ping: Ping) -> anyhow::Result<Option<HostId>> {
        self.ask(|reply| Command::Ping(ping, reply)).await
    }

    /// How often each thread has turned, and has them all turn once more: who doesn't hangs.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) async fn turns(&self) -> anyhow::Result<Vec<u64>> {
        self.ask(Command::Turns).await
    }

    /// This host has other addresses now.
    pub(crate) fn moved(&self) {
        // A full queue: there is more to do than to speed up roaming.
        if self.commands.try_send(Command::Moved).is_ok() {
            self.waker.wake();
        }
    }

    /// Applications here that listen on one address family only.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub(crate) fn tell_deaf(&self, deaf: Deaf) -> anyhow::Result<()> {
        self.commands.try_send(Command::Deaf(deaf)).context("The data plane is busy")?;
        self.waker.wake();
        Ok(())
    }

    /// See [`isthmus_core::Node::asked_port`].
    #[must_use]
    pub(crate) fn asked_port(&self, own: SocketAddr, caller: SocketAddr) -> Option<u16> {
        (self.asked.0)(own, caller)
    }

    /// Puts a packet into the device, as if it had come by a tunnel and were let through.
    pub(crate) fn write(&self, packet: Vec<u8>) {
        // A full queue: it is lost, as packets may be.
        if self.commands.try_send(Command::Write(packet)).is_ok() {
            self.waker.wake();
        }
    }

    /// Tells the thread to end.
    pub(crate) fn stop(&self) {
        // A full queue is emptied in a moment: the thread never blocks.
        drop(self.commands.send(Command::Stop));
        self.waker.wake();
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(command(reply)) {
            Ok(()) => self.waker.wake(),
            Err(TrySendError::Full(_)) => return Err(anyhow!("The data plane is busy; try again")),
            Err(TrySendError::Disconnected(_)) => {
                return Err(anyhow!("The data plane has stopped"));
            }
        }
        answer.await.context("The data plane has stopped")
    }
}
