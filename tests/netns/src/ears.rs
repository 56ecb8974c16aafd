//! UDP sockets in every namespace, and who was heard there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, eth, socket_with};

use crate::frame::{Mac, tokens};
use crate::namespace::{Namespace, until};

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

#[derive(Debug)]
struct Ear {
    place: &'static str,
    socket: UdpSocket,
    /// It gets whole frames; those from this address are the place's own.
    own: Option<Mac>,
}

/// Sockets that are about to be listened to.
#[derive(Debug, Default)]
pub struct Ears {
    sockets: Vec<Ear>,
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
                self.sockets.push(Ear {
                    place,
                    socket,
                    own: None,
                });
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
        self.sockets.push(Ear {
            place,
            socket: socket?,
            own: None,
        });
        Ok(())
    }

    /// Hears every frame that arrives in a namespace, whatever protocol it is of, but for those it sent itself.
    pub fn overhear(&mut self, place: &'static str, namespace: &Namespace, own: Mac) -> Result<()> {
        let socket = namespace.enter(|| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))
        })?;
        self.sockets.push(Ear {
            place,
            // Only read from: nothing that is particular to UDP is asked of it.
            socket: UdpSocket::from(socket?),
            own: Some(own),
        });
        Ok(())
    }

    /// Listens until it is dropped.
    #[must_use]
    pub fn listen(self) -> Listening {
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let rounds = Rounds::default();
        let (writes, stopped, round) = (Arc::clone(&heard), Arc::clone(&stop), rounds.clone());
        let sockets = self.sockets;
        let thread = thread::spawn(move || listen(&sockets, &writes, &stopped, &round));
        Listening {
            heard,
            stop,
            rounds,
            thread: Some(thread),
            _listeners: self.listeners,
        }
    }
}

/// Counts how often a thread has been through everything it reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds(Arc<AtomicU64>);

impl Rounds {
    pub(crate) fn complete(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns once everything is read that can be read now, or the thread has ended.
    pub(crate) fn settle(&self, thread: &JoinHandle<()>) {
        // The round that is under way may be past what matters; the next one is not.
        let enough = self.0.load(Ordering::Acquire) + 2;
        until(|| thread.is_finished() || self.0.load(Ordering::Acquire) >= enough);
    }
}

fn listen(sockets: &[Ear], heard: &Mutex<Vec<Heard>>, stop: &AtomicBool, rounds: &Rounds) {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut polled: Vec<_> = sockets
            .iter()
            .map(|ear| PollFd::new(&ear.socket, PollFlags::IN))
            .collect();
        if poll(&mut polled, Some(&pause)).is_err() {
            continue;
        }
        for ear in sockets {
            while let Some((length, from)) = ear.take(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                if ear.own.is_some_and(|own| bytes.get(6..12) == Some(&own)) {
                    continue;
                }
                let place = ear.place;
                let found = tokens(bytes);
                let found = found.into_iter().map(|token| Heard { token, place, from });
                heard.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            }
        }
        rounds.complete();
    }
}

impl Ear {
    fn take(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        if self.own.is_some() {
            let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            return self.socket.recv(buffer).ok().map(|length| (length, nobody));
        }
        self.socket.recv_from(buffer).ok()
    }
}

/// Ears at work.
#[derive(Debug)]
pub struct Listening {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    rounds: Rounds,
    thread: Option<JoinHandle<()>>,
    _listeners: Vec<TcpListener>,
}

impl Listening {
    /// What was heard since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns once everything that has arrived is heard.
    pub fn settle(&self) {
        if let Some(thread) = &self.thread {
            self.rounds.settle(thread);
        }
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
