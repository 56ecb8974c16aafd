//! A way between a runner and its host that breaks where a test wants it to.
//!
//! ```text
//!   runner ──► gate ──► host      counts what goes in this direction, and cuts a connection after so much of it
//!          ◄──      ◄──
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Dropping it cuts everything.
#[derive(Debug)]
pub struct Gate {
    tally: Tally,
    _serving: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct Tally {
    passed: Arc<AtomicU64>,
    limits: Arc<Mutex<VecDeque<u64>>>,
    cuts: watch::Sender<usize>,
}

impl Gate {
    /// Between a port of its own, which it names, and one of the host's, where its connections come from `address`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn before(host: SocketAddrV4, address: Ipv4Addr) -> Result<(Self, SocketAddrV4)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let SocketAddr::V4(own) = listener.local_addr()? else {
            bail!("bound to an IPv4 address");
        };
        let tally = Tally::default();
        let mut serving = JoinSet::new();
        let counted = tally.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((runner, _)) = listener.accept().await {
                let tally = counted.clone();
                connections.spawn(async move {
                    // A connection that fails is one more that the runner has lost.
                    let _ = join_tcp(runner, host, address, &tally).await;
                });
            }
        });
        let gate = Self {
            tally,
            _serving: serving,
        };
        Ok((gate, own))
    }

    /// Between a Unix socket and serial lines of the host's: what is cut is the runner's side, what ends is the host's.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn on_line(path: &Path, mut lines: mpsc::UnboundedReceiver<UnixStream>) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let tally = Tally::default();
        let mut serving = JoinSet::new();
        let counted = tally.clone();
        serving.spawn(async move {
            let mut line = lines.recv().await;
            while let (Some(host), Ok((mut runner, _))) = (&mut line, listener.accept().await) {
                match counted.pass(&mut runner, host).await {
                    Ok(Side::Runner) => {}
                    Ok(Side::Host) | Err(_) => {
                        // Its other end waits for that before it brings another.
                        drop(line.take());
                        line = lines.recv().await;
                    }
                }
            }
        });
        Ok(Self {
            tally,
            _serving: serving,
        })
    }

    /// Each connection from now on is cut after so many bytes, one after the other; those beyond are let through.
    pub fn cut_after(&self, limits: impl IntoIterator<Item = u64>) {
        let mut waiting = self.tally.limits.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(limits);
    }

    /// Bytes that went to the host.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.tally.passed.load(Ordering::Relaxed)
    }

    /// Returns once so many connections were cut.
    pub async fn cut(&self, count: usize) {
        let mut cuts = self.tally.cuts.subscribe();
        // Its sender is ours.
        let _ = cuts.wait_for(|done| *done >= count).await;
    }
}

async fn join_tcp(
    mut runner: TcpStream,
    host: SocketAddrV4,
    address: Ipv4Addr,
    tally: &Tally,
) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    let mut host = socket.connect(host.into()).await?;
    tally.pass(&mut runner, &mut host).await?;
    drop(runner);
    host.shutdown().await?;
    // With a word of the host's unread, closing would be a reset, which takes what passed out of the host's hands again.
    tokio::io::copy(&mut host, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Who ended a connection; a cut looks like the runner's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Runner,
    Host,
}

impl Tally {
    async fn pass(
        &self,
        runner: &mut (impl AsyncRead + AsyncWrite + Unpin),
        host: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<Side> {
        let limit = self
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let mut left = limit.unwrap_or(u64::MAX);
        let (mut up, mut down) = ([0; 16 << 10], [0; 16 << 10]);
        loop {
            tokio::select! {
                read = runner.read(&mut up) => {
                    let bytes = up.get(..read?).unwrap_or_default();
                    if bytes.is_empty() {
                        return Ok(Side::Runner);
                    }
                    let fits = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let (passing, _) = bytes.split_at(fits);
                    host.write_all(passing).await?;
                    let count = u64::try_from(fits).unwrap_or(u64::MAX);
                    self.passed.fetch_add(count, Ordering::Relaxed);
                    left -= count;
                    if left == 0 {
                        self.cuts.send_modify(|cuts| *cuts += 1);
                        return Ok(Side::Runner);
                    }
                }
                read = host.read(&mut down) => {
                    let bytes = down.get(..read?).unwrap_or_default();
                    if bytes.is_empty() {
                        return Ok(Side::Host);
                    }
                    runner.write_all(bytes).await?;
                }
            }
        }
    }
}
