//! A guest without a VM: a namespace whose only interface is wired, in this process, to the host's tap.
//!
//! ```text
//!   guest's namespace: eth0 (tap) ◄──► wire (a thread) ◄──► tap1000i0: host's namespace
//!                                        │       ▲
//!                               sees every frame └─ injects any frame
//! ```
//!
//! This is what QEMU does, so the proof runs over the very path that a sandbox uses.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use agentlab_netpolicy::create_tap;
use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ears::Rounds;
use crate::frame::{Mac, tokens};
use crate::namespace::Namespace;

/// Length of the offload header before each frame of a tap.
const OFFLOAD_HEADER: usize = 10;

/// A guest on a cable.
#[derive(Debug)]
pub struct Guest {
    /// Where its sockets live.
    pub namespace: Namespace,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    cable: File,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    rounds: Rounds,
    wire: Option<JoinHandle<()>>,
}

impl Guest {
    /// Plugs a namespace with one configured interface into a tap of the host.
    pub fn plug(tap: OwnedFd, mac: Mac, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<Self> {
        let namespace = Namespace::new()?;
        let inside = File::from(namespace.enter(|| anyhow::Ok(create_tap(&"eth0".parse()?)?))??);
        let [a, b, c, d, e, f] = mac;
        namespace.ip(&format!(
            "link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}\n\
             link set eth0 up\naddress add {address}/16 dev eth0\nroute add default via {gateway}"
        ))?;
        let cable = File::from(tap);
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let ends = Ends {
            host: cable.try_clone()?,
            guest: inside,
            seen: Arc::clone(&seen),
        };
        let rounds = Rounds::default();
        let (stopped, round) = (Arc::clone(&stop), rounds.clone());
        let wire = thread::spawn(move || ends.carry(&stopped, &round));
        Ok(Self {
            namespace,
            mac,
            address,
            cable,
            seen,
            stop,
            rounds,
            wire: Some(wire),
        })
    }

    /// Writes a frame into the cable as if the guest's kernel had let it.
    pub fn inject(&self, frame: &[u8]) -> Result<()> {
        (&self.cable).write_all(&[&[0; OFFLOAD_HEADER], frame].concat())?;
        Ok(())
    }

    /// Tokens in frames that came out of the cable since the last call.
    #[must_use]
    pub fn take_tokens(&self) -> Vec<u32> {
        self.take_frames()
            .iter()
            .flat_map(|frame| tokens(frame))
            .collect()
    }

    /// Frames that came out of the cable since the last call.
    #[must_use]
    pub fn take_frames(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns once everything that is in the cable has come out.
    pub fn settle(&self) {
        if let Some(wire) = &self.wire {
            self.rounds.settle(wire);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(wire) = self.wire.take() {
            // A wire that panicked has already failed the test that waited for it.
            let _ = wire.join();
        }
    }
}

struct Ends {
    host: File,
    guest: File,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Ends {
    fn carry(mut self, stop: &AtomicBool, rounds: &Rounds) {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !stop.load(Ordering::Relaxed) {
            let mut ends = [
                PollFd::new(&self.host, PollFlags::IN),
                PollFd::new(&self.guest, PollFlags::IN),
            ];
            if poll(&mut ends, Some(&pause)).is_err() {
                continue;
            }
            if ends.iter().any(|end| end.revents().contains(PollFlags::ERR)) {
                // The tap was deleted; nothing will come any more.
                return;
            }
            while let Some(frame) = next(&mut self.host) {
                self.seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(frame.get(OFFLOAD_HEADER..).unwrap_or_default().to_vec());
                // A full queue loses the frame, as a real cable would.
                let _ = self.guest.write(&frame);
            }
            while let Some(frame) = next(&mut self.guest) {
                let _ = self.host.write(&frame);
            }
            rounds.complete();
        }
    }
}

fn next(tap: &mut File) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = tap.read(&mut buffer).ok().filter(|length| *length > 0)?;
    buffer.truncate(length);
    Some(buffer)
}
