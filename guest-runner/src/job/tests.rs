//! Whole jobs against a recording host: real git, real bubblewrap, real users. They need root and `bwrap`.

mod agents;
mod endings;
mod exposed;
mod push;
mod tailnet;
mod work;
mod workspace;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use agentlab_protocol::agent::AgentMode;
use agentlab_protocol::message::{
    ArtifactName, ArtifactRole, Heartbeat, HeartbeatAnswer, JobOrder, Limits, LogBatch, LogPiece, Order,
    Phase, RedeemAnswer, Report, Repository, Stream,
};
use agentlab_protocol::secret::SecretText;
use sha2::{Digest as _, Sha256};

use super::process::{PATH, signal_user};
use super::{AgentUser, HostLink, JobOutcome, Layout};
use crate::link::LinkError;

/// What a host saw, and how it behaves.
#[derive(Default)]
struct Seen {
    phases: Vec<Phase>,
    pieces: Vec<LogPiece>,
    /// Number of the next one.
    next: u64,
    artifacts: BTreeMap<String, (ArtifactRole, Vec<u8>)>,
    report: Option<Report>,
    bundle: Vec<u8>,
    /// Cancels once this text was logged.
    cancel_at: Option<&'static str>,
    /// Takes no log.
    deaf: bool,
    /// Refuses this artifact.
    refuse: Option<&'static str>,
    /// Is away once artifacts come.
    away: bool,
}

#[derive(Clone)]
struct FakeHost(Arc<Mutex<Seen>>);

impl FakeHost {
    fn text(&self, stream: Stream) -> String {
        let seen = self.0.lock().unwrap();
        seen.pieces
            .iter()
            .filter(|piece| piece.stream == stream)
            .map(|piece| piece.text.as_str())
            .collect()
    }

    fn artifact(&self, name: &str) -> Option<Vec<u8>> {
        self.0
            .lock()
            .unwrap()
            .artifacts
            .get(name)
            .map(|(_, bytes)| bytes.clone())
    }
}

impl HostLink for FakeHost {
    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatAnswer, LinkError> {
        let mut seen = self.0.lock().unwrap();
        seen.phases.push(beat.phase);
        let cancel = seen
            .cancel_at
            .is_some_and(|text| seen.pieces.iter().any(|piece| piece.text.contains(text)));
        Ok(HeartbeatAnswer {
            cancel,
            ..HeartbeatAnswer::default()
        })
    }

    async fn logs(&self, batch: &LogBatch) -> Result<(), LinkError> {
        if self.0.lock().unwrap().deaf {
            std::future::pending::<()>().await;
        }
        let mut seen = self.0.lock().unwrap();
        assert_eq!(batch.first, seen.next, "pieces are numbered in order");
        seen.next += u64::try_from(batch.pieces.len()).unwrap();
        assert!(batch.pieces.iter().all(|piece| piece.text.len() <= 9000));
        seen.pieces.extend(batch.pieces.iter().cloned());
        Ok(())
    }

    async fn repository(&self, into: &mut tokio::fs::File, _limit: u64) -> Result<String, LinkError> {
        let bundle = self.0.lock().unwrap().bundle.clone();
        tokio::io::AsyncWriteExt::write_all(into, &bundle).await.unwrap();
        tokio::io::AsyncWriteExt::flush(into).await.unwrap();
        Ok(hex::encode(Sha256::digest(&bundle)))
    }

    async fn put_artifact(
        &self,
        name: &ArtifactName,
        role: ArtifactRole,
        file: &Path,
        size: u64,
        sha256: &str,
    ) -> Result<(), LinkError> {
        let action = name.to_string();
        let mut seen = self.0.lock().unwrap();
        if seen.away {
            return Err(LinkError::Unreachable {
                action,
                reason: "nobody".to_owned(),
            });
        }
        if seen.refuse == Some(name.as_str()) {
            return Err(LinkError::Refused {
                action,
                status: 413,
                reason: "quota".to_owned(),
            });
        }
        let bytes = std::fs::read(file).unwrap();
        assert_eq!(
            (
                u64::try_from(bytes.len()).unwrap(),
                hex::encode(Sha256::digest(&bytes)).as_str()
            ),
            (size, sha256)
        );
        seen.artifacts.insert(name.to_string(), (role, bytes));
        Ok(())
    }

    async fn report(&self, report: &Report) -> Result<(), LinkError> {
        self.0.lock().unwrap().report = Some(report.clone());
        Ok(())
    }
}

/// A guest in a directory, with a user nobody else on the machine has.
struct Lab {
    base: tempfile::TempDir,
    layout: Layout,
    host: FakeHost,
    order: JobOrder,
    answer: RedeemAnswer,
    /// Runners that were killed before.
    deaths: u32,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.layout.run, rustix::mount::UnmountFlags::DETACH);
    }
}

async fn shell(directory: &Path, script: &str) -> String {
    let output = tokio::process::Command::new("sh")
        .args(["-euc", script])
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "t")
        .env("GIT_AUTHOR_EMAIL", "t@x")
        .env("GIT_COMMITTER_NAME", "t")
        .env("GIT_COMMITTER_EMAIL", "t@x")
        .current_dir(directory)
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Lab {
    async fn new(task: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let uid = 2_000_000 + std::process::id() * 32 + NEXT.fetch_add(1, Ordering::Relaxed);
        let at = |name: &str| -> PathBuf { base.path().join(name) };
        let user = AgentUser {
            name: "agent".to_owned(),
            uid,
            gid: uid,
            path: format!("{}:{PATH}", at("home/bin").display()),
            home: at("home"),
        };
        let layout = Layout {
            work: at("work"),
            run: at("run"),
            spool: at("spool"),
            settings: at("settings"),
            user,
            ..Layout::default()
        };
        std::fs::create_dir(at("source")).unwrap();
        let make = "git init -q -b main; echo one > a.txt; git add .; git commit -qm first; git tag v1; \
                    echo two > a.txt; git commit -qam second; git branch side v1; git bundle create -q ../b --all HEAD";
        shell(&at("source"), make).await;
        let bundle = std::fs::read(at("b")).unwrap();
        let order = JobOrder {
            job: "job-1".to_owned(),
            repository: Repository::Bundle {
                sha256: hex::encode(Sha256::digest(&bundle)),
            },
            reference: None,
            submodules: false,
            task: task.to_owned(),
            agent: "shell".to_owned(),
            mode: AgentMode::Dangerous,
            agent_command: Vec::new(),
            agent_args: Vec::new(),
            deadline_seconds: 60,
            kill_grace_seconds: 1,
            inner_sandbox: true,
            hardened: false,
            inner_sandbox_args: Vec::new(),
            push: None,
        };
        let answer = RedeemAnswer {
            session: SecretText::new("session-secret".to_owned()),
            order: Order::Hold,
            git: None,
            environment: BTreeMap::from([(
                "API_KEY".to_owned(),
                SecretText::new("s3cr3t-api-key".to_owned()),
            )]),
            claude_settings: None,
            authorized_keys: Vec::new(),
            tailnet: None,
            limits: Limits {
                max_file_bytes: 10_000_000,
                max_total_bytes: 50_000_000,
                max_files: 100,
                max_log_bytes: 1_000_000,
            },
            heartbeat_seconds: 1,
            workspace: None,
        };
        let host = FakeHost(Arc::new(Mutex::new(Seen {
            bundle,
            ..Seen::default()
        })));
        Self {
            base,
            layout,
            host,
            order,
            answer,
            deaths: 0,
        }
    }

    /// Another repository for the job.
    fn bring(&mut self, bundle: Vec<u8>) {
        self.order.repository = Repository::Bundle {
            sha256: hex::encode(Sha256::digest(&bundle)),
        };
        self.host(|seen| seen.bundle = bundle);
    }

    fn host(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.host.0.lock().unwrap());
    }

    async fn run(&self) -> Report {
        let job = super::run(
            self.order.clone(),
            &self.answer,
            self.host.clone(),
            self.layout.clone(),
            self.deaths,
        );
        let JobOutcome { report, delivered } = job.await;
        delivered.unwrap();
        assert_eq!(self.host.0.lock().unwrap().report.as_ref(), Some(&report));
        let user = self.layout.user.uid;
        let left = signal_user(user, rustix::process::Signal::CONT).unwrap();
        assert_eq!(left, 0, "processes of the agent are left");
        report
    }

    /// The source with the bundle and the uncommitted diff of the job applied.
    async fn applied(&self) -> PathBuf {
        let target = self.base.path().join("applied");
        for name in ["work.bundle", "work.patch", "uncommitted.diff"] {
            if let Some(bytes) = self.host.artifact(name) {
                std::fs::write(self.base.path().join(name), bytes).unwrap();
            }
        }
        shell(self.base.path(), "git clone -q source applied; cd applied; git fetch -q ../work.bundle refs/heads/agentlab; \
            git checkout -q FETCH_HEAD; if test -e ../uncommitted.diff; then git apply --binary ../uncommitted.diff; fi")
            .await;
        target
    }
}
