//! What outlives a daemon: disk, hypervisor, packet policy, guests. And the daemon itself, as a runtime that can be
//! dropped wherever it stands.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_engine::{Clock, Engine, IdleRules, Parts, Settings};
use agentlab_protocol::secret::Secret32;
use agentlab_store::{Store, StoreOptions};
use jiff::Timestamp;
use pve_sim::{PveSim, Scale, Setup, Version};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::guests::Guests;
use super::wires::{NoDoor, NoSecrets, Wires};
use crate::client::{connect, options, vmid};

/// Wall time that goes with tokio's, over all processes of a world.
#[derive(Debug, Clone)]
struct WallClock(Arc<Mutex<(Timestamp, Option<Instant>)>>);

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let reading = self.0.lock().unwrap();
        reading.0 + reading.1.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

impl WallClock {
    fn process_begins(&self) {
        self.0.lock().unwrap().1 = Some(Instant::now());
    }

    fn process_ends(&self) {
        let now = self.now();
        *self.0.lock().unwrap() = (now, None);
    }
}

pub(super) struct World {
    pub(super) sim: PveSim,
    pub(super) wires: Wires,
    pub(super) guests: Guests,
    clock: WallClock,
    dir: tempfile::TempDir,
}

/// One process of the daemon.
pub(super) struct Daemon {
    pub(super) engine: Arc<Engine>,
    pub(super) store: Store,
}

impl World {
    pub(super) fn new(version: Version, seed: u64) -> Self {
        let wires = Wires::default();
        let guests = Guests::new(wires.clone());
        let mut setup = Setup::lab(version, Scale(1.0));
        setup.seed = seed;
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        Self {
            sim: setup.boot_with(Arc::new(guests.clone())),
            wires,
            guests,
            clock: WallClock(Arc::new(Mutex::new((Timestamp::now(), None)))),
            dir,
        }
    }

    async fn daemon(&self) -> Daemon {
        let store = Store::open(StoreOptions {
            database_path: self.dir.path().join("agentlab.db"),
            files_dir: self.dir.path().join("files"),
            disk_floor_bytes: 0,
        })
        .await
        .unwrap();
        let profile = serde_json::json!({ "name": "demo", "template_vmid": 9000 });
        let parts = Parts {
            backend: connect(&self.sim, options(&self.sim)),
            network: Arc::new(self.wires.clone()),
            door: Arc::new(NoDoor),
            secrets: Arc::new(NoSecrets),
            store: store.clone(),
            profiles: vec![serde_json::from_value(profile).unwrap()],
            host_key: Secret32::new([3; 32]),
            clock: Arc::new(self.clock.clone()),
        };
        let settings = Settings {
            vmid_first: vmid(1000),
            vmid_last: vmid(1999),
            max_sandboxes: 128,
            // Looked for, and longer than any test: whoever is told of nobody stops nothing.
            idle: Some(IdleRules {
                interval: Duration::from_secs(60),
                window: Duration::from_secs(48 * 3600),
                cpu_share: 0.05,
            }),
            artifact_disk_floor: 0,
            ..Settings::default()
        };
        Daemon {
            engine: Engine::start(settings, parts).await.unwrap(),
            store,
        }
    }

    /// A process that lives `span`, or to the end of what it is to do. Whether it came to that end.
    pub(super) fn process(&self, span: Option<Duration>, life: impl AsyncFnOnce(&Daemon)) -> bool {
        let runtime = runtime();
        let finished = runtime.block_on(async {
            self.clock.process_begins();
            let whole = async {
                let daemon = self.daemon().await;
                life(&daemon).await;
            };
            let killed = async {
                match span {
                    Some(span) => tokio::time::sleep(span).await,
                    None => std::future::pending().await,
                }
            };
            let finished = tokio::select! {
                biased;
                () = killed => false,
                () = whole => true,
            };
            self.clock.process_ends();
            finished
        });
        // Every task of the process ends here, wherever it is.
        drop(runtime);
        finished
    }
}

pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}
