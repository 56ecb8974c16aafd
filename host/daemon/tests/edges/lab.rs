//! A daemon of the test's own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::JobView;
use agentlab_backend::Template;
use agentlab_backend::fake::Fake;
use agentlab_config::{BridgeAddress, Config, parse_config};
use agentlab_engine::SystemClock;
use agentlabd::{Daemon, StartError, World};
use serde_json::{Value, json};

use crate::no_network::NoNetwork;
use crate::wire::{Answer, Control};

pub(crate) struct Lab {
    _directory: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) fake: Fake,
    daemon: Option<Daemon>,
}

impl Lab {
    /// A daemon that guests on loopback count as neighbours of.
    pub(crate) async fn start() -> Self {
        let mut lab = Self::prepare();
        lab.restart().await;
        lab
    }

    /// Everything but the daemon.
    pub(crate) fn prepare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let profiles = directory.path().join("profiles");
        std::fs::create_dir(&profiles).unwrap();
        std::fs::write(
            profiles.join("demo.yaml"),
            "name: demo\ntemplate_vmid: 9000\nnetwork:\n  mode: off\n",
        )
        .unwrap();
        let text = format!(
            "profiles_dir: {0}/profiles\ndata_dir: {0}/data\nrun_dir: {0}/run\nbundle_max_bytes: 1048576\n\
             artifact_disk_floor_bytes: 1\n",
            directory.path().display()
        );
        let mut config = parse_config(&text, "config.yaml").unwrap().value;
        config.bridge_address = BridgeAddress {
            address: Ipv4Addr::LOCALHOST,
            prefix: 8,
        };
        for listen in [&mut config.bootstrap_listen, &mut config.artifact_listen] {
            listen.set_ip(Ipv4Addr::LOCALHOST);
            listen.set_port(0);
        }
        let fake = Fake::new();
        fake.add_template(Template {
            name: "demo".into(),
            vmid: "9000".parse().unwrap(),
            id: "0123".into(),
            runner_version: Some(env!("CARGO_PKG_VERSION").into()),
        });
        Self {
            _directory: directory,
            config,
            fake,
            daemon: None,
        }
    }

    pub(crate) async fn start_daemon(&self) -> Result<Daemon, StartError> {
        let world = World {
            backend: Arc::new(self.fake.clone()),
            network: Arc::new(NoNetwork),
            clock: Arc::new(SystemClock),
        };
        Daemon::start(&self.config, Some(world)).await
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.daemon = Some(self.start_daemon().await.unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    pub(crate) async fn control(&self) -> Control {
        Control::connect(&self.config.socket_path).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.control().await.send("GET", path, &[], Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.control()
            .await
            .send("POST", path, &[], body.to_string().into_bytes())
            .await
    }

    /// A job that waits for a guest which never comes, unless the test plays it.
    pub(crate) async fn job(&self) -> JobView {
        let answer = self.post("/v1/jobs", &job_request()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()
    }

    pub(crate) async fn job_now(&self, job: &JobView) -> JobView {
        self.get(&format!("/v1/jobs/{}", job.id)).await.json()
    }

    /// Waits for something the job's view must show.
    pub(crate) async fn until(&self, job: &JobView, reached: impl Fn(&JobView) -> bool) -> JobView {
        for _ in 0..2400 {
            let now = self.job_now(job).await;
            if reached(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not reached: {:?}", self.job_now(job).await);
    }
}

pub(crate) fn job_request() -> Value {
    json!({"repository": {"kind": "url", "url": "https://example.org/a.git"}, "task": "true", "profile": "demo"})
}
