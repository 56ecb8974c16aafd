//! The line to the daemon, over which everything comes: the two sockets, the guests, and the end.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::message::{FromResolver, ToResolver, receive, send};
use crate::serve::{Resolver, look_after_upstreams, serve_tcp, serve_udp};
use crate::upstream::Upstreams;

/// Serves until the daemon closes the line, or dies, which is the same.
///
/// # Errors
/// The line says something else than a daemon does.
pub fn run(line: UnixStream) -> io::Result<()> {
    let (udp, tcp) = take_sockets(&line)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        line.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (mut reads, writes) = tokio::net::UnixStream::from_std(line)?.into_split();
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let Some(ToResolver::Start {
            limits,
            upstreams,
            resolv_conf,
            bridge,
        }) = receive(&mut reads).await?
        else {
            return Err(unexpected("it did not begin with what to do"));
        };
        let (daemon, said) = mpsc::unbounded_channel();
        let upstreams = Upstreams::new(upstreams, resolv_conf, bridge);
        let resolver = Arc::new(Resolver::new(limits, bridge, upstreams, daemon));
        resolver.tell_upstreams(None);
        let mut tasks: JoinSet<io::Result<()>> = JoinSet::new();
        tasks.spawn(speak(writes, said));
        tasks.spawn(listen(reads, Arc::clone(&resolver)));
        let (one, other, third) = (Arc::clone(&resolver), Arc::clone(&resolver), resolver);
        tasks.spawn(async move {
            look_after_upstreams(third).await;
            Ok(())
        });
        tasks.spawn(async move {
            serve_udp(one, udp).await;
            Ok(())
        });
        tasks.spawn(async move {
            serve_tcp(other, tcp).await;
            Ok(())
        });
        // Whichever ends first ends all.
        match tasks.join_next().await {
            None => Ok(()),
            Some(ended) => ended.map_err(io::Error::other)?,
        }
    })
}

async fn speak(
    mut writes: OwnedWriteHalf,
    mut said: mpsc::UnboundedReceiver<FromResolver>,
) -> io::Result<()> {
    while let Some(message) = said.recv().await {
        send(&mut writes, &message).await?;
    }
    Ok(())
}

async fn listen(mut reads: OwnedReadHalf, resolver: Arc<Resolver>) -> io::Result<()> {
    while let Some(message) = receive(&mut reads).await? {
        match message {
            ToResolver::Start { .. } => return Err(unexpected("it began twice")),
            ToResolver::Guest { address, names } => resolver.admit(address, names),
            ToResolver::Forget { address } => resolver.forget(address),
            ToResolver::Opened { id, outcome } => resolver.opened(id, outcome),
        }
    }
    Ok(())
}

/// The first byte of the line brings both sockets with it, UDP first.
fn take_sockets(line: &UnixStream) -> io::Result<(UdpSocket, TcpListener)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        line,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    let mut sockets = sockets.into_iter();
    match (sockets.next(), sockets.next()) {
        (Some(udp), Some(tcp)) => Ok((udp.into(), tcp.into())),
        _ => Err(unexpected(
            "it brought no sockets: this program is started by agentlabd alone",
        )),
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the line on standard input: {what}"),
    )
}
