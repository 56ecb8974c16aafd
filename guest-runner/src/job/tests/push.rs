//! What an agent made, on its way to the repository's origin.

use agentlab_protocol::message::{
    FailureCause, GitCredentials, Phase, PushOrder, PushResult, Report, ReportStatus, Stream,
};
use agentlab_protocol::secret::SecretText;
use agentlab_testkit::{Identity, Origin};

use super::{Lab, shell};
use crate::requirement::skipped_without_root;

const TOKEN: &str = "t0ken-for-the-origin";
const COMMIT: &str = "echo three > a.txt; git commit -qam third";

struct Pushing {
    lab: Lab,
    port: u16,
    _origin: Origin,
}

impl Pushing {
    /// A lab whose source is a repository behind TLS as well.
    async fn new(task: &str) -> Self {
        let mut lab = Lab::new(task).await;
        let base = lab.base.path().to_owned();
        shell(
            &base,
            "git clone -q --bare source origin.git; git -C origin.git config http.receivepack true",
        )
        .await;
        let authority = base.join("authority.pem");
        let identity = Identity::new("127.0.0.1").unwrap();
        std::fs::write(&authority, &identity.certificate).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let origin = Origin::serve(&base, &identity, TOKEN, listener).unwrap();
        lab.layout.authorities = Some(authority);
        lab.answer.git = Some(GitCredentials {
            username: "bot".to_owned(),
            token: Some(SecretText::new(TOKEN.to_owned())),
            ssh_private_key: None,
            known_hosts: None,
        });
        let mut pushing = Self {
            lab,
            port,
            _origin: origin,
        };
        pushing.to("agentlab/fix");
        pushing
    }

    fn to(&mut self, branch: &str) {
        self.lab.order.push = Some(PushOrder {
            url: format!("https://127.0.0.1:{}/origin.git", self.port),
            branch: branch.to_owned(),
        });
    }

    /// What a branch of the origin is at; nothing where there is none.
    async fn branch(&self, name: &str) -> String {
        let ask = format!("git -C origin.git rev-parse --verify -q refs/heads/{name} || true");
        shell(self.lab.base.path(), &ask).await
    }
}

fn refusal(report: &Report) -> String {
    match &report.push {
        Some(PushResult::Refused { reason }) => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn commits_go_to_a_branch_of_the_origin_and_the_token_goes_nowhere() {
    if skipped_without_root() {
        return;
    }
    let task = format!("{COMMIT}; cat .git/config ~/.gitconfig; tr '\\0' ' ' < /proc/self/cmdline");
    let pushing = Pushing::new(&task).await;
    let report = pushing.lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    let head = report.head_commit.clone().unwrap();
    assert_eq!(report.push, Some(PushResult::Pushed { commit: head.clone() }));
    assert_eq!(pushing.branch("agentlab/fix").await, head);
    let phases = pushing.lab.host.0.lock().unwrap().phases.clone();
    assert!(phases.contains(&Phase::Push), "{phases:?}");
    let told = pushing.lab.host.text(Stream::Stdout) + &pushing.lab.host.text(Stream::Runner);
    assert!(told.contains("credential") && !told.contains(TOKEN), "{told}");
    for (name, (_, bytes)) in &pushing.lab.host.0.lock().unwrap().artifacts {
        assert!(!String::from_utf8_lossy(bytes).contains(TOKEN), "{name}");
    }

    // A branch that is there already, and that the work continues.
    let mut pushing = Pushing::new(COMMIT).await;
    pushing.to("side");
    let report = pushing.lab.run().await;
    assert_eq!(Some(pushing.branch("side").await), report.head_commit);
}

#[tokio::test]
async fn a_push_that_the_origin_or_we_refuse_fails_the_job_in_their_words_and_changes_nothing() {
    if skipped_without_root() {
        return;
    }
    let mut pushing = Pushing::new(COMMIT).await;
    let main = pushing.branch("main").await;
    pushing.to("main");
    let report = pushing.lab.run().await;
    assert_eq!(
        (report.status, report.failed_phase, report.cause, report.exit_code),
        (
            ReportStatus::Failed,
            Some(Phase::Push),
            Some(FailureCause::Push),
            Some(0)
        )
    );
    assert!(refusal(&report).contains("the default branch"), "{report:?}");
    assert_eq!(pushing.branch("main").await, main);
    assert!(
        pushing.lab.host.artifact("work.bundle").is_some(),
        "the work is here all the same"
    );

    // A branch that went another way is not rewritten.
    let mut pushing = Pushing::new(COMMIT).await;
    let base = pushing.lab.base.path().to_owned();
    shell(&base, "cd source; git checkout -q side; git commit -q --allow-empty -m other; git push -q ../origin.git side").await;
    let side = pushing.branch("side").await;
    pushing.to("side");
    let report = pushing.lab.run().await;
    assert!(refusal(&report).contains("[rejected]"), "{report:?}");
    assert_eq!(pushing.branch("side").await, side);

    // The origin's own rules come through, its secrets do not.
    let pushing = Pushing::new(COMMIT).await;
    let hook = format!(
        "printf '#!/bin/sh\\necho protected by {TOKEN} >&2\\nexit 1\\n' > origin.git/hooks/pre-receive; \
        chmod +x origin.git/hooks/pre-receive"
    );
    shell(pushing.lab.base.path(), &hook).await;
    let report = pushing.lab.run().await;
    let reason = refusal(&report);
    assert!(
        reason.contains("pre-receive hook declined") && reason.contains("protected by [redacted]"),
        "{reason}"
    );

    let mut pushing = Pushing::new(COMMIT).await;
    let other = SecretText::new("another-token".to_owned());
    pushing.lab.answer.git.as_mut().unwrap().token = Some(other);
    let reason = refusal(&pushing.lab.run().await);
    assert!(reason.contains("Authentication failed"), "{reason}");
    assert_eq!(pushing.branch("agentlab/fix").await, "");
}

#[tokio::test]
async fn nothing_is_pushed_where_nothing_was_made_or_the_agent_failed() {
    if skipped_without_root() {
        return;
    }
    let pushing = Pushing::new("true").await;
    let report = pushing.lab.run().await;
    assert_eq!(
        (report.status, report.push),
        (ReportStatus::Completed, Some(PushResult::NothingToPush))
    );
    let pushing = Pushing::new(&format!("{COMMIT}; exit 3")).await;
    let report = pushing.lab.run().await;
    assert_eq!((report.exit_code, report.push), (Some(3), None));
    assert_eq!(pushing.branch("agentlab/fix").await, "");
}

#[tokio::test]
async fn what_an_agent_configures_has_no_part_in_the_push() {
    if skipped_without_root() {
        return;
    }
    let task = format!(
        "{COMMIT}; printf '#!/bin/sh\\necho ran >> %s/pwned\\ncat\\n' $AGENTLAB_ARTIFACTS_DIR > $HOME/evil; chmod +x $HOME/evil\n\
         git config core.hooksPath $HOME; cp $HOME/evil $HOME/pre-push; mkdir -p .git/hooks; cp $HOME/evil .git/hooks/pre-push\n\
         git config --global credential.helper $HOME/evil; git config --global url.https://127.0.0.1:1/.insteadOf https://127.0.0.1\n\
         git config --global push.gpgSign true; git config --global gpg.program $HOME/evil; git config --global http.proxy http://127.0.0.1:1"
    );
    let pushing = Pushing::new(&task).await;
    let report = pushing.lab.run().await;
    assert!(
        matches!(report.push, Some(PushResult::Pushed { .. })),
        "{report:?}"
    );
    assert!(pushing.lab.host.artifact("files/pwned").is_none());
}

#[tokio::test]
async fn commits_with_a_secret_come_back_and_are_not_pushed() {
    if skipped_without_root() {
        return;
    }
    let pushing = Pushing::new("echo $API_KEY > .env; git add .; git commit -qm env").await;
    let report = pushing.lab.run().await;
    assert_eq!(report.cause, Some(FailureCause::Push), "{report:?}");
    assert!(refusal(&report).contains("API_KEY in .env"), "{report:?}");
    assert_eq!(pushing.branch("agentlab/fix").await, "");
    assert!(pushing.lab.host.artifact("work.patch").is_some());
}
