//! `agentlab secrets`, and what a sandbox is given: what its profile names, and nothing else anywhere.

mod snippet;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::message::{ArtifactRole, HEARTBEAT_PATH, REPORT_PATH};
use agentlab_protocol::seed::Seed;
use agentlab_testkit::{Ran, job_run};
use agentlab_tests_contract::{Guest, Lab, Visitors};
use serde_json::{Value, json};
use tokio::net::UnixStream;

const PRIVATE: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nc4n4ryPRIVATEKEYc4n4ry\n-----END OPENSSH PRIVATE KEY-----\n";
const PUBLIC: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGvHkKJbDUZGgMyqqUwyO0gSYpyZxcM2vVzhzQ8rY3bk me@home\n";
/// One in every place that a secret may come from.
const CANARIES: &[&str] = &[
    "c4n4ry-wanted",
    "c4n4ry-other",
    "c4n4ry-git-token",
    "c4n4ryPRIVATEKEYc4n4ry",
    "c4n4ry-claude",
    "c4n4ry-tailscale",
    "c4n4ry-admin",
];

struct Stage {
    lab: Lab,
    visitors: Option<Visitors>,
    /// What the operator has the values in; not the lab's.
    desk: tempfile::TempDir,
}

impl Stage {
    /// A daemon, a full bundle, and a profile of these lines.
    fn set(profile: &str) -> Self {
        let lab = Lab::prepare().unwrap();
        let at = |name: &str| lab.path(name).display().to_string();
        lab.configure(&format!(
            "secrets_dir: {}\nsecrets_age_key_path: {}\n",
            at("secrets"),
            at("keys/age.key")
        ))
        .unwrap();
        lab.profile(
            "demo.yaml",
            &format!("name: demo\ntemplate_vmid: 9000\nnetwork: {{mode: \"off\"}}\n{profile}"),
        )
        .unwrap();
        let stage = Self {
            lab,
            visitors: None,
            desk: tempfile::tempdir().unwrap(),
        };
        stage.fill();
        stage
    }

    fn start(mut self) -> Self {
        self.visitors = Some(self.lab.visitors().unwrap());
        self.lab.start().unwrap();
        self
    }

    fn desk(&self, name: &str, text: &str) -> String {
        let path = self.desk.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn secrets(&self, arguments: &[&str]) -> Ran {
        let config = self.lab.path("config.yaml").display().to_string();
        let line = [&["secrets", "--config", &config], arguments].concat();
        self.lab.agentlab(&line).unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let ran = self.secrets(arguments);
        assert_eq!(ran.code(), Some(0), "{arguments:?}: {ran:?}");
        format!("{}{}", ran.stdout, ran.stderr)
    }

    fn fill(&self) {
        let env = self.desk("env", "WANTED=c4n4ry-wanted\nOTHER=c4n4ry-other\n");
        self.done(&["set-env", "--from-file", &env]);
        let (token, key) = (
            self.desk("token", "c4n4ry-git-token\n"),
            self.desk("key", PRIVATE),
        );
        let hosts = self.desk("hosts", "example.org ssh-ed25519 AAAA\n");
        self.done(&["set-git", "--token-file", &token, "--username", "bot"]);
        self.done(&["set-git", "--ssh-key-file", &key, "--known-hosts-file", &hosts]);
        let claude = self.desk(
            "claude",
            r#"{"model": "opus", "env": {"ANTHROPIC_API_KEY": "c4n4ry-claude"}}"#,
        );
        self.done(&["set-claude", "--settings-file", &claude]);
        let (auth, admin) = (
            self.desk("ts", "c4n4ry-tailscale"),
            self.desk("admin", "c4n4ry-admin"),
        );
        self.done(&[
            "set-tailscale",
            "--authkey-file",
            &auth,
            "--admin-api-key-file",
            &admin,
            "--tag",
            "tag:x",
        ]);
        let public = self.desk("public", PUBLIC);
        self.done(&["add-ssh-key", "--name", "me", "--key-file", &public]);
    }

    async fn booted(&self) -> (String, Seed, UnixStream) {
        let job = self.lab.detached("ok").unwrap();
        let next =
            tokio::time::timeout(Duration::from_secs(60), self.visitors.as_ref().unwrap().next()).await;
        let (seed, line) = next.expect("no machine was powered on").unwrap();
        (job, seed, line)
    }

    /// A guest that has redeemed, with the answer word for word.
    async fn redeemed(&self) -> (String, Guest, Value) {
        let (job, seed, line) = self.booted().await;
        let mut guest = Guest::connect(line).await.unwrap();
        let answer = guest.try_redeem(&seed, 1).await.unwrap();
        let document = answer.json().unwrap();
        guest.accept(&answer).unwrap();
        guest.acknowledge().await.unwrap();
        (job, guest, document)
    }

    /// Everything that the daemon and the command left on the disk.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut dirs = vec![PathBuf::from(self.lab.dir())];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        files
    }
}

fn canary_in(bytes: &[u8]) -> Option<&'static str> {
    CANARIES
        .iter()
        .copied()
        .find(|canary| bytes.windows(canary.len()).any(|part| part == canary.as_bytes()))
}

#[tokio::test]
async fn a_profile_that_names_one_secret_is_given_that_one_and_all_of_them_are_nowhere_else() {
    let stage = Stage::set("secrets: [env.WANTED]\n").start();
    let (job, mut guest, answer) = stage.redeemed().await;
    assert_eq!(answer["environment"], json!({"WANTED": "c4n4ry-wanted"}));
    assert_eq!(
        (&answer["git"], &answer["authorized_keys"]),
        (&Value::Null, &json!([]))
    );
    assert!(answer.get("claude_settings").is_none());
    let text = answer.to_string();
    assert_eq!(
        canary_in(text.replace("c4n4ry-wanted", "").as_bytes()),
        None,
        "{text}"
    );

    let beat = json!({"phase": "agent", "message": "at work"});
    assert_eq!(guest.post(HEARTBEAT_PATH, &beat).await.unwrap().status, 200);
    let stored = guest.upload("files/a", ArtifactRole::File, "made").await.unwrap();
    assert_eq!(stored.status, 201);
    let report =
        json!({"version": 1, "job": job, "status": "completed", "exit_code": 0, "inner_sandbox": "none"});
    if let Ok(answer) = guest.post(REPORT_PATH, &report).await {
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let told = stage.lab.agentlab(&["job", "logs", "-f", &job]).unwrap();
    let given = "was given env.WANTED of secrets bundle default";
    assert_eq!(told.stdout.matches(given).count(), 1, "{told:?}");

    for line in [
        &["job", "show", &job][..],
        &["job", "logs", &job],
        &["job", "list"],
        &["sandbox", "list", "--all"],
        &["profile", "show", "demo"],
        &["status"],
    ] {
        for form in [&[][..], &["--json"]] {
            let ran = stage.lab.agentlab(&[form, line].concat()).unwrap();
            assert_eq!(ran.code(), Some(0), "{line:?}: {ran:?}");
            assert_eq!(
                canary_in(format!("{ran:?}").as_bytes()),
                None,
                "{line:?}: {ran:?}"
            );
        }
    }
    let mut seen = 0;
    for path in stage.files() {
        let bytes = fs::read(&path).unwrap();
        assert_eq!(canary_in(&bytes), None, "{}", path.display());
        seen += usize::from(path.ends_with("agentlab.db") || path.ends_with("default.age"));
    }
    assert_eq!(seen, 2, "the database and the bundle were looked at");
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        for part in ["cmdline", "environ"] {
            // Processes end while they are looked at, and some are not ours.
            let bytes = fs::read(path.join(part)).unwrap_or_default();
            assert_eq!(canary_in(&bytes), None, "{}/{part}", path.display());
        }
    }
}

#[tokio::test]
async fn everything_a_profile_names_is_given_and_a_change_reaches_the_next_sandbox() {
    let stage = Stage::set("secrets: [env, git, claude, ssh.keys.me]\n").start();
    let (_, _guest, answer) = stage.redeemed().await;
    let git = json!({
        "username": "bot", "token": "c4n4ry-git-token", "ssh_private_key": PRIVATE,
        "known_hosts": "example.org ssh-ed25519 AAAA\n",
    });
    assert_eq!(answer["git"], git);
    assert_eq!(answer["authorized_keys"], json!([PUBLIC.trim()]));
    let settings: Value = serde_json::from_str(answer["claude_settings"].as_str().unwrap()).unwrap();
    assert_eq!(settings["env"]["ANTHROPIC_API_KEY"], "c4n4ry-claude");
    for kept in ["c4n4ry-tailscale", "c4n4ry-admin"] {
        assert!(!answer.to_string().contains(kept));
    }

    let fresh = stage.desk("fresh", "another value");
    stage.done(&["set-env", "--name", "WANTED", "--value-file", &fresh]);
    stage.done(&["rotate"]);
    let (_, _guest, answer) = stage.redeemed().await;
    assert_eq!(answer["environment"]["WANTED"], "another value");
}

#[tokio::test]
async fn a_job_without_its_secrets_is_refused_before_anything_is_made_and_ended_when_they_go_later() {
    let stage = Stage::set("secrets: [env.WANTED, env.ABSENT]\n").start();
    let run = || {
        let url = "https://example.invalid/r.git";
        let line = job_run(url, "demo", "ok", &["--detach", "--json"]);
        stage.lab.agentlab(&line).unwrap()
    };
    let refused: Value = serde_json::from_str(&run().stdout).unwrap();
    assert_eq!(refused["code"], "secrets_unavailable", "{refused:#}");
    let said = refused["detail"].as_str().unwrap();
    assert!(
        said.contains("Profile `demo`") && said.ends_with("default.age has no env.ABSENT"),
        "{said}"
    );
    assert!(refused["hint"].as_str().unwrap().contains("set-env"));
    assert_eq!(
        stage.lab.json(&["sandbox", "list", "--all"]).unwrap()["sandboxes"],
        json!([])
    );

    let absent = stage.desk("absent", "x");
    stage.done(&["set-env", "--name", "ABSENT", "--value-file", &absent]);
    let (job, seed, line) = stage.booted().await;
    stage.done(&["remove", "env.ABSENT"]);
    let mut guest = Guest::connect(line).await.unwrap();
    let answer = guest.try_redeem(&seed, 1).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (401, ""));
    let ended = stage.lab.finished(&job).unwrap();
    assert_eq!(
        (&ended["state"], &ended["failure"]["code"]),
        (&json!("FAILED"), &json!("secrets_unavailable"))
    );
    assert_eq!(canary_in(ended.to_string().as_bytes()), None);
}

#[test]
fn what_the_command_says_is_names_and_never_values() {
    let stage = Stage::set("secrets: [env.WANTED]\n");
    let shown = stage.done(&["show"]);
    for name in [
        "env.WANTED",
        "git.token",
        "git.ssh_private_key",
        "claude",
        "tailscale.authkey",
        "ssh.keys.me",
    ] {
        assert!(shown.contains(name), "{shown}");
    }
    let json = stage.done(&["show", "--json"]);
    let valid = stage.done(&["validate"]);
    assert!(valid.contains("profile demo: is given env.WANTED"), "{valid}");
    let removed = stage.done(&["remove", "git", "tailscale"]);
    assert!(
        removed.contains("git.token") && removed.contains("tailscale.authkey"),
        "{removed}"
    );
    assert!(!stage.done(&["show"]).contains("git."));
    stage.done(&["remove-ssh-key", "--name", "me"]);
    let rotated = stage.done(&["rotate"]);
    assert!(
        rotated.contains("default.age: encrypted to the new key"),
        "{rotated}"
    );
    for said in [shown, json, valid, removed, rotated] {
        assert_eq!(canary_in(said.as_bytes()), None, "{said}");
    }
    let audit = fs::read_to_string(stage.lab.path("secrets/audit.log")).unwrap();
    assert_eq!(canary_in(audit.as_bytes()), None);
    let actions: Vec<String> = audit
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["action"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let expected = [
        "set-env",
        "set-git",
        "set-git",
        "set-claude",
        "set-tailscale",
        "add-ssh-key",
        "remove",
        "remove-ssh-key",
        "rotate",
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_value_on_the_command_line_is_refused_and_one_on_standard_input_is_taken() {
    let stage = Stage::set("");
    for line in [
        &["set-env", "--name", "A", "--value", "v4lue-in-argv"][..],
        &["set-git", "--git-token", "v4lue-in-argv"],
        &["set-tailscale", "--authkey", "v4lue-in-argv"],
    ] {
        let ran = stage.secrets(line);
        assert_eq!(ran.code(), Some(2), "{ran:?}");
        assert!(ran.stderr.contains("every user of this host can read"), "{ran:?}");
        assert!(
            !format!("{}{}", ran.stdout, ran.stderr).contains("v4lue-in-argv"),
            "{ran:?}"
        );
    }
    let nobody = stage.secrets(&["set-env", "--name", "A"]);
    assert_eq!(nobody.code(), Some(2), "{nobody:?}");
    assert!(nobody.stderr.contains("no terminal to ask at"), "{nobody:?}");

    let value = stage.desk("value", "from standard input\n");
    let config = stage.lab.path("config.yaml").display().to_string();
    let mut command = stage.lab.command(&[
        "secrets",
        "--config",
        &config,
        "set-env",
        "--name",
        "A",
        "--value-file",
        "-",
    ]);
    let status = command
        .stdin(File::open(value).unwrap())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(stage.done(&["show"]).contains("env.A "));

    let short = stage.desk("short", "on\n");
    let said = stage.done(&["set-env", "--name", "B", "--value-file", &short]);
    assert!(said.contains("env.B has fewer than 6 bytes"), "{said}");
}

#[test]
fn a_bundle_that_cannot_be_read_is_named_with_what_to_do() {
    let stage = Stage::set("secrets: [env.WANTED]\n");
    let path = stage.lab.path("secrets/default.age");
    let said = |stage: &Stage, code: i32| {
        let ran = stage.secrets(&["validate"]);
        assert_eq!(ran.code(), Some(code), "{ran:?}");
        format!("{}{}", ran.stdout, ran.stderr)
    };
    mode(&path, 0o644);
    let open = said(&stage, 1);
    assert!(
        open.contains("other users can use it") && open.contains("chmod go-rwx"),
        "{open}"
    );
    mode(&path, 0o600);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let cut = said(&stage, 1);
    assert!(cut.contains("was changed or cut off"), "{cut}");
    fs::write(&path, &whole).unwrap();
    said(&stage, 0);
    fs::remove_file(stage.lab.path("keys/age.key")).unwrap();
    let lost = said(&stage, 1);
    assert!(lost.contains("There is no age key at"), "{lost}");
}

fn mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
