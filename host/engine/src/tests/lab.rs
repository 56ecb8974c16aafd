//! The world of a test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_api::{
    Event, EventKind, JobId, JobRequest, JobState, JobView, Profile, RepositorySource, SandboxState,
    SandboxView, SecretName, Vmid,
};
use agentlab_backend::Template;
use agentlab_backend::fake::Fake;
use agentlab_protocol::message::{
    Heartbeat, HeartbeatAnswer, Phase, RedeemAnswer, RedeemRequest, Report, ReportStatus,
};
use agentlab_protocol::secret::{Secret32, SecretText};
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::{decode_secret, encode_secret};
use agentlab_protocol::workspace::WorkspaceNews;
use agentlab_store::{EventFilter, SandboxRecord, Store, StoreOptions};
use async_trait::async_trait;

use super::wires::{Door, Wires};
use crate::{
    Clock, Delivery, Engine, GuestOrigin, GuestRefusal, GuestSession, Observer, Parts, Secrets,
    SecretsUnavailable, Settings, SystemClock,
};

/// Longest wait of any test.
const PATIENCE: Duration = Duration::from_secs(120);

/// One bundle of variables, in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Bundles {
    pub(super) variables: Arc<Mutex<BTreeMap<String, String>>>,
}

#[async_trait]
impl Secrets for Bundles {
    async fn reveal(&self, profile: &Profile) -> Result<Delivery, SecretsUnavailable> {
        let variables = self.variables.lock().unwrap();
        let mut delivery = Delivery {
            bundle: "default".to_owned(),
            ..Delivery::default()
        };
        for name in &profile.secrets {
            // That it is there is enough.
            if *name == SecretName::GitToken {
                continue;
            }
            let SecretName::Environment(Some(name)) = name else {
                panic!("{name}")
            };
            let value = variables.get(name).ok_or_else(|| SecretsUnavailable {
                reason: format!("default.age has no env.{name}"),
                hint: Some("set it".to_owned()),
            })?;
            delivery.names.push(format!("env.{name}"));
            let value = SecretText::new(value.clone());
            delivery.environment.insert(name.clone(), value);
        }
        Ok(delivery)
    }
}

pub(super) struct Lab {
    pub(super) engine: Option<Arc<Engine>>,
    pub(super) backend: Fake,
    pub(super) wires: Wires,
    pub(super) door: Door,
    pub(super) secrets: Bundles,
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) profile: serde_json::Value,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    dir: Arc<tempfile::TempDir>,
}

impl Lab {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut lab = Self::stopped().await;
        change(&mut lab.settings);
        lab.start().await;
        lab
    }

    /// A world whose engine has not begun.
    pub(super) async fn stopped() -> Self {
        let dir = Arc::new(directory());
        let backend = Fake::new();
        backend.add_template(Template {
            name: "debian".into(),
            vmid: vmid(9000),
            id: "t".into(),
            runner_version: Some("0.1.0".into()),
        });
        let settings = Settings {
            vmid_first: vmid(1000),
            vmid_last: vmid(1099),
            provisioning_timeout: Duration::from_secs(60),
            boot_timeout: Duration::from_secs(60),
            reconcile_interval: Duration::from_millis(100),
            teardown_retry_first: Duration::from_millis(20),
            teardown_retry_max: Duration::from_millis(100),
            kill_grace: Duration::from_secs(1),
            artifact_disk_floor: 0,
            runner_version: "0.1.0".into(),
            ..Settings::default()
        };
        let store = open_store(dir.path()).await;
        let profile = serde_json::json!({"name": "demo", "template_vmid": 9000,
            "artifacts": {"max_file_bytes": 1000, "max_total_bytes": 1500, "max_files": 3}});
        let wires = Wires::default();
        let door = Door::beside(wires.clone());
        Self {
            engine: None,
            backend,
            wires,
            door,
            secrets: Bundles::default(),
            store,
            settings,
            profile,
            clock: Arc::new(SystemClock),
            observer: None,
            dir,
        }
    }

    /// The same world for another process, which has no engine yet.
    pub(super) async fn next_process(&self) -> Self {
        self.store.close().await;
        Self {
            engine: None,
            backend: self.backend.clone(),
            wires: self.wires.clone(),
            door: self.door.clone(),
            secrets: self.secrets.clone(),
            store: open_store(self.dir.path()).await,
            settings: self.settings.clone(),
            profile: self.profile.clone(),
            clock: self.clock.clone(),
            observer: None,
            dir: self.dir.clone(),
        }
    }

    pub(super) async fn start(&mut self) {
        let parts = Parts {
            backend: Arc::new(self.backend.clone()),
            network: Arc::new(self.wires.clone()),
            door: Arc::new(self.door.clone()),
            secrets: Arc::new(self.secrets.clone()),
            store: self.store.clone(),
            profiles: vec![serde_json::from_value(self.profile.clone()).unwrap()],
            host_key: Secret32::new([3; 32]),
            clock: self.clock.clone(),
        };
        let settings = self.settings.clone();
        let started = match self.observer.clone() {
            Some(observer) => Engine::start_observed(settings, parts, observer).await,
            None => Engine::start(settings, parts).await,
        };
        self.engine = Some(started.unwrap());
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().unwrap()
    }

    /// The daemon dies and another one begins on the same disk, host and hypervisor.
    pub(super) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(super) async fn stop(&mut self) {
        let engine = self.engine.take().unwrap();
        engine.shutdown().await;
        drop(engine);
        self.store.close().await;
        self.store = open_store(self.dir.path()).await;
    }

    pub(super) async fn run(&self) -> JobView {
        self.create(request()).await
    }

    /// A job like this, which the engine takes.
    pub(super) async fn create(&self, request: JobRequest) -> JobView {
        self.engine().create_job(request, None).await.unwrap()
    }

    pub(super) async fn job(&self, id: &JobId) -> JobView {
        self.engine().job(id).await.unwrap()
    }

    pub(super) async fn record(&self, job: &JobView) -> SandboxRecord {
        self.store.sandbox(job.sandbox.unwrap()).await.unwrap().unwrap()
    }

    pub(super) async fn sandbox(&self, job: &JobView) -> SandboxView {
        self.engine()
            .sandbox(&job.sandbox.unwrap().to_string())
            .await
            .unwrap()
    }

    /// Waits until a sandbox shows a state and is done with it.
    pub(super) async fn until_sandbox(&self, job: &JobView, state: SandboxState) -> SandboxView {
        let look = async {
            loop {
                let record = self.record(job).await;
                let resting = state != SandboxState::Failed || record.cursor.is_empty() || !record.unwinding;
                if record.state == state && resting {
                    return self.sandbox(job).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(view) => view,
            Err(_) => panic!(
                "never {state}: {:#?}\n{:#?}",
                self.record(job).await,
                self.messages(job).await
            ),
        }
    }

    pub(super) async fn until_job(&self, job: &JobView, state: JobState) -> JobView {
        let look = async {
            loop {
                let now = self.job(&job.id).await;
                if now.state == state {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(view) => view,
            Err(_) => panic!(
                "never {state}: {:#?}\n{:#?}",
                self.job(&job.id).await,
                self.messages(job).await
            ),
        }
    }

    /// Waits until a condition of the world holds.
    pub(super) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let look = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, look).await.is_ok(),
            "never: {what}"
        );
    }

    pub(super) async fn events(&self, job: &JobView) -> Vec<Event> {
        let filter = EventFilter {
            sandbox: job.sandbox,
            job: None,
        };
        self.store.events(&filter, 0, 1000).await.unwrap()
    }

    pub(super) async fn messages(&self, job: &JobView) -> Vec<String> {
        self.events(job)
            .await
            .into_iter()
            .map(|event| format!("{}: {}", event.kind, event.message))
            .collect()
    }

    pub(super) async fn alarms(&self, job: &JobView) -> usize {
        self.events(job)
            .await
            .iter()
            .filter(|event| event.kind == EventKind::Alarm)
            .count()
    }

    /// Waits for a powered-on machine and reads its seed, as its guest would.
    pub(super) async fn boot(&self, job: &JobView) -> Guest {
        self.until_sandbox(job, SandboxState::Booting).await;
        self.guest(job).await
    }

    pub(super) async fn guest(&self, job: &JobView) -> Guest {
        self.guest_of(&self.record(job).await)
    }

    /// The guest of a machine that was powered on with a seed.
    pub(super) fn guest_of(&self, record: &SandboxRecord) -> Guest {
        let seed = Seed::decode(&self.backend.booted_with(record.vmid).unwrap()).unwrap();
        assert_eq!(seed.sandbox, *record.id.as_bytes());
        Guest {
            origin: GuestOrigin::Address(record.address),
            seed,
            key: [9; 32],
            session: None,
            runner_version: "0.1.0",
        }
    }

    /// The same, once the host has let it in.
    pub(super) async fn let_in(&self, record: &SandboxRecord) -> Guest {
        let mut guest = self.guest_of(record);
        guest.redeem(self).await.unwrap();
        guest.acknowledge(self).await;
        guest
    }

    /// Boots and redeems.
    pub(super) async fn running(&self, job: &JobView) -> Guest {
        self.until_sandbox(job, SandboxState::Booting).await;
        self.let_in(&self.record(job).await).await
    }

    /// Nothing of any sandbox is left anywhere.
    pub(super) async fn assert_empty(&self) {
        let left = self.backend.leftovers();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.wires.ports(), []);
        assert_eq!(self.store.live_tokens(jiff::Timestamp::MIN).await.unwrap(), 0);
        for record in self.store.sandboxes(true).await.unwrap() {
            assert_eq!(record.left_behind, Vec::<String>::new());
            assert_eq!(
                self.store.open_intents(record.id).await.unwrap(),
                [],
                "{record:#?}"
            );
        }
    }
}

/// In memory where that can be had: these tests are about order, not about a disk's patience.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

async fn open_store(dir: &std::path::Path) -> Store {
    Store::open(StoreOptions {
        database_path: dir.join("agentlab.db"),
        files_dir: dir.join("files"),
        disk_floor_bytes: 0,
    })
    .await
    .unwrap()
}

pub(super) fn vmid(raw: u32) -> Vmid {
    Vmid::try_from(raw).unwrap()
}

pub(super) fn request() -> JobRequest {
    JobRequest {
        repository: RepositorySource::Url {
            url: "https://example.org/a.git".into(),
        },
        reference: None,
        task: "true".into(),
        profile: "demo".into(),
        agent: None,
        deadline_seconds: Some(60),
        ttl_minutes: None,
        keepalive: None,
        workspace: None,
        workspace_wait_seconds: None,
        push: None,
    }
}

/// A guest that does what the test says.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) origin: GuestOrigin,
    pub(super) seed: Seed,
    pub(super) key: [u8; 32],
    pub(super) session: Option<Secret32>,
    pub(super) runner_version: &'static str,
}

impl Guest {
    pub(super) async fn redeem(&mut self, lab: &Lab) -> Result<RedeemAnswer, GuestRefusal> {
        let request = RedeemRequest {
            vmid: self.seed.vmid,
            token: encode_secret(&self.seed.token),
            runner_key: encode_secret(&Secret32::new(self.key)),
            runner_version: self.runner_version.into(),
        };
        let answer = lab.engine().redeem(self.origin, request).await?;
        self.session = decode_secret(answer.session.expose());
        Ok(answer)
    }

    pub(super) async fn authenticate(&self, lab: &Lab) -> Result<GuestSession, GuestRefusal> {
        lab.engine()
            .authenticate(self.origin, self.session.as_ref().unwrap())
            .await
    }

    pub(super) async fn acknowledge(&self, lab: &Lab) {
        let session = self.authenticate(lab).await.unwrap();
        lab.engine().acknowledge(&session).await.unwrap();
    }

    pub(super) async fn beat(&self, lab: &Lab, phase: Phase) -> Result<bool, GuestRefusal> {
        self.say(lab, phase, None).await.map(|answer| answer.cancel)
    }

    pub(super) async fn say(
        &self,
        lab: &Lab,
        phase: Phase,
        workspace: Option<WorkspaceNews>,
    ) -> Result<HeartbeatAnswer, GuestRefusal> {
        let session = self.authenticate(lab).await?;
        let beat = Heartbeat {
            phase,
            message: String::new(),
            vitals: None,
            workspace,
        };
        lab.engine().heartbeat(&session, beat).await
    }

    pub(super) async fn upload(&self, lab: &Lab, name: &str, bytes: &[u8]) -> Result<(), GuestRefusal> {
        use agentlab_protocol::message::ArtifactRole;
        let session = self.authenticate(lab).await?;
        let role = if name.starts_with("files/") {
            ArtifactRole::File
        } else {
            ArtifactRole::Bundle
        };
        let announced = crate::Announced {
            name: name.parse().unwrap(),
            role,
            sha256: hex::encode(agentlab_protocol::session::sha256(bytes)),
            offset: 0,
            rest: None,
        };
        let mut incoming = lab.engine().receive_artifact(&session, &announced).await?;
        let too_large = |error: agentlab_store::StoreError| GuestRefusal::TooLarge(error.to_string());
        incoming.write(bytes).await.map_err(too_large)?;
        let arrived = incoming.finish().await.unwrap();
        lab.engine().artifact_received(&session, announced, arrived).await
    }

    pub(super) async fn report(
        &self,
        lab: &Lab,
        job: &JobView,
        status: ReportStatus,
        exit_code: Option<u8>,
    ) -> Result<(), GuestRefusal> {
        let session = self.authenticate(lab).await?;
        let bundle = lab.engine().store().artifact(&job.id, "work.bundle").await;
        let commits = u32::from(bundle.unwrap().is_some());
        let report = Report {
            version: 1,
            job: job.id.to_string(),
            status,
            failed_phase: None,
            cause: None,
            message: None,
            exit_code,
            base_commit: None,
            head_commit: None,
            commits,
            uncommitted: false,
            agent_milliseconds: 5,
            push: None,
            exposed_secrets: vec![],
            secret_search: Some(agentlab_protocol::message::SecretSearch::Complete),
            artifacts: vec![],
            left_out: vec![],
            inner_sandbox: "bubblewrap".into(),
        };
        lab.engine().report(&session, report).await
    }

    pub(super) fn wrong_token(&self) -> Self {
        let seed = Seed {
            token: Secret32::new([0xee; 32]),
            ..self.seed.clone()
        };
        Self { seed, ..self.clone() }
    }
}
