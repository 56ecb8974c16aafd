//! What comes back, and what a repository, an order or a host may do to it.

use std::path::PathBuf;

use agentlab_protocol::message::{GitCredentials, Phase, Report, ReportStatus, Repository, Stream};
use agentlab_protocol::secret::SecretText;

use super::agents::install;
use super::{Lab, shell};
use crate::requirement::skipped_without_root;

#[tokio::test]
async fn commits_changes_and_files_of_an_agent_come_back_whole() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new(
        "printf 'three\\n' > a.txt; git commit -qam third; printf '\\000\\001\\377' > bin; git add bin; git commit -qm bin\n\
         echo dirty >> a.txt; printf 'new\\000' > untracked; mkdir d; echo x > d/y\n\
         mkdir $AGENTLAB_ARTIFACTS_DIR/sub; echo out > $AGENTLAB_ARTIFACTS_DIR/sub/r.txt\n\
         ln -s /etc/passwd $AGENTLAB_ARTIFACTS_DIR/passwd; cmp $AGENTLAB_TASK_FILE $AGENTLAB_TASK_FILE\n\
         id -u; id -G; pwd; echo key=$API_KEY; git log -1 --format=%an; ls /run",
    )
    .await;
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.exit_code),
        (ReportStatus::Completed, Some(0)),
        "{report:?}"
    );
    assert_eq!(
        (report.commits, report.uncommitted, report.inner_sandbox.as_str()),
        (2, true, "bubblewrap")
    );
    let (repo, uid) = (lab.layout.repo(), lab.layout.user.uid);
    let text = lab.host.text(Stream::Stdout);
    let expected = format!(
        "{uid}\n{uid}\n{}\nkey=[redacted]\nAgentLab agent\n",
        repo.display()
    );
    assert_eq!(
        text, expected,
        "user, groups, directory, redaction, identity, nothing in /run"
    );
    let applied = lab.applied().await;
    assert_eq!(std::fs::read(applied.join("a.txt")).unwrap(), b"three\ndirty\n");
    assert_eq!(std::fs::read(applied.join("bin")).unwrap(), b"\0\x01\xff");
    assert_eq!(std::fs::read(applied.join("untracked")).unwrap(), b"new\0");
    assert_eq!(std::fs::read(applied.join("d/y")).unwrap(), b"x\n");
    shell(
        &lab.base.path().join("source"),
        "git am -q ../work.patch && test $(git rev-list --count HEAD) = 4",
    )
    .await;
    assert_eq!(lab.host.artifact("files/sub/r.txt").unwrap(), b"out\n");
    assert!(
        report
            .left_out
            .iter()
            .any(|entry| entry.starts_with("files/passwd: a symbolic link")),
        "{report:?}"
    );
    assert!(lab.host.artifact("files/passwd").is_none());
    let logged = String::from_utf8(lab.host.artifact("agent.log").unwrap()).unwrap();
    assert!(
        logged.contains("key=[redacted]") && !logged.contains("s3cr3t"),
        "{logged}"
    );
    let uploaded: Report = serde_json::from_slice(&lab.host.artifact("report.json").unwrap()).unwrap();
    assert_eq!(
        (uploaded.head_commit, uploaded.artifacts.len()),
        (report.head_commit, report.artifacts.len() - 1)
    );
    let phases = lab.host.0.lock().unwrap().phases.clone();
    assert!(phases.contains(&Phase::Agent), "{phases:?}");
}

#[tokio::test]
async fn a_hostile_repository_executes_nothing_during_collection() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new(
        "p=$PWD/../artifacts/pwned; printf '#!/bin/sh\\necho ran $0 $* >> %s\\ncat\\n' $p > $HOME/evil; chmod +x $HOME/evil\n\
         cp $HOME/evil .git/hooks-evil; mkdir -p .git/hooks\n\
         for h in post-index-change pre-commit post-checkout reference-transaction fsmonitor-watchman; do cp $HOME/evil .git/hooks/$h; done\n\
         echo 'a.txt filter=evil diff=evil' > .gitattributes; git add .; rm -f $p\n\
         mkdir sub; cd sub; git init -q; echo n > n; git add n; git commit -qm n; \
         git config filter.evil.clean $HOME/evil; git config core.fsmonitor $HOME/evil; echo 'n filter=evil' > .gitattributes; cd ..\n\
         git -c advice.addEmbeddedRepo=false add sub; git commit -qm attributes --no-verify; echo changed >> a.txt; echo m > sub/n\n\
         git config core.hooksPath $PWD/.git/hooks; git config core.fsmonitor $HOME/evil\n\
         git config filter.evil.clean $HOME/evil; git config filter.evil.process $HOME/evil; git config filter.evil.required true\n\
         git config diff.evil.command $HOME/evil; git config diff.evil.textconv $HOME/evil; git config diff.external $HOME/evil\n\
         git config log.showSignature true; git config gpg.program $HOME/evil; git config core.alternateRefsCommand $HOME/evil\n\
         git config core.pager $HOME/evil; git config core.sshCommand $HOME/evil; git config uploadpack.packObjectsHook $HOME/evil\n\
         git config extensions.partialClone origin; git config remote.origin.promisor true; git config remote.origin.url ext::$HOME/evil\n\
         rm -f $p; git add a.txt 2>/dev/null || true; test -e $p; rm -f $p; touch $AGENTLAB_ARTIFACTS_DIR/armed",
    )
    .await;
    let report = lab.run().await;
    let log = String::from_utf8(lab.host.artifact("agent.log").unwrap()).unwrap();
    assert_eq!(report.status, ReportStatus::Completed, "{log}");
    assert!(
        lab.host.artifact("files/armed").is_some(),
        "git of the agent itself must have run it"
    );
    let ran = lab.host.artifact("files/pwned").unwrap_or_default();
    assert!(ran.is_empty(), "{}", String::from_utf8_lossy(&ran));
    assert!(report.uncommitted && report.commits == 1, "{report:?} {log}");
    let diff = String::from_utf8(lab.host.artifact("uncommitted.diff").unwrap()).unwrap();
    assert!(diff.contains("+changed"), "{diff}");
}

#[tokio::test]
async fn a_repository_that_does_not_clone_is_reported_in_the_words_of_git() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("true").await;
    lab.order.repository = Repository::Url {
        url: "https://bot:s3cr3t-pass@127.0.0.1:1/none.git".to_owned(),
    };
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.failed_phase),
        (ReportStatus::Failed, Some(Phase::Repository))
    );
    let message = report.message.unwrap();
    assert!(
        message.starts_with("`git clone` failed") && message.contains("unable to access"),
        "{message}"
    );
    assert!(!message.contains("s3cr3t") && !lab.host.text(Stream::Runner).contains("s3cr3t"));
    assert!(lab.host.artifact("agent.log").is_some() && lab.host.artifact("report.json").is_some());

    // Nobody would notice who else answers.
    for protocol in ["http", "git", "file"] {
        let mut lab = Lab::new("true").await;
        let url = format!("{protocol}://127.0.0.1:1/none.git");
        lab.order.repository = Repository::Url { url };
        let message = lab.run().await.message.unwrap();
        let refusal = format!("transport '{protocol}' not allowed");
        assert!(message.contains(&refusal), "{message}");
    }

    lab = Lab::new("true").await;
    lab.order.repository = Repository::Url {
        url: format!("file://{}/source", lab.base.path().display()),
    };
    assert!(
        lab.run().await.message.unwrap().contains("not allowed"),
        "a local path is not the host's to name"
    );

    lab = Lab::new("true").await;
    lab.order.repository = Repository::Bundle {
        sha256: "00".repeat(32),
    };
    assert!(
        lab.run()
            .await
            .message
            .unwrap()
            .contains("not the one of the order")
    );
}

/// What lies in a lab's directory, served by git's own daemon, and its port.
async fn served(lab: &Lab) -> (tokio::process::Child, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let program = PathBuf::from(shell(lab.base.path(), "git --exec-path").await).join("git-daemon");
    let base = format!("--base-path={}", lab.base.path().display());
    let daemon = tokio::process::Command::new(program)
        .args([
            "--reuseaddr",
            "--export-all",
            "--listen=127.0.0.1",
            &format!("--port={port}"),
            &base,
        ])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    (daemon, port)
}

#[tokio::test]
async fn a_url_is_cloned_and_a_commit_below_no_branch_is_fetched() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("git log --format=%s; git remote get-url origin").await;
    let source = lab.base.path().join("source");
    shell(&source, "git checkout -q --detach; git commit -q --allow-empty -m pull; git update-ref refs/pull/7/head HEAD; \
        git checkout -q main")
        .await;
    let (_daemon, port) = served(&lab).await;
    lab.layout.clone_protocols = "git";
    let url = format!("git://127.0.0.1:{port}/source");
    lab.order.repository = Repository::Url { url: url.clone() };
    lab.order.reference = Some("refs/pull/7/head".to_owned());
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    assert_eq!(
        lab.host.text(Stream::Stdout),
        format!("pull\nsecond\nfirst\n{url}\n")
    );
    assert_eq!((report.commits, report.uncommitted), (0, false));
    assert!(lab.host.artifact("work.bundle").is_none());
}

#[tokio::test]
async fn submodules_come_where_the_order_says_so_and_never_from_a_path() {
    if skipped_without_root() {
        return;
    }
    for (asked, url, expected) in [
        (true, "git", Ok("sub one\n")),
        (false, "git", Ok("sub\n")),
        (true, "path", Err("transport 'file' not allowed")),
        (true, "option", Err("-u./evil")),
    ] {
        let mut lab = Lab::new("echo sub $(cat sub/a.txt 2>/dev/null)").await;
        let base = lab.base.path().to_owned();
        let (_daemon, port) = served(&lab).await;
        let url = match url {
            "git" => format!("git://127.0.0.1:{port}/module"),
            "path" => base.join("module").display().to_string(),
            _ => "-u./evil".to_owned(),
        };
        let script = format!(
            "git clone -q source module; git -C module reset -q --hard v1; cd source
             git update-index --add --cacheinfo 160000,$(git rev-parse v1),sub
             git config -f .gitmodules submodule.sub.path sub; git config -f .gitmodules submodule.sub.url {url}
             git add .gitmodules; git commit -qm sub"
        );
        shell(&base, &script).await;
        lab.layout.clone_protocols = "git";
        lab.order.submodules = asked;
        lab.order.repository = Repository::Url {
            url: format!("git://127.0.0.1:{port}/source"),
        };
        let report = lab.run().await;
        match expected {
            Ok(printed) => {
                assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
                assert_eq!(lab.host.text(Stream::Stdout), printed);
            }
            Err(words) => {
                assert_eq!(report.failed_phase, Some(Phase::Repository), "{report:?}");
                assert!(report.message.clone().unwrap().contains(words), "{report:?}");
            }
        }
    }
}

#[tokio::test]
async fn branch_tag_and_commit_are_checked_out_and_others_are_refused() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("").await;
    let first = shell(&lab.base.path().join("source"), "git rev-parse v1").await;
    for (reference, branch) in [("side", "side"), ("v1", "agentlab"), (first.as_str(), "agentlab")] {
        let mut lab = Lab::new("git symbolic-ref --short HEAD; cat a.txt").await;
        // The same history again: its first commit has another time, so name it anew.
        let own = shell(&lab.base.path().join("source"), "git rev-parse v1").await;
        lab.order.reference = Some(if reference.len() == 40 {
            own.clone()
        } else {
            reference.to_owned()
        });
        let report = lab.run().await;
        assert_eq!(report.base_commit, Some(own), "{reference}: {report:?}");
        assert_eq!(lab.host.text(Stream::Stdout), format!("{branch}\none\n"));
    }
    for reference in ["nowhere", "--upload-pack=x", "a b", "HEAD~1", ""] {
        let mut lab = Lab::new("true").await;
        lab.order.reference = Some(reference.to_owned());
        let report = lab.run().await;
        assert_eq!(report.failed_phase, Some(Phase::Repository), "{reference}");
        assert!(report.message.unwrap().contains("is no branch, tag or commit"));
    }
}

#[tokio::test]
async fn an_unknown_agent_and_a_long_task_are_told_apart() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("true").await;
    lab.order.agent = "clod".to_owned();
    let report = lab.run().await;
    assert_eq!(report.failed_phase, Some(Phase::Agent));
    assert!(report.message.unwrap().contains("`clod` is not known"));
    let lab = Lab::new(&format!(
        "# {}\necho long; wc -c < $AGENTLAB_TASK_FILE",
        "x".repeat(300_000)
    ))
    .await;
    assert_eq!(lab.run().await.status, ReportStatus::Completed);
    assert!(lab.host.text(Stream::Stdout).starts_with("long\n3000"));
}

#[tokio::test]
async fn an_inner_sandbox_that_does_not_start_is_not_taken_for_the_agent() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("true").await;
    lab.order.inner_sandbox_args = vec!["--no-such-option".to_owned()];
    let report = lab.run().await;
    assert_eq!(
        (
            report.failed_phase,
            report.exit_code,
            report.inner_sandbox.as_str()
        ),
        (Some(Phase::Agent), None, "none")
    );
    let message = report.message.unwrap();
    assert!(
        message.starts_with("The inner sandbox did not start: bwrap: ") && message.contains("no-such"),
        "{message}"
    );
}

#[tokio::test]
async fn a_refused_artifact_is_named_and_a_host_that_is_away_fails_the_job() {
    if skipped_without_root() {
        return;
    }
    let mut lab =
        Lab::new("cd $AGENTLAB_ARTIFACTS_DIR; echo 1 > a; echo 2 > b; head -c 20000 /dev/zero > big").await;
    lab.answer.limits.max_file_bytes = 10_000;
    lab.host(|seen| seen.refuse = Some("files/a"));
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed);
    let left_out = report.left_out.join("\n");
    assert!(
        left_out.contains("files/a: Host refused") && left_out.contains("files/big: 20000 bytes"),
        "{left_out}"
    );
    assert!(lab.host.artifact("files/b").is_some());

    lab = Lab::new("echo 1 > $AGENTLAB_ARTIFACTS_DIR/a").await;
    lab.host(|seen| seen.away = true);
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.failed_phase),
        (ReportStatus::Failed, Some(Phase::Upload))
    );
}

#[tokio::test]
async fn work_that_cannot_be_handed_over_fails_the_job_and_may_be_larger_than_other_files() {
    let work = "head -c 20000 /dev/urandom > a.txt; git commit -qam three; echo four >> a.txt";
    let mut lab = Lab::new(work).await;
    lab.answer.limits.max_file_bytes = 10_000;
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    assert!(lab.host.artifact("work.bundle").unwrap().len() > 10_000);

    for name in ["work.bundle", "uncommitted.diff"] {
        lab = Lab::new(work).await;
        lab.host(|seen| seen.refuse = Some(name));
        let report = lab.run().await;
        assert_eq!(
            (report.status, report.failed_phase),
            (ReportStatus::Failed, Some(Phase::Upload)),
            "{name}"
        );
        let message = report.message.unwrap();
        assert!(message.contains(name) && message.contains("quota"), "{message}");
    }
}

#[tokio::test]
async fn a_report_of_thousands_of_files_is_still_a_message_the_host_takes() {
    if skipped_without_root() {
        return;
    }
    let mut lab =
        Lab::new("cd $AGENTLAB_ARTIFACTS_DIR; d=$(printf %0200d 0); mkdir $d; cd $d; seq 4000 | xargs touch")
            .await;
    lab.answer.limits.max_files = 5000;
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed);
    assert!(serde_json::to_vec(&report).unwrap().len() < 1_000_000 && !report.artifacts.is_empty());
    assert!(
        report.left_out.iter().any(|entry| entry.contains("of 400")),
        "{:?}",
        report.left_out
    );
    assert!(
        lab.host.artifact("report.json").unwrap().len() > 1_000_000,
        "the file lists all"
    );
}

#[tokio::test]
async fn credentials_are_the_agents_on_tmpfs_and_never_in_output_or_on_disk() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new(
        "stat -f -c %T $AGENTLAB_TASK_FILE; cat ${AGENTLAB_TASK_FILE%/*}/git-credential; echo $GIT_SSH_COMMAND\n\
         ! touch ${AGENTLAB_TASK_FILE%/*}/x 2>/dev/null; test $(ulimit -Hc) = 0; printenv API_KEY | base64",
    )
    .await;
    lab.answer.git = Some(GitCredentials {
        username: "bot".to_owned(),
        token: Some(SecretText::new("t0ken-of-git".to_owned())),
        ssh_private_key: Some(SecretText::new(
            "-----BEGIN-----\nabcdefghijklmnopqrstuv\n-----END-----".to_owned(),
        )),
        known_hosts: Some("host key".to_owned()),
    });
    let report = lab.run().await;
    assert_eq!(
        report.status,
        ReportStatus::Completed,
        "{report:?} {}",
        lab.host.text(Stream::Stderr)
    );
    let text = lab.host.text(Stream::Stdout);
    assert!(
        text.starts_with("tmpfs\nusername=bot\npassword=[redacted]\nssh -i "),
        "{text}"
    );
    assert!(
        text.ends_with("\n[redacted]K\n"),
        "K is the line end alone: {text}"
    );
    let found = shell(
        lab.base.path(),
        "grep -rlE 's3cr3t-api|t0ken-of' work home spool || true",
    )
    .await;
    assert_eq!(found, "", "a secret is on the disk");
}

#[tokio::test]
async fn words_of_git_that_are_too_long_are_cut_without_showing_a_part_of_a_secret() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("true").await;
    let line = "s3cr3t-api-key|".repeat(10);
    install(
        &lab,
        "git",
        &format!(
            "case \"$*\" in *clone*) for n in $(seq 100); do echo '{line}' >&2; done; exit 128;; esac; exec /usr/bin/git \"$@\""
        ),
    );
    let report = lab.run().await;
    let message = report.message.unwrap();
    assert!(
        message.contains("[redacted]|[redacted]|") && message.contains(" ... "),
        "{message}"
    );
    assert!(!message.contains("s3c") && !message.contains("-key"), "{message}");
}

#[tokio::test]
async fn a_rewritten_history_and_a_lost_repository_are_said_and_the_rest_still_comes() {
    if skipped_without_root() {
        return;
    }
    let lab =
        Lab::new("git checkout -q --orphan new; git commit -qm anew; echo f > $AGENTLAB_ARTIFACTS_DIR/f")
            .await;
    let report = lab.run().await;
    assert_eq!(report.commits, 1);
    assert!(lab.host.text(Stream::Runner).contains("does not continue commit"));

    let lab = Lab::new("rm -rf .git; echo f > $AGENTLAB_ARTIFACTS_DIR/f").await;
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.head_commit.as_ref()),
        (ReportStatus::Completed, None)
    );
    assert!(report.left_out[0].contains("not a git repository"), "{report:?}");
    assert!(lab.host.artifact("files/f").is_some());
}
