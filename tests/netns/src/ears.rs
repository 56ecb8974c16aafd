//! UDP sockets in every namespace, and who was heard there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frame::tokens;
use crate::namespace::Namespace;

/// One datagram of ours that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its number.
    pub token: u32,
    /// In which namespace.
    pub place: &'static str,
    /// From whom.
    pub from: SocketAddr,
}

/// Sockets that are about to be listened to.
#[derive(Debug, Default)]
pub struct Ears {
    sockets: Vec<(&'static str, UdpSocket)>,
    listeners: Vec<TcpListener>,
}

impl Ears {
    /// Opens UDP ports, of both families where there are two, and TCP ports, on every address of a namespace. TCP needs
    /// no thread: the kernel completes handshakes by itself.
    pub fn open(
        &mut self,
        place: &'static str,
        namespace: &Namespace,
        udp: &[u16],
        tcp: &[u16],
    ) -> Result<()> {
        namespace.enter(|| {
            for port in udp {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, *port))
                    .with_context(|| format!("opening UDP port {port} in {place}"))?;
                socket.set_nonblocking(true)?;
                self.sockets.push((place, socket));
            }
            for port in tcp {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port))
                    .with_context(|| format!("opening TCP port {port} in {place}"))?;
                self.listeners.push(listener);
            }
            Ok(())
        })?
    }

    /// Opens a UDP port for a multicast group on one interface address.
    pub fn join(
        &mut self,
        place: &'static str,
        namespace: &Namespace,
        group: Ipv4Addr,
        on: Ipv4Addr,
        port: u16,
    ) -> Result<()> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind((group, port))?;
            socket.join_multicast_v4(&group, &on)?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        })?;
        self.sockets.push((place, socket?));
        Ok(())
    }

    /// Listens until it is dropped.
    #[must_use]
    pub fn listen(self) -> Listening {
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (writes, stopped) = (Arc::clone(&heard), Arc::clone(&stop));
        let sockets = self.sockets;
        let thread = thread::spawn(move || listen(&sockets, &writes, &stopped));
        Listening {
            heard,
            stop,
            thread: Some(thread),
            _listeners: self.listeners,
        }
    }
}

fn listen(sockets: &[(&'static str, UdpSocket)], heard: &Mutex<Vec<Heard>>, stop: &AtomicBool) {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut polled: Vec<_> = sockets
            .iter()
            .map(|(_, socket)| PollFd::new(socket, PollFlags::IN))
            .collect();
        if poll(&mut polled, Some(&pause)).is_err() {
            continue;
        }
        for (place, socket) in sockets {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let found = tokens(buffer.get(..length).unwrap_or_default());
                let found = found.into_iter().map(|token| Heard { token, place, from });
                heard.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            }
        }
    }
}

/// Ears at work.
#[derive(Debug)]
pub struct Listening {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _listeners: Vec<TcpListener>,
}

impl Listening {
    /// What was heard since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; a panic there shows as nothing heard.
            let _ = thread.join();
        }
    }
}
