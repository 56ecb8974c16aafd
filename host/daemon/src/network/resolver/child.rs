//! The process: what it is given, as whom it runs, and the line to it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use agentlab_resolver::message::{FromResolver, ToResolver, receive, send};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::process::Command;
use tokio::sync::mpsc::{Receiver, UnboundedSender, channel, unbounded_channel};
use tokio::task::JoinSet;

use super::Setup;

/// Its name, beside the daemon's own program or where packages put it.
const PROGRAM: &str = "agentlab-resolver";
const PACKAGED: &str = "/usr/lib/agentlab";
/// The user that packages make for it.
const USER: &str = "agentlab-dns";
const PORT: u16 = 53;
/// What it has said and nobody has heard yet, at most.
const UNHEARD: usize = 64;

/// Both sockets that guests ask. They outlive the process that reads them.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    pub(super) fn bind(bridge: Ipv4Addr) -> Result<Self, String> {
        let failed = |protocol| {
            move |error: io::Error| {
                let next = if error.kind() == io::ErrorKind::AddrInUse {
                    "; stop the resolver that listens there, or set `dns.enabled: false` in config.yaml"
                } else {
                    ""
                };
                format!("{protocol} port {PORT} of {bridge} cannot be bound: {error}{next}")
            }
        };
        Ok(Self {
            udp: UdpSocket::bind((bridge, PORT)).map_err(failed("UDP"))?,
            tcp: TcpListener::bind((bridge, PORT)).map_err(failed("TCP"))?,
        })
    }
}

/// Where the program is.
pub(super) fn program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("{PROGRAM} cannot be looked for: {error}"))?;
    // Tests of cargo are one directory below the programs they test.
    let beside = own.ancestors().skip(1).take(2).map(PathBuf::from);
    beside
        .chain([PathBuf::from(PACKAGED)])
        .map(|directory| directory.join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            format!(
                "{PROGRAM} is neither beside {} nor in {PACKAGED}: install it",
                own.display()
            )
        })
}

/// As whom it runs: the user that packages make, or an id just below those of the machines, which nobody has. A daemon
/// that is not root cannot choose.
pub(super) fn account(machines_first: u32) -> Option<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let packaged = nix::unistd::User::from_name(USER)
        .ok()
        .flatten()
        .map(|user| (user.uid.as_raw(), user.gid.as_raw()))
        .filter(|(uid, _)| *uid != 0);
    Some(packaged.unwrap_or((machines_first - 1, machines_first - 1)))
}

/// One that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    mouth: UnboundedSender<ToResolver>,
    ear: Receiver<FromResolver>,
    _line: JoinSet<()>,
}

impl Child {
    pub(super) fn start(setup: &Setup, sockets: &Sockets) -> Result<Self, String> {
        let program = setup.program.as_ref().map_err(Clone::clone)?;
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(failed("its line cannot be made"))?;
        // Begun from its descriptor: whoever it runs as may not reach the directory that it lies in.
        let cannot = |error: io::Error| format!("{} cannot be started: {error}", program.display());
        let opened = std::fs::File::open(program).map_err(cannot)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        command
            .arg0(program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true);
        if let Some((uid, gid)) = setup.account {
            // Changing the user as root also empties the supplementary groups.
            command.uid(uid).gid(gid);
        }
        let process = command.spawn().map_err(cannot)?;
        drop((command, opened));
        hand_over(&ours, sockets).map_err(failed("its sockets cannot be handed over"))?;
        ours.set_nonblocking(true)
            .map_err(failed("its line cannot be used"))?;
        let line = tokio::net::UnixStream::from_std(ours).map_err(failed("its line cannot be used"))?;
        let (mut reads, mut writes) = line.into_split();
        let (mouth, mut said) = unbounded_channel::<ToResolver>();
        let (heard, ear) = channel(UNHEARD);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(message) = said.recv().await {
                if send(&mut writes, &message).await.is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move {
            while let Ok(Some(message)) = receive(&mut reads).await {
                if heard.send(message).await.is_err() {
                    return;
                }
            }
        });
        let child = Self {
            process,
            mouth,
            ear,
            _line: tasks,
        };
        child.say(setup.start.clone());
        Ok(child)
    }

    pub(super) fn say(&self, message: ToResolver) {
        // One that ended is noticed by what it does not say.
        let _ = self.mouth.send(message);
    }

    /// What it says next, or why it says no more.
    pub(super) async fn hear(&mut self) -> Result<FromResolver, String> {
        match self.ear.recv().await {
            Some(message) => Ok(message),
            None => {
                // Its end of the line is closed, or said what is no message: either way it is over.
                self.process.start_kill().ok();
                let ended = self.process.wait().await;
                Err(match ended {
                    Ok(status) => format!("it ended: {status}"),
                    Err(error) => format!("it ended: {error}"),
                })
            }
        }
    }
}

/// One byte, and with it both sockets.
fn hand_over(line: &UnixStream, sockets: &Sockets) -> io::Result<()> {
    let descriptors = [sockets.udp.as_fd(), sockets.tcp.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(line, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
