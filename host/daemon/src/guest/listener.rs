//! TLS on the bridge address. Bound only after the bridge and its policy stand.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentlab_config::BridgeAddress;
use agentlab_engine::GuestOrigin;
use axum::Router;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::limit::{Limits, Permit};
use crate::connection::{self, Http, Stop};
use crate::error::StartError;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between two lines of the log about one address.
const QUIET: Duration = Duration::from_secs(60);
/// Addresses that are told of in one such while.
const REMEMBERED: usize = 256;

/// A bound listener that answers nobody yet.
#[derive(Debug)]
pub(crate) struct GuestListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl GuestListener {
    /// Binds.
    pub(crate) async fn bind(address: SocketAddrV4) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen {
            address: address.into(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers guests until stopped.
    pub(crate) async fn serve(self, guests: Guests, router: Router, stopping: CancellationToken) {
        let tls = TlsAcceptor::from(Arc::clone(&guests.tls));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some((guest, permit)) = guests.admit(peer) {
                            let (tls, router, stop) = (tls.clone(), router.clone(), Stop::On(stopping.clone()));
                            connections.spawn(async move {
                                serve_one(stream, guest, &tls, router, stop).await;
                                drop(permit);
                            });
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, address = %self.address, "Guests are not accepted for a moment");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "A guest's connection ended badly");
                    }
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Who may connect, and how.
#[derive(Debug, Clone)]
pub(crate) struct Guests {
    /// The pinned key.
    pub(crate) tls: Arc<ServerConfig>,
    /// The agent subnet.
    pub(crate) subnet: BridgeAddress,
    /// Bounds per guest.
    pub(crate) limits: Arc<Limits>,
    /// Who was refused of late.
    pub(crate) refusals: Arc<Refusals>,
}

/// Keeps the log readable, and the disk under it free, whatever knocks: one line per address and minute.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// When the last line was written, and how many were refused since.
    lately: Mutex<HashMap<Ipv4Addr, (Instant, u64)>>,
}

impl Refusals {
    /// Counts one; how many there were since the last line, when another is due.
    fn seen(&self, from: Ipv4Addr, now: Instant) -> Option<u64> {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((told, count)) = lately.get_mut(&from) {
            *count = count.saturating_add(1);
            if now.saturating_duration_since(*told) < QUIET {
                return None;
            }
            *told = now;
            return Some(std::mem::take(count));
        }
        if lately.len() >= REMEMBERED {
            lately.retain(|_, (told, _)| now.saturating_duration_since(*told) < QUIET);
        }
        // So many addresses in one minute are told of by those that came first.
        if lately.len() >= REMEMBERED {
            return None;
        }
        lately.insert(from, (now, 0));
        Some(1)
    }
}

impl Guests {
    /// An address of the agent subnet, with a place for one more connection. Others hear nothing.
    fn admit(&self, peer: SocketAddr) -> Option<(Ipv4Addr, Permit)> {
        let IpAddr::V4(guest) = peer.ip() else { return None };
        if guest <= self.subnet.network() || guest >= self.subnet.broadcast() {
            if let Some(count) = self.refusals.seen(guest, Instant::now()) {
                tracing::warn!(%guest, count, "A peer outside the agent subnet was cut off");
            }
            return None;
        }
        let permit = self.limits.connection(GuestOrigin::Address(guest));
        if permit.is_none()
            && let Some(count) = self.refusals.seen(guest, Instant::now())
        {
            tracing::warn!(%guest, count, "A guest has too many connections open");
        }
        Some((guest, permit?))
    }
}

async fn serve_one(stream: TcpStream, guest: Ipv4Addr, tls: &TlsAcceptor, router: Router, stop: Stop) {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            // Without a word on it, HTTP/2 with prior knowledge.
            let http = if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
                Http::One
            } else {
                Http::Two
            };
            connection::serve(stream, http, router, GuestOrigin::Address(guest), stop).await;
        }
        Ok(Err(error)) => tracing::debug!(%guest, %error, "A TLS handshake failed"),
        Err(_) => tracing::debug!(%guest, "A TLS handshake took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_knocks_without_end_is_one_line_a_minute() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let one = Ipv4Addr::new(10, 77, 0, 2);
        assert_eq!(refusals.seen(one, began), Some(1));
        for _ in 0..41 {
            assert_eq!(refusals.seen(one, began), None);
        }
        assert_eq!(refusals.seen(Ipv4Addr::new(10, 77, 0, 3), began), Some(1));
        assert_eq!(refusals.seen(one, began + QUIET), Some(42));
        for last in 0..u32::try_from(2 * REMEMBERED).unwrap() {
            refusals.seen(Ipv4Addr::from(last), began + QUIET);
        }
        assert_eq!(refusals.lately.lock().unwrap().len(), REMEMBERED);
    }
}
