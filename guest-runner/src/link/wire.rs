//! One HTTP/2 connection and the tasks it lives in.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentlab_protocol::seed::SeedChannel;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::body::RequestBody;

/// Small windows: what a slow disk has not taken yet waits in memory.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
const SEND_BUFFER: usize = 128 * 1024;
/// A host that answers no ping for so long is gone, whatever TCP thinks.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(20);

/// Any way to the host.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Owns what hyper spawns. hyper's own tasks hold a clone, so only [`Tasks::stop`] or the wire's drop ends them.
#[derive(Debug, Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn abort(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    async fn stop(&self) {
        let mut running = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        running.shutdown().await;
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One task for each request: the finished ones must not pile up.
        while running.try_join_next().is_some() {}
        running.spawn(task);
    }
}

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) sender: SendRequest<RequestBody>,
    pub(crate) channel: SeedChannel,
    /// Tells this wire from the one that replaced it.
    pub(crate) number: u64,
    /// The host has answered on it.
    pub(crate) proven: bool,
    tasks: Tasks,
}

impl Wire {
    pub(crate) async fn open(stream: Box<dyn Duplex>, channel: SeedChannel, number: u64) -> io::Result<Self> {
        let tasks = Tasks::default();
        let (sender, connection) = Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_PATIENCE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Its error reaches every request that is under way.
        tasks.execute(async move { drop(connection.await) });
        Ok(Self {
            sender,
            channel,
            number,
            proven: false,
            tasks,
        })
    }

    /// Returns once nothing holds the stream: a serial port can be opened only then.
    pub(crate) async fn close(self) {
        self.tasks.stop().await;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}
