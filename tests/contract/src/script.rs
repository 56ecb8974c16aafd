//! A guest that does what its job's task says, one instruction a line:
//!
//! ```text
//!   ok                     nothing; every task may end like this
//!   print TEXT             a line on the agent's standard output; \e and \u{..} in it become those characters
//!   complain TEXT          the same on its standard error
//!   write NAME TEXT        leaves files/NAME
//!   commit FILE TEXT       replaces a file of the repository and commits that
//!   expose NAME PATH       reports that this secret stands in this file of the commits
//!   unsearched TEXT        reports that the work was not searched to its end, and why
//!   await PATH             goes on once this file exists: how a test says go
//!   hang                   goes on when the host asks for an end, never otherwise
//!   exit CODE              the agent ends with this status
//!   no-clone TEXT          git said TEXT instead of cloning
//!   fail CAUSE             the runner says that this is why it failed
//!   late                   the agent outlives its deadline
//!   power-off              the machine stops under the job
//!   flood MIB              so much output
//!   bad-report             first reports somebody else's job, which must be refused
//!   second-key             redeems again with another key, as somebody who stole the token would
//! ```
//! A line that ends under it (a daemon that restarts) is opened anew, and what was being said is said again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_backend::fake::Fake;
use agentlab_protocol::message::{
    ACKNOWLEDGE_PATH, ArtifactRole, BUNDLE_NAME, HEARTBEAT_PATH, LOGS_PATH, Order, PATCH_NAME, REPORT_NAME,
    REPORT_PATH, RedeemAnswer, Repository,
};
use agentlab_protocol::seed::Seed;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::guest::{Answer, Guest, Message};

/// Between two looks for what an instruction waits for.
const LOOK: Duration = Duration::from_millis(20);
const KEY: u8 = 7;

/// One machine's guest.
#[derive(Debug)]
pub(crate) struct Script {
    fake: Fake,
    vmid: Vmid,
    guest: Option<Guest>,
    session: Option<String>,
    job: String,
    next_piece: u64,
    work: Option<Work>,
    files: Vec<(String, String)>,
    exposed: Vec<Value>,
    search: Value,
}

/// The repository as the agent has it.
#[derive(Debug)]
struct Work {
    _dir: TempDir,
    repository: PathBuf,
    base: String,
}

/// How the agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Exit(u8),
    Cancelled,
    NoClone(String),
    /// For this cause, in the runner's word.
    Failed(String),
    Late,
    /// There is nobody left to report.
    Gone,
}

impl Script {
    pub(crate) fn new(fake: Fake, vmid: Vmid) -> Self {
        Self {
            fake,
            vmid,
            guest: None,
            session: None,
            job: String::new(),
            next_piece: 0,
            work: None,
            files: Vec::new(),
            exposed: Vec::new(),
            search: json!({"result": "complete"}),
        }
    }

    /// Does the whole job. A script that fails complains where the daemon logs, and is silent from then on.
    pub(crate) async fn play(mut self) {
        if let Err(error) = self.try_play().await {
            complain(self.vmid, &error);
        }
    }

    async fn try_play(&mut self) -> Result<()> {
        let (mut guest, seed, answer) = self.redeemed().await?;
        let Order::Job(order) = answer.order else {
            bail!("no job was ordered");
        };
        if order.task.lines().any(|line| line == "second-key") {
            let again = guest.try_redeem(&seed, KEY + 1).await?;
            ensure!(
                again.status == 401,
                "a second key was answered with {}",
                again.status
            );
            return Ok(());
        }
        self.session.clone_from(&guest.session);
        self.guest = Some(guest);
        let answer = self.post(ACKNOWLEDGE_PATH, &Value::Null).await?;
        ensure!(answer.status == 204, "acknowledge: {}", answer.status);
        self.job = order.job;
        self.beat("repository").await?;
        if matches!(order.repository, Repository::Bundle { .. }) {
            self.clone_repository().await?;
        }
        self.beat("agent").await?;
        let end = self.agent(&order.task).await?;
        if end == End::Gone {
            return Ok(());
        }
        self.hand_in(&end).await
    }

    /// Redeems over as many lines as that takes: a lost answer is given again to the same key.
    async fn redeemed(&self) -> Result<(Guest, Seed, RedeemAnswer)> {
        let mut line = self.fake.next_guest_channel(self.vmid).await;
        let seed = Seed::decode(&self.fake.seed(self.vmid).context("no seed")?)?;
        loop {
            if let Ok(mut guest) = Guest::connect(line).await {
                match guest.try_redeem(&seed, KEY).await {
                    Ok(answer) if answer.status == 503 => tokio::time::sleep(LOOK).await,
                    Ok(answer) => {
                        let answer = guest.accept(&answer)?;
                        return Ok((guest, seed, answer));
                    }
                    Err(_) => {}
                }
            }
            line = self.fake.next_guest_channel(self.vmid).await;
        }
    }

    async fn agent(&mut self, task: &str) -> Result<End> {
        for line in task.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "" | "ok" => {}
                "print" => self.say("stdout", &format!("{}\n", unescaped(rest))).await?,
                "complain" => self.say("stderr", &format!("{}\n", unescaped(rest))).await?,
                "write" => {
                    let (name, text) = rest.split_once(' ').context("write NAME TEXT")?;
                    self.files
                        .push((format!("files/{}", unescaped(name)), text.to_owned()));
                }
                "commit" => {
                    let (file, text) = rest.split_once(' ').context("commit FILE TEXT")?;
                    self.commit(file, text).await?;
                }
                "expose" => {
                    let (secret, path) = rest.split_once(' ').context("expose NAME PATH")?;
                    self.exposed.push(json!({"secret": secret, "path": path}));
                }
                "unsearched" => self.search = json!({"result": "incomplete", "reason": unescaped(rest)}),
                "await" => {
                    while !Path::new(rest).exists() {
                        if self.beat("agent").await? {
                            return Ok(End::Cancelled);
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                }
                "hang" => {
                    while !self.beat("agent").await? {
                        tokio::time::sleep(LOOK).await;
                    }
                    return Ok(End::Cancelled);
                }
                "exit" => return Ok(End::Exit(rest.parse()?)),
                "no-clone" => return Ok(End::NoClone(rest.to_owned())),
                "fail" => return Ok(End::Failed(rest.to_owned())),
                "late" => return Ok(End::Late),
                "power-off" => {
                    self.fake.stop(self.vmid);
                    return Ok(End::Gone);
                }
                "flood" => self.flood(rest.parse()?).await?,
                "bad-report" => {
                    let refused = self
                        .post(REPORT_PATH, &report("job_000000000000", &End::Exit(0)))
                        .await?;
                    ensure!(refused.status == 409, "a foreign report: {}", refused.status);
                }
                other => bail!("`{other}` is no instruction"),
            }
        }
        Ok(End::Exit(0))
    }

    /// Commits as bundle and patches, the files, the report.
    async fn hand_in(&mut self, end: &End) -> Result<()> {
        self.beat("upload").await?;
        let mut last = report(&self.job, end);
        last["exposed_secrets"] = json!(self.exposed);
        last["secret_search"] = self.search.clone();
        if let Some(work) = &self.work {
            let (dir, base) = (work.repository.clone(), work.base.clone());
            let head = git(&dir, &["rev-parse", "HEAD"]).await?.trim().to_owned();
            let range = format!("{base}..HEAD");
            let commits: u32 = git(&dir, &["rev-list", "--count", &range])
                .await?
                .trim()
                .parse()?;
            last["base_commit"] = json!(base);
            last["head_commit"] = json!(head);
            last["commits"] = json!(commits);
            if commits > 0 {
                let bundle = dir.join(".git/work.bundle");
                git(
                    &dir,
                    &["bundle", "create", "-q", &bundle.display().to_string(), &range],
                )
                .await?;
                self.upload(BUNDLE_NAME, ArtifactRole::Bundle, tokio::fs::read(bundle).await?)
                    .await?;
                let patch = git(&dir, &["format-patch", "--stdout", &range]).await?;
                self.upload(PATCH_NAME, ArtifactRole::Patch, patch.into_bytes())
                    .await?;
            }
        }
        for (name, text) in std::mem::take(&mut self.files) {
            self.upload(&name, ArtifactRole::File, text.into_bytes()).await?;
        }
        self.upload(REPORT_NAME, ArtifactRole::Report, last.to_string().into_bytes())
            .await?;
        let answer = self.post(REPORT_PATH, &last).await?;
        ensure!(
            answer.status == 202,
            "report: {} {}",
            answer.status,
            answer.text()
        );
        Ok(())
    }

    async fn clone_repository(&mut self) -> Result<()> {
        let answer = self.tell(&Message::repository()).await?;
        ensure!(answer.status == 200, "repository: {}", answer.status);
        let dir = TempDir::with_prefix("agentlab-guest-")?;
        let bundle = dir.path().join("input.bundle");
        tokio::fs::write(&bundle, &answer.body).await?;
        let repository = dir.path().join("repository");
        let (from, to) = (bundle.display().to_string(), repository.display().to_string());
        git(dir.path(), &["clone", "-q", &from, &to]).await?;
        let base = git(&repository, &["rev-parse", "HEAD"]).await?.trim().to_owned();
        self.work = Some(Work {
            _dir: dir,
            repository,
            base,
        });
        Ok(())
    }

    async fn commit(&mut self, file: &str, text: &str) -> Result<()> {
        let work = self.work.as_ref().context("no repository to commit to")?;
        let dir = work.repository.as_path();
        tokio::fs::write(dir.join(file), format!("{text}\n")).await?;
        git(dir, &["add", file]).await?;
        git(dir, &["commit", "-q", "-m", &format!("Change {file}")]).await?;
        Ok(())
    }

    async fn flood(&mut self, mebibytes: u64) -> Result<()> {
        let line = format!("{}\n", "flood ".repeat(170));
        let text = line.repeat(200);
        let pieces = (mebibytes << 20).div_ceil(u64::try_from(text.len())?);
        for _ in 0..pieces {
            self.say("stdout", &text).await?;
        }
        Ok(())
    }

    async fn say(&mut self, stream: &str, text: &str) -> Result<()> {
        let batch = json!({"first": self.next_piece, "pieces": [{"stream": stream, "text": text}]});
        let answer = self.post(LOGS_PATH, &batch).await?;
        ensure!(answer.status == 204, "logs: {} {}", answer.status, answer.text());
        self.next_piece += 1;
        Ok(())
    }

    /// Whether the host asks for an end.
    async fn beat(&mut self, phase: &str) -> Result<bool> {
        let answer = self.post(HEARTBEAT_PATH, &json!({"phase": phase})).await?;
        ensure!(
            answer.status == 200,
            "heartbeat: {} {}",
            answer.status,
            answer.text()
        );
        Ok(answer.json()?["cancel"] == true)
    }

    async fn upload(&mut self, name: &str, role: ArtifactRole, bytes: Vec<u8>) -> Result<()> {
        let path: String = name.bytes().map(path_byte).collect();
        let answer = self.tell(&Message::upload(&path, role, bytes)).await?;
        ensure!(
            answer.status == 201,
            "{name}: {} {}",
            answer.status,
            answer.text()
        );
        Ok(())
    }

    async fn post(&mut self, path: &str, body: &Value) -> Result<Answer> {
        self.tell(&Message::post(path, body)).await
    }

    /// Says it until it is answered by a daemon that is not just stopping, over as many lines as that takes.
    async fn tell(&mut self, message: &Message) -> Result<Answer> {
        loop {
            let mut guest = match self.guest.take() {
                Some(guest) => guest,
                None => {
                    let line = self.fake.next_guest_channel(self.vmid).await;
                    let Ok(mut guest) = Guest::connect(line).await else {
                        continue;
                    };
                    guest.session.clone_from(&self.session);
                    guest
                }
            };
            if let Ok(answer) = guest.send(message).await {
                self.guest = Some(guest);
                if answer.status != 503 {
                    return Ok(answer);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

fn report(job: &str, end: &End) -> Value {
    let mut report = json!({"version": 1, "job": job, "inner_sandbox": "none", "agent_milliseconds": 12});
    match end {
        End::Exit(code) => {
            report["status"] = json!(if *code == 0 { "completed" } else { "failed" });
            report["exit_code"] = json!(code);
        }
        End::Cancelled => {
            report["status"] = json!("cancelled");
            report["exit_code"] = json!(143);
        }
        End::NoClone(words) => {
            report["status"] = json!("failed");
            report["failed_phase"] = json!("repository");
            report["message"] = json!(words);
        }
        End::Failed(cause) => {
            report["status"] = json!("failed");
            report["failed_phase"] = json!("agent");
            report["cause"] = json!(cause);
            report["message"] = json!("in the runner's words");
        }
        End::Late => report["status"] = json!("timeout"),
        End::Gone => {}
    }
    report
}

/// `\e` is ESC, `\u{202e}` that character.
fn unescaped(text: &str) -> String {
    let mut plain = text.replace("\\e", "\u{1b}");
    while let Some((before, rest)) = plain.split_once("\\u{") {
        let Some((code, after)) = rest.split_once('}') else {
            break;
        };
        let character = u32::from_str_radix(code, 16)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or('?');
        plain = format!("{before}{character}{after}");
    }
    plain
}

fn path_byte(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02x}")
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the daemon's log, which a failing test prints"
)]
fn complain(vmid: Vmid, error: &anyhow::Error) {
    eprintln!("the scripted guest of {vmid} failed: {error:#}");
}

async fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(["-c", "user.name=Agent", "-c", "user.email=agent@example.invalid"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .kill_on_drop(true)
        .output()
        .await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?}: {words}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
