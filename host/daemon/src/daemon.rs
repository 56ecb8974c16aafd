//! One running daemon: what is begun in which order, and ended in which.
//!
//! ```text
//!   locks ─► keys, profiles ─► store | back end | policy (the bridge stands) ─► guest listeners bound
//!         ─► engine (adopts, recovers) ─► guests answered ─► control socket ─► READY=1
//! ```
//! Stopping goes the other way and leaves VMs, bridge and policy as they are: closed means sealed.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::Backend;
use agentlab_config::Config;
use agentlab_engine::{Engine, Parts};
use agentlab_store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::Claim;
use crate::error::StartError;
use crate::guest::{
    self, Commands, GuestEdge, GuestListener, Guests, Limits, Routes, SerialDoor, VsockGuests,
};
use crate::home;
use crate::http::{self, Edge};
use crate::keys::Keys;
use crate::lock::Lock;
use crate::secrets::Bundles;
use crate::settings;
use crate::wire::World;

/// All of a graceful stop; what is not done then is dropped.
const STOP: Duration = Duration::from_secs(5);

/// A daemon that serves. Dropping it without [`Daemon::stop`] is like a crash, which everything here survives.
#[derive(Debug)]
pub struct Daemon {
    engine: Arc<Engine>,
    store: Store,
    stopping: CancellationToken,
    servers: JoinSet<()>,
    socket_path: PathBuf,
    bootstrap: SocketAddr,
    artifacts: SocketAddr,
    spki_sha256: [u8; 32],
    _lock: Lock,
}

impl Daemon {
    /// Starts everything, or nothing. `world` is the host's own when absent; tests bring one.
    ///
    /// Ports 0 in `config` are replaced by what the kernel gives, also in what guests are told.
    ///
    /// # Errors
    /// Another daemon runs, a file is not what it must be, or the packet policy cannot be enforced.
    pub async fn start(config: &Config, world: Option<World>) -> Result<Self, StartError> {
        Self::start_on(config, world, None).await
    }

    /// The same, on a control socket that somebody else has bound, if there is one.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_on(
        config: &Config,
        world: Option<World>,
        inherited: Option<UnixListener>,
    ) -> Result<Self, StartError> {
        let lock = lock_data(&config.data_dir)?;
        let claim = Claim::take(&config.socket_path, inherited.is_some()).await?;
        let keys = Keys::load(&config.data_dir)?;
        let profiles = config.load_profiles().map_err(StartError::Profiles)?;
        let world = async {
            match world {
                Some(world) => Ok(world),
                None => World::of_host(config).await,
            }
        };
        let (store, world) = tokio::join!(Store::open(settings::store(config)), world);
        let (store, world) = (store?, world?);
        home::settle(&config.data_dir, &store).await?;
        let bootstrap = GuestListener::bind(config.bootstrap_listen).await?;
        let artifacts = GuestListener::bind(config.artifact_listen).await?;

        let stopping = CancellationToken::new();
        let commands = Commands::new(stopping.clone());
        let door = SerialDoor::new(Arc::clone(&commands), stopping.clone());
        let mut told = settings::engine(config);
        told.operator_keys = config.operator_keys().map_err(StartError::Login)?;
        told.bootstrap = dialled(told.bootstrap, bootstrap.address());
        told.artifacts = dialled(told.artifacts, artifacts.address());
        told.spki_sha256 = keys.spki_sha256;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let parts = Parts {
            backend: Arc::clone(&world.backend),
            network: world.network,
            door: door.clone(),
            secrets: Arc::new(Bundles::of(config, credentials.as_deref())),
            store: store.clone(),
            profiles,
            host_key: keys.host,
            clock: world.clock,
        };
        let engine = Engine::start(told, parts).await?;

        let control = match claim.open(inherited) {
            Ok(control) => control,
            Err(error) => {
                engine.shutdown().await;
                store.close().await;
                return Err(error);
            }
        };
        let mut daemon = Self {
            engine: Arc::clone(&engine),
            store,
            stopping: stopping.clone(),
            servers: JoinSet::new(),
            socket_path: config.socket_path.clone(),
            bootstrap: bootstrap.address(),
            artifacts: artifacts.address(),
            spki_sha256: keys.spki_sha256,
            _lock: lock,
        };
        let limits = Arc::new(Limits::default());
        let edge = GuestEdge {
            engine: Arc::clone(&engine),
            limits: Arc::clone(&limits),
            commands: Arc::clone(&commands),
        };
        let guests = Guests {
            tls: keys.tls,
            subnet: config.bridge_address,
            limits,
            refusals: Arc::default(),
        };
        let listeners = [(bootstrap, Routes::Bootstrap), (artifacts, Routes::Artifacts)];
        daemon.serve_guests(&edge, &guests, listeners, world.backend);
        door.open(guest::router(edge, Routes::All));
        let router = http::router(Edge {
            engine,
            commands,
            stopping: stopping.clone(),
        });
        daemon.servers.spawn(control.serve(router, stopping));
        Ok(daemon)
    }

    /// Answers guests over the network and over vsock.
    fn serve_guests(
        &mut self,
        edge: &GuestEdge,
        guests: &Guests,
        listeners: [(GuestListener, Routes); 2],
        backend: Arc<dyn Backend>,
    ) {
        for (listener, routes) in listeners {
            let router = guest::router(edge.clone(), routes);
            self.servers
                .spawn(listener.serve(guests.clone(), router, self.stopping.clone()));
        }
        let vsock = VsockGuests {
            backend,
            limits: Arc::clone(&edge.limits),
            router: guest::router(edge.clone(), Routes::All),
            stopping: self.stopping.clone(),
        };
        self.servers.spawn(vsock.serve());
    }

    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// The control socket.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// Where guests redeem their tokens.
    #[must_use]
    pub fn bootstrap_address(&self) -> SocketAddr {
        self.bootstrap
    }

    /// Where guests fetch and upload files.
    #[must_use]
    pub fn artifact_address(&self) -> SocketAddr {
        self.artifacts
    }

    /// What guests pin: SHA-256 of the SubjectPublicKeyInfo of both listeners.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// Lets requests in flight end and stops every task, within 5 s. VMs go on running.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        let end = async {
            while let Some(ended) = self.servers.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "A server ended badly");
                }
            }
        };
        if tokio::time::timeout(STOP / 2, end).await.is_err() {
            tracing::warn!("Some requests did not end in time");
            self.servers.abort_all();
        }
        let end = async {
            self.engine.shutdown().await;
            self.store.close().await;
        };
        if tokio::time::timeout(STOP / 2, end).await.is_err() {
            tracing::warn!("Some work did not end in time; it is taken up at the next start");
        }
    }
}

fn lock_data(data_dir: &Path) -> Result<Lock, StartError> {
    std::fs::create_dir_all(data_dir).map_err(|source| StartError::File {
        action: "Making",
        path: data_dir.to_owned(),
        source,
    })?;
    Lock::take(&data_dir.join("agentlabd.lock"), data_dir)
}

/// The address as configured, with the port as bound.
fn dialled(configured: SocketAddrV4, bound: SocketAddr) -> SocketAddrV4 {
    SocketAddrV4::new(*configured.ip(), bound.port())
}
