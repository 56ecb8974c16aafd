//! Threads that own SQLite connections, so that no executor thread ever waits for a disk.
//!
//! ```text
//!   call(work) ──► queue ──► thread 1: connection ──► reply
//!                        └─► thread 2: connection ──► reply
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::StoreError;

type Task = Box<dyn FnOnce(&mut Connection) + Send>;

/// What work inside a connection can fail with; the worker adds what was tried and on which file.
#[derive(Debug)]
pub(super) enum WorkError {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for WorkError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// One queue, one thread per connection.
#[derive(Debug)]
pub(super) struct Workers {
    path: PathBuf,
    queue: Mutex<Option<Sender<Task>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// The threads end when the queue is closed or dropped, after the work already in it.
    pub(super) fn start(name: &str, path: &Path, connections: Vec<Connection>) -> Result<Self, StoreError> {
        let (sender, receiver) = channel::<Task>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::with_capacity(connections.len());
        for connection in connections {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new()
                .name(name.into())
                .spawn(move || serve(connection, &receiver))
                .map_err(|error| StoreError::file("Starting a database thread", path, error))?;
            threads.push(thread);
        }
        Ok(Self {
            path: path.into(),
            queue: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
        })
    }

    /// Runs `work` on one of the connections. A panic in it is the caller's; the thread lives on.
    pub(super) async fn call<T, W>(&self, action: &'static str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&mut Connection) -> Result<T, WorkError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let result = catch_unwind(AssertUnwindSafe(|| work(connection)));
            // The caller may have gone; the work stands all the same.
            let _ = reply.send(result);
        });
        lock(&self.queue)
            .as_ref()
            .ok_or(StoreError::Closed)?
            .send(task)
            .map_err(|_| StoreError::Closed)?;
        match answered(answer).await? {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(WorkError::Store(error))) => Err(error),
            Ok(Err(WorkError::Sql(error))) => Err(StoreError::database(action, &self.path, error)),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Refuses new work, finishes the old, closes the connections. Blocks meanwhile.
    pub(super) fn close(&self) {
        drop(lock(&self.queue).take());
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!(database = %self.path.display(), "A database thread had panicked");
            }
        }
    }
}

#[cfg(not(feature = "still-clock"))]
async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, StoreError> {
    answer.await.map_err(|_| StoreError::Closed)
}

/// Waits in a way that tokio can see: a runtime whose clock is paused moves it on only when nothing goes on, and does
/// not know of our threads.
#[cfg(feature = "still-clock")]
async fn answered<T: Send + 'static>(answer: oneshot::Receiver<T>) -> Result<T, StoreError> {
    let waiting = tokio::task::spawn_blocking(move || answer.blocking_recv());
    waiting
        .await
        .map_err(|_| StoreError::Closed)?
        .map_err(|_| StoreError::Closed)
}

fn serve(mut connection: Connection, receiver: &Mutex<Receiver<Task>>) {
    loop {
        // The guard is dropped before the task runs, so that the other thread can wait for the next one.
        let task = lock(receiver).recv();
        match task {
            Ok(task) => task(&mut connection),
            Err(_) => break,
        }
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "The database was not closed cleanly; nothing is lost");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
