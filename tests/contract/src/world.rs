//! The world a daemon is put into: a hypervisor in memory, a packet policy that permits and forbids nothing, and for
//! every machine a guest at the other end of its serial line.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agentlab_api::Vmid;
use agentlab_backend::fake::Fake;
use agentlab_engine::port::{Network, NetworkError, Port, Trust};
use agentlab_protocol::seed::Seed;
use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

use crate::script::Script;

/// Who plays the guests.
#[derive(Debug, Clone)]
pub enum Played {
    /// We, as each job's task says.
    ByTask,
    /// Whoever listens on this socket: one connection for each serial line, which begins with the seed.
    Elsewhere(PathBuf),
}

/// A packet policy that sees machines come and go, and gives each a guest.
#[derive(Debug)]
pub struct Guests {
    fake: Fake,
    played: Played,
    /// Guests outlive the daemon, whose runtime ends with it.
    runtime: Handle,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<()>,
    by_vmid: BTreeMap<Vmid, AbortHandle>,
}

impl Guests {
    /// Guests of this hypervisor's machines, in the runtime of whoever calls.
    #[must_use]
    pub fn new(fake: Fake, played: Played) -> Arc<Self> {
        Arc::new(Self {
            fake,
            played,
            runtime: Handle::current(),
            tasks: Mutex::default(),
        })
    }

    fn begin(&self, vmid: Vmid) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.by_vmid.contains_key(&vmid) {
            return;
        }
        let (fake, played) = (self.fake.clone(), self.played.clone());
        let guest = async move {
            match played {
                Played::ByTask => Script::new(fake, vmid).play().await,
                Played::Elsewhere(socket) => hand_over(&fake, vmid, &socket).await,
            }
        };
        let task = tasks.running.spawn_on(guest, &self.runtime);
        tasks.by_vmid.insert(vmid, task);
    }

    fn end(&self, vmid: Vmid) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = tasks.by_vmid.remove(&vmid) {
            task.abort();
        }
        while tasks.running.try_join_next().is_some() {}
    }
}

#[async_trait]
impl Network for Guests {
    async fn supports(&self, _trust: Trust) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn attach(&self, port: &Port) -> Result<Option<OwnedFd>, NetworkError> {
        self.begin(port.vmid);
        Ok(None)
    }
    async fn set_trust(&self, _vmid: Vmid, _trust: Trust) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError> {
        self.end(vmid);
        Ok(())
    }
    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tasks.by_vmid.keys().copied().collect())
    }
}

/// Joins every line of a machine with a connection to the socket, for as long as either lasts.
async fn hand_over(fake: &Fake, vmid: Vmid, socket: &Path) {
    loop {
        let mut line = fake.next_guest_channel(vmid).await;
        let seed = fake.seed(vmid).unwrap_or_default();
        // The test is over, or does not want this guest: the host sees a line that ends.
        let _ = join(&mut line, &seed, socket).await;
    }
}

async fn join(line: &mut DuplexStream, seed: &[u8], socket: &Path) -> io::Result<()> {
    let mut visitor = UnixStream::connect(socket).await?;
    visitor
        .write_u16(u16::try_from(seed.len()).map_err(io::Error::other)?)
        .await?;
    visitor.write_all(seed).await?;
    tokio::io::copy_bidirectional(line, &mut visitor).await?;
    Ok(())
}

/// The other end of [`Played::Elsewhere`].
#[derive(Debug)]
pub struct Visitors {
    listener: UnixListener,
}

impl Visitors {
    /// Listens.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn listen(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        Ok(Self { listener })
    }

    /// Waits for the next machine that is powered on: its seed and its guest's end of the serial line.
    ///
    /// # Errors
    /// What came is no seed.
    pub async fn next(&self) -> Result<(Seed, UnixStream)> {
        let (seed, line) = self.next_line().await?;
        Ok((seed.context("this machine's seed is gone already")?, line))
    }

    /// Waits for the next line that the host opens, be it the second one of a machine.
    ///
    /// # Errors
    /// What came is no seed.
    pub async fn next_line(&self) -> Result<(Option<Seed>, UnixStream)> {
        let (mut line, _) = self.listener.accept().await?;
        let length = line.read_u16().await?;
        let mut seed = vec![0; usize::from(length)];
        line.read_exact(&mut seed).await?;
        let seed = (length > 0).then(|| Seed::decode(&seed)).transpose()?;
        Ok((seed, line))
    }
}
