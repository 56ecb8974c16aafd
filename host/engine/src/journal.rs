//! The one way from the engine into the records. Every commit has a name, so that a test can stop the world at each of
//! them; a store that does not take what it is given is said aloud, once, until it does again.
//!
//! ```text
//!   driver, recovery, reconciliation ──► Journal::commit(point, writes) ──► Store
//!                                             │ refused: alarm in the status
//!                                             └ taken again: alarm taken back, event with the reason
//! ```

use std::fmt;
use std::sync::Mutex;

use agentlab_api::{Event, chain};
use agentlab_store::{SandboxRecord, Store, StoreError, Write};
use tokio::time::Instant;

use crate::event;
use crate::sandbox::machine::State;
use crate::sandbox::step::Step;
use crate::shared::lock;

/// What a commit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// A job is recorded, with its sandbox if there is a place.
    Reserve,
    /// A job that waited has its sandbox.
    Start,
    /// Another VMID is taken.
    ReserveAgain,
    /// A sandbox enters a state; the word is the state's, while it is being made the step's.
    Enter(&'static str),
    /// An undo is about to be tried.
    Undo(Step),
    /// A teardown rests, with something left.
    Left,
    /// Its tokens die.
    ForgetTokens,
    /// The guest has its answer.
    Acknowledge,
    /// A sign of life.
    Heartbeat,
    /// Output was appended.
    Log,
    /// A file arrived.
    Artifact,
    /// An operator wants a running job ended.
    Cancel,
    /// The lease is about to end.
    LeaseWarning,
    /// The lease begins anew.
    LeaseRenewed,
    /// Nobody uses a sandbox any more, or somebody does again.
    Used,
    /// A pause is over.
    WentOn,
    /// The hypervisor has named the task that does what was asked.
    TaskBegun,
    /// A job whose sandbox is gone ends.
    Abandoned,
    /// A workspace is asked for, changed, given or taken.
    Workspace,
    /// Something is told; nothing depends on it.
    Told,
}

impl Point {
    /// Of a state that is entered.
    pub(crate) fn enter(state: &State) -> Self {
        Self::Enter(match state {
            State::Provisioning { at } => at.as_str(),
            State::Unwinding { .. } => "Unwinding",
            State::Requested
            | State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Stopped
            | State::TimedOut
            | State::Failed { .. }
            | State::Destroyed => state.shown().as_str(),
        })
    }
}

impl fmt::Display for Point {
    /// In words, for example `enter Clone` or `undo PowerOn`: how a test names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enter(word) => write!(f, "enter {word}"),
            Self::Undo(step) => write!(f, "undo {step}"),
            Self::Reserve => f.write_str("reserve"),
            Self::Start => f.write_str("start"),
            Self::ReserveAgain => f.write_str("reserve again"),
            Self::Left => f.write_str("left"),
            Self::ForgetTokens => f.write_str("forget tokens"),
            Self::Acknowledge => f.write_str("acknowledge"),
            Self::Heartbeat => f.write_str("heartbeat"),
            Self::Log => f.write_str("log"),
            Self::Artifact => f.write_str("artifact"),
            Self::Cancel => f.write_str("cancel"),
            Self::LeaseWarning => f.write_str("lease warning"),
            Self::LeaseRenewed => f.write_str("lease renewed"),
            Self::Used => f.write_str("used"),
            Self::WentOn => f.write_str("went on"),
            Self::TaskBegun => f.write_str("task begun"),
            Self::Abandoned => f.write_str("abandoned"),
            Self::Workspace => f.write_str("workspace"),
            Self::Told => f.write_str("told"),
        }
    }
}

/// Which side of a commit.
#[cfg(any(test, feature = "observer"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Nothing of it is written.
    Before,
    /// It stands, and nobody has heard of it.
    After,
}

/// Sees every commit, from both sides. Tests stop the world in it: by never returning, by ending the process, or by an
/// error in the store's place. No program that is shipped is built with one.
#[cfg(any(test, feature = "observer"))]
#[async_trait::async_trait]
pub trait Observer: Send + Sync {
    /// # Errors
    /// Before: the commit fails with it, and nothing is written. After: the commit stands, and its answer is lost.
    async fn reached(&self, point: Point, moment: Moment) -> Result<(), StoreError>;
}

#[cfg(feature = "observer")]
static OF_THIS_PROCESS: std::sync::OnceLock<std::sync::Arc<dyn Observer>> = std::sync::OnceLock::new();

/// Shows every commit of every engine that is begun from now on. For the first caller only.
#[cfg(feature = "observer")]
pub fn observe(observer: std::sync::Arc<dyn Observer>) {
    // A second observer is a mistake of the test that it would show by never being asked.
    let _ = OF_THIS_PROCESS.set(observer);
}

/// See the module.
pub(crate) struct Journal {
    store: Store,
    /// Why nothing can be recorded, and since when.
    trouble: Mutex<Option<(String, Instant)>>,
    #[cfg(any(test, feature = "observer"))]
    pub(crate) observer: Option<std::sync::Arc<dyn Observer>>,
}

impl Journal {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            trouble: Mutex::default(),
            #[cfg(feature = "observer")]
            observer: OF_THIS_PROCESS.get().cloned(),
            #[cfg(all(test, not(feature = "observer")))]
            observer: None,
        }
    }

    /// Records all or nothing. An effect whose intent was refused is not tried.
    pub(crate) async fn commit(&self, point: Point, writes: Vec<Write>) -> Result<Vec<Event>, StoreError> {
        let done = self.observed(point, self.store.commit(writes)).await;
        self.heed(point, done).await
    }

    /// The same for numbers that are chosen in the transaction.
    pub(crate) async fn reserve<T, C>(&self, point: Point, choose: C) -> Result<T, StoreError>
    where
        T: Send + 'static,
        C: FnOnce(&[SandboxRecord]) -> Result<(T, Vec<Write>), String> + Send + 'static,
    {
        let done = self.observed(point, self.store.reserve(choose)).await;
        self.heed(point, done).await.map(|(value, _)| value)
    }

    /// Why nothing can be recorded at the moment.
    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.trouble)
            .as_ref()
            .map(|(reason, _)| format!("Nothing can be recorded, and so nothing is begun: {reason}"))
    }

    #[cfg(any(test, feature = "observer"))]
    async fn observed<T>(
        &self,
        point: Point,
        commit: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(observer) = &self.observer else {
            return commit.await;
        };
        observer.reached(point, Moment::Before).await?;
        let done = commit.await?;
        observer.reached(point, Moment::After).await?;
        Ok(done)
    }

    #[cfg(not(any(test, feature = "observer")))]
    async fn observed<T>(
        &self,
        _point: Point,
        commit: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        commit.await
    }

    /// Notes whether records are being taken. A refusal for the content's sake says nothing about that.
    async fn heed<T>(&self, point: Point, done: Result<T, StoreError>) -> Result<T, StoreError> {
        match &done {
            Err(StoreError::Conflict(_) | StoreError::Closed) => {}
            Err(error) => {
                let reason = chain(error);
                let mut trouble = lock(&self.trouble);
                if trouble.is_none() {
                    tracing::error!(%point, error = %reason, "nothing can be recorded");
                }
                let since = trouble.take().map_or_else(Instant::now, |(_, since)| since);
                *trouble = Some((reason, since));
            }
            Ok(_) => {
                let over = lock(&self.trouble).take();
                if let Some((reason, since)) = over {
                    self.tell_over(&reason, since).await;
                }
            }
        }
        done
    }

    /// What could not be written down while it lasted is written down now.
    async fn tell_over(&self, reason: &str, since: Instant) {
        let seconds = since.elapsed().as_secs();
        let text = format!("Nothing could be recorded for {seconds} s: {reason}");
        tracing::warn!("{text}");
        if let Err(error) = self.store.commit(vec![event::host_alarm(text)]).await {
            tracing::error!(error = %chain(&error), "alarm could not be recorded");
        }
    }
}
