//! TLS on the bridge address. Bound only after the bridge and its policy stand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

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
}

impl Guests {
    /// An address of the agent subnet, with a place for one more connection. Others hear nothing.
    fn admit(&self, peer: SocketAddr) -> Option<(Ipv4Addr, Permit)> {
        let IpAddr::V4(guest) = peer.ip() else { return None };
        if guest <= self.subnet.network() || guest >= self.subnet.broadcast() {
            tracing::warn!(%peer, "A peer outside the agent subnet was cut off");
            return None;
        }
        let permit = self.limits.connection(guest);
        if permit.is_none() {
            tracing::warn!(%peer, "A guest has too many connections open");
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
