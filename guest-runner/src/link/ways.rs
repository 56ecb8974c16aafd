//! Which ways to the host there are, and the connections that stand on them.
//!
//! ```text
//!            ┌ line ───────── serial or vsock, all routes
//!   request ─┤
//!            └ bootstrap ──── TLS
//!              artifacts ──── TLS
//! ```

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::seed::{Seed, SeedChannel};
use hyper::client::conn::http2::SendRequest;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::body::RequestBody;
use super::serial::{CHANNEL_PORT, SerialPort, find_port};
use super::tls;
use super::wire::{Duplex, Wire};
use crate::console::say;

/// For a SYN to be answered, a TLS handshake to end.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// Which of the host's two TLS listeners serves a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    Bootstrap,
    Artifacts,
}

#[derive(Default)]
struct Standing {
    line: Option<Wire>,
    bootstrap: Option<Wire>,
    artifacts: Option<Wire>,
    /// Where in `channels` the next round begins.
    first: usize,
    opened: u64,
    /// What was last said on the console about failure, so that it is not said each round.
    complaint: String,
}

/// The ways a seed names.
pub struct Ways {
    channels: Vec<SeedChannel>,
    bootstrap: SocketAddrV4,
    artifacts: SocketAddrV4,
    connector: TlsConnector,
    line_path: Option<PathBuf>,
    standing: Mutex<Standing>,
}

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ways")
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl Ways {
    /// Opens nothing yet. `line_path` is a device or Unix socket to use as serial line instead of the virtio port.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub fn new(seed: &Seed, line_path: Option<PathBuf>) -> Result<Self, rustls::Error> {
        Ok(Self {
            channels: seed.channels.clone(),
            bootstrap: seed.bootstrap,
            artifacts: seed.artifacts,
            connector: tls::connector(seed.spki_sha256)?,
            line_path,
            standing: Mutex::new(Standing::default()),
        })
    }

    /// A connection for a route and its number, opened if none stands. One round over all channels: who calls,
    /// waits and calls again. The error names each channel and why it failed.
    pub(crate) async fn sender(&self, listener: Listener) -> Result<(SendRequest<RequestBody>, u64), String> {
        let mut standing = self.standing.lock().await;
        for slot in [SeedChannel::Serial, SeedChannel::Tls] {
            let slot = standing.slot(slot, listener);
            if let Some(wire) = slot.take_if(|wire| wire.sender.is_closed()) {
                wire.close().await;
            }
            if let Some(wire) = slot {
                return Ok((wire.sender.clone(), wire.number));
            }
        }
        let mut failures = Vec::new();
        for step in 0..self.channels.len() {
            let at = (standing.first + step) % self.channels.len();
            let Some(channel) = self.channels.get(at).copied() else {
                continue;
            };
            match self.open(channel, listener, standing.opened + 1).await {
                Ok(wire) => {
                    standing.opened += 1;
                    standing.first = at;
                    let number = wire.number;
                    return Ok((
                        standing.slot(channel, listener).insert(wire).sender.clone(),
                        number,
                    ));
                }
                Err(error) => failures.push(format!("{}: {error}", name(channel))),
            }
        }
        let complaint = failures.join("; ");
        standing.complain(&complaint);
        Err(complaint)
    }

    /// The host has answered on this connection.
    pub(crate) async fn proven(&self, number: u64) {
        let mut standing = self.standing.lock().await;
        standing.complaint.clear();
        if let Some(wire) = standing
            .wires()
            .into_iter()
            .flatten()
            .find(|wire| wire.number == number)
            && !wire.proven
        {
            wire.proven = true;
            say(format_args!("connected to the host over {}", name(wire.channel)));
        }
    }

    /// A request failed on this connection: it is closed, unless another request has seen to that already. One
    /// that never worked makes the next round begin with the next channel.
    pub(crate) async fn broken(&self, number: u64, reason: &str) {
        let mut standing = self.standing.lock().await;
        let Some(wire) = standing
            .wires()
            .into_iter()
            .find_map(|slot| slot.take_if(|wire| wire.number == number))
        else {
            return;
        };
        standing.complain(&format!("{} was lost: {reason}", name(wire.channel)));
        if !wire.proven
            && let Some(at) = self.channels.iter().position(|channel| *channel == wire.channel)
        {
            standing.first = at + 1;
        }
        wire.close().await;
    }

    async fn open(&self, channel: SeedChannel, listener: Listener, number: u64) -> io::Result<Wire> {
        let opening = async {
            let stream: Box<dyn Duplex> = match channel {
                SeedChannel::Serial => self.open_line().await?,
                SeedChannel::Vsock => {
                    let host = VsockAddr::new(VMADDR_CID_HOST, self.bootstrap.port().into());
                    Box::new(VsockStream::connect(host).await?)
                }
                SeedChannel::Tls => {
                    let address = match listener {
                        Listener::Bootstrap => self.bootstrap,
                        Listener::Artifacts => self.artifacts,
                    };
                    Box::new(tls::connect(&self.connector, address).await?)
                }
            };
            Wire::open(stream, channel, number).await
        };
        let elapsed = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s");
        tokio::time::timeout(OPEN_PATIENCE, opening)
            .await
            .map_err(elapsed)?
    }

    async fn open_line(&self) -> io::Result<Box<dyn Duplex>> {
        let path = match &self.line_path {
            Some(path) => path.clone(),
            None => find_port(CHANNEL_PORT)?,
        };
        let line = open_path(&path).await?;
        Ok(Box::new(agentlab_channel::connect(line).await?))
    }
}

async fn open_path(path: &Path) -> io::Result<Box<dyn Duplex>> {
    use std::os::unix::fs::FileTypeExt as _;
    if std::fs::metadata(path)?.file_type().is_socket() {
        return Ok(Box::new(tokio::net::UnixStream::connect(path).await?));
    }
    Ok(Box::new(SerialPort::open(path)?))
}

impl Standing {
    fn slot(&mut self, channel: SeedChannel, listener: Listener) -> &mut Option<Wire> {
        match (channel, listener) {
            (SeedChannel::Serial | SeedChannel::Vsock, _) => &mut self.line,
            (SeedChannel::Tls, Listener::Bootstrap) => &mut self.bootstrap,
            (SeedChannel::Tls, Listener::Artifacts) => &mut self.artifacts,
        }
    }

    fn wires(&mut self) -> [&mut Option<Wire>; 3] {
        [&mut self.line, &mut self.bootstrap, &mut self.artifacts]
    }

    fn complain(&mut self, complaint: &str) {
        if self.complaint != complaint {
            say(format_args!("host not reached: {complaint}"));
            complaint.clone_into(&mut self.complaint);
        }
    }
}

fn name(channel: SeedChannel) -> &'static str {
    match channel {
        SeedChannel::Serial => "serial",
        SeedChannel::Vsock => "vsock",
        SeedChannel::Tls => "TLS",
    }
}
