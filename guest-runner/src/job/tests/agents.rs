//! Each agent is begun the way its own command line wants, here by programs that say how they were begun.

use agentlab_protocol::agent::AgentMode;
use agentlab_protocol::message::{Phase, ReportStatus, Stream};
use agentlab_protocol::secret::SecretText;

use super::Lab;
use crate::requirement::skipped_without_root;

/// A program of this name in the agent's search path that does what `script` says.
pub(super) fn install(lab: &Lab, name: &str, script: &str) {
    let home = &lab.layout.user.home;
    let path = home.join("bin").join(name);
    std::fs::create_dir_all(home.join("bin")).unwrap();
    std::os::unix::fs::chown(home, Some(lab.layout.user.uid), Some(lab.layout.user.gid)).unwrap();
    // Installed by a child: while another test begins a process, that may hold open what this process writes, and what
    // is open for writing cannot be run.
    let draft = lab.base.path().join("draft");
    std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    let installed = std::process::Command::new("install")
        .args([&draft, &path])
        .status()
        .unwrap();
    assert!(installed.success(), "{installed}");
}

const SAYS_HOW: &str = "echo \"$(basename $0) $*\"; echo \"task: $(cat)\"; cmp -s $AGENTLAB_TASK_FILE - </dev/null; \
    echo $AGENTLAB_AGENT $AGENTLAB_JOB_MODE $AGENTLAB_INNER_SANDBOX key=${API_KEY:+set} update=$DISABLE_AUTOUPDATER";

#[tokio::test]
async fn each_agent_gets_its_task_on_standard_input_and_the_arguments_of_its_mode() {
    if skipped_without_root() {
        return;
    }
    for (agent, mode, said) in [
        (
            "claude",
            AgentMode::Dangerous,
            "claude -p --output-format stream-json --verbose --dangerously-skip-permissions",
        ),
        (
            "claude",
            AgentMode::Safe,
            "claude -p --output-format stream-json --verbose --permission-mode acceptEdits",
        ),
        (
            "codex",
            AgentMode::Dangerous,
            "codex exec --dangerously-bypass-approvals-and-sandbox -",
        ),
        ("codex", AgentMode::Safe, "codex exec --sandbox workspace-write -"),
        ("opencode", AgentMode::Dangerous, "opencode run --auto"),
        ("opencode", AgentMode::Safe, "opencode run"),
    ] {
        let mut lab = Lab::new("--not an option; 'fix it'").await;
        install(&lab, agent, SAYS_HOW);
        lab.order.agent = agent.to_owned();
        lab.order.mode = mode;
        let report = lab.run().await;
        assert_eq!(report.status, ReportStatus::Completed, "{agent}: {report:?}");
        let update = if agent == "claude" { "1" } else { "" };
        let expected = format!(
            "{said}\ntask: --not an option; 'fix it'\n{agent} {} bubblewrap key=set update={update}\n",
            mode.as_str()
        );
        assert_eq!(lab.host.text(Stream::Stdout), expected);
    }
    let mut lab = Lab::new("fix it").await;
    install(&lab, "codex", SAYS_HOW);
    lab.order.agent = "codex".to_owned();
    lab.order.agent_args = vec!["-m".to_owned(), "a model".to_owned()];
    lab.run().await;
    let said = "codex exec --dangerously-bypass-approvals-and-sandbox - -m a model\n";
    assert!(lab.host.text(Stream::Stdout).starts_with(said));
}

#[tokio::test]
async fn a_command_of_the_profile_and_a_script_of_the_repository_are_agents_too() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("the task").await;
    install(&lab, "aider", SAYS_HOW);
    lab.order.agent = "command".to_owned();
    lab.order.agent_command = vec!["aider".to_owned(), "--yes".to_owned(), "a b".to_owned()];
    assert_eq!(lab.run().await.status, ReportStatus::Completed);
    let text = lab.host.text(Stream::Stdout);
    assert!(text.starts_with("aider --yes a b\ntask: the task\n"), "{text}");

    let mut lab = Lab::new("the task").await;
    lab.order.agent = "repository".to_owned();
    let report = lab.run().await;
    assert_eq!(report.failed_phase, Some(Phase::Agent));
    assert!(
        report
            .message
            .unwrap()
            .contains("`.agentlab/run.sh`, which does not exist")
    );

    let mut lab = Lab::new("the task").await;
    let script = "mkdir .agentlab; printf '#!/bin/sh\\necho run by $0; cat; git commit -qm x --allow-empty\\n' \
                  > .agentlab/run.sh; chmod +x .agentlab/run.sh; git add .; git commit -qm script; \
                  git bundle create -q ../b --all HEAD";
    super::shell(&lab.base.path().join("source"), script).await;
    let bundle = std::fs::read(lab.base.path().join("b")).unwrap();
    lab.bring(bundle);
    lab.order.agent = "repository".to_owned();
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.commits),
        (ReportStatus::Completed, 1),
        "{report:?}"
    );
    let repo = lab.layout.repo();
    assert_eq!(
        lab.host.text(Stream::Stdout),
        format!("run by {}/.agentlab/run.sh\nthe task", repo.display())
    );
}

#[tokio::test]
async fn an_agent_that_the_template_lacks_is_named_with_the_recipe_that_has_it() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("x").await;
    lab.layout.user.path = "/usr/bin:/bin".to_owned();
    lab.order.agent = "codex".to_owned();
    let report = lab.run().await;
    assert_eq!((report.status, report.exit_code), (ReportStatus::Failed, None));
    let message = report.message.unwrap();
    assert!(
        message.contains("needs `codex`, which this template does not have; the recipe `agents`"),
        "{message}"
    );
}

#[tokio::test]
async fn text_is_without_secrets_however_long_it_is_and_whatever_stands_in_it() {
    if skipped_without_root() {
        return;
    }
    // A NUL long after the beginning makes no binary file of a log; nor does it matter how much follows.
    let lab = Lab::new(
        "cd $AGENTLAB_ARTIFACTS_DIR; yes ordinary line | head -c 100000 > odd.log; echo $API_KEY >> odd.log\n\
         printf '\\000 and more\\n' >> odd.log; cp odd.log long.log; yes ordinary line | head -c 34000000 >> long.log\n\
         echo $API_KEY >> long.log; printf \"\\000$API_KEY\" > binary",
    );
    let mut lab = lab.await;
    lab.answer.limits.max_file_bytes = 50_000_000;
    lab.answer.limits.max_total_bytes = 100_000_000;
    let report = lab.run().await;
    for name in ["files/odd.log", "files/long.log"] {
        let bytes = lab
            .host
            .artifact(name)
            .unwrap_or_else(|| panic!("{name}: {report:?}"));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("[redacted]\n\0 and more\n"), "{name}");
        assert!(!text.contains("s3cr3t"), "{name}");
    }
    // Of what is no text, nobody knows what a hole in it would do.
    assert_eq!(lab.host.artifact("files/binary").unwrap(), b"\0s3cr3t-api-key");
}

#[tokio::test]
async fn a_transcript_comes_back_without_the_secrets_that_the_agent_saw() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("x").await;
    install(
        &lab,
        "claude",
        "mkdir -p ~/.claude/projects/p; echo \"{\\\"key\\\":\\\"$API_KEY\\\"}\" > ~/.claude/projects/p/s.jsonl\n\
         ln -s /etc/passwd ~/.claude/projects/p/link; printf \"$API_KEY\\\\000\" > $AGENTLAB_ARTIFACTS_DIR/binary\n\
         touch $AGENTLAB_ARTIFACTS_DIR/$API_KEY; echo $API_KEY > $AGENTLAB_ARTIFACTS_DIR/text; echo plain > $AGENTLAB_ARTIFACTS_DIR/plain",
    );
    lab.order.agent = "claude".to_owned();
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    let text = |name: &str| String::from_utf8(lab.host.artifact(name).unwrap()).unwrap();
    assert_eq!(
        text("files/transcript/projects/p/s.jsonl"),
        "{\"key\":\"[redacted]\"}\n"
    );
    assert_eq!(text("files/text"), "[redacted]\n");
    assert_eq!(text("files/plain"), "plain\n");
    assert_eq!(
        text("files/binary"),
        "s3cr3t-api-key\0",
        "binaries stay as they are"
    );
    assert!(
        report
            .left_out
            .iter()
            .any(|entry| entry.contains("link: a symbolic link"))
    );
    assert!(
        report
            .left_out
            .contains(&"files/[redacted]: its name holds a secret".to_owned()),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_hardened_agent_sees_its_own_work_and_a_template_can_switch_the_sandbox_off() {
    if skipped_without_root() {
        return;
    }
    let look = "touch /tmp/mine $HOME/mine here $AGENTLAB_ARTIFACTS_DIR/there; ls -A /tmp | grep -v mine | head -n 3; \
                ls /root /home /run 2>/dev/null | grep -vE '^$|:' || true; touch ../outside 2>/dev/null && echo outside; \
                test -s /usr/bin/su && echo su; mkdir -p ~/.ssh; { echo key > ~/.ssh/authorized_keys; } 2>/dev/null && echo login; echo $AGENTLAB_INNER_SANDBOX; cat $AGENTLAB_TASK_FILE > /dev/null";
    let mut lab = Lab::new(look).await;
    lab.order.hardened = true;
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.inner_sandbox.as_str()),
        (ReportStatus::Completed, "hardened"),
        "{report:?} {}",
        lab.host.text(Stream::Stderr)
    );
    let text = lab.host.text(Stream::Stdout);
    let base = lab
        .base
        .path()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    assert_eq!(
        text,
        format!("{base}\nhardened\n"),
        "only what was bound is in /tmp"
    );
    assert!(lab.host.artifact("files/there").is_some());

    let lab = Lab::new("echo $AGENTLAB_INNER_SANDBOX").await;
    std::fs::write(&lab.layout.settings, "AGENTLAB_INNER_SANDBOX=0\n").unwrap();
    let report = lab.run().await;
    assert_eq!(report.inner_sandbox, "none");
    assert_eq!(lab.host.text(Stream::Stdout), "none\n");
    assert!(lab.host.text(Stream::Runner).contains("switched off"));
}

#[tokio::test]
async fn claude_code_reads_its_settings_from_memory_and_what_they_hold_is_not_shown() {
    if skipped_without_root() {
        return;
    }
    for agent in ["claude", "codex"] {
        let mut lab = Lab::new("do it").await;
        install(
            &lab,
            agent,
            "for last; do :; done; [ -f \"$last\" ] || exit 0; echo \"$last\"; sed 's/^/is /' \"$last\"; echo; stat -c %a \"$last\"; \
             stat -f -c %T \"$last\"",
        );
        lab.order.agent = agent.to_owned();
        let settings = r#"{"env":{"ANTHROPIC_AUTH_TOKEN":"s3cr3t-of-claude"},"model":"a-model-of-it"}"#;
        lab.answer.claude_settings = Some(SecretText::new(settings.to_owned()));
        let report = lab.run().await;
        assert_eq!(report.status, ReportStatus::Completed, "{agent}: {report:?}");
        let shown = lab.host.text(Stream::Stdout);
        if agent == "codex" {
            assert_eq!(shown, "");
            continue;
        }
        let rest = shown.split_once("/claude-settings.json\n").unwrap().1;
        let expected = r#"is {"env":{"ANTHROPIC_AUTH_TOKEN":"[redacted]"},"model":"a-model-of-it"}"#;
        assert_eq!(rest, format!("{expected}\n400\ntmpfs\n"));
    }
}
