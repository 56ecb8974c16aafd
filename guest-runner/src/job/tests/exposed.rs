//! Secrets that an agent writes into its work.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use agentlab_protocol::message::{ExposedSecret, Report, SecretSearch, Stream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::agents::install;
use super::{Lab, shell};
use crate::job::collect::{Store, Work};
use crate::job::process::ProcessError;
use crate::job::{JobLog, end_user, exposed};
use crate::redact::Needles;
use crate::requirement::skipped_without_root;
use crate::secrets::named_secrets;

fn place(path: Option<&str>, uncommitted: bool) -> ExposedSecret {
    ExposedSecret {
        secret: "API_KEY".to_owned(),
        path: path.map(str::to_owned),
        uncommitted,
    }
}

fn was_searched(report: &Report) -> bool {
    report.secret_search == Some(SecretSearch::Complete)
}

#[tokio::test]
async fn a_secret_in_the_work_is_named_with_its_file_and_the_work_stays_as_it_is() {
    if skipped_without_root() {
        return;
    }
    // Also where it was taken out again, where git sees no text, and where only its base64 stands.
    let lab = Lab::new(
        "echo \"key: $API_KEY\" > config.yaml; git add .; git commit -qm config\n\
         printf \"\\000$API_KEY\\000\" > store; printf '%s' \"xy$API_KEY\" | base64 > encoded; git add .; git commit -qm more\n\
         git rm -q config.yaml; git commit -qm \"Without $API_KEY\"\n\
         mkdir 'a b'; echo $API_KEY > 'a b/.env'; echo harmless > other",
    )
    .await;
    let report = lab.run().await;
    assert_eq!(
        report.exposed_secrets,
        [
            place(None, false),
            place(Some("config.yaml"), false),
            place(Some("encoded"), false),
            place(Some("store"), false),
            place(Some("a b/.env"), true),
        ],
        "{report:?}"
    );
    assert!(was_searched(&report), "{report:?}");
    let applied = lab.applied().await;
    let written = std::fs::read_to_string(applied.join("a b/.env")).unwrap();
    assert_eq!(written, "s3cr3t-api-key\n");
    let store = std::fs::read(applied.join("store")).unwrap();
    assert_eq!(store, b"\0s3cr3t-api-key\0");
    let told = lab.host.text(Stream::Runner);
    assert!(
        told.contains("ALARM: the work holds a secret: API_KEY in store"),
        "{told}"
    );
    assert!(!told.contains("s3cr3t"), "{told}");
}

#[tokio::test]
async fn a_name_that_is_a_secret_is_named_without_it() {
    if skipped_without_root() {
        return;
    }
    let long = "x".repeat(200);
    let lab = Lab::new(&format!(
        "mkdir -p y/{long}/{long}; echo $API_KEY > y/{long}/{long}/a; touch \"$API_KEY.txt\"; git add .; git commit -qm name"
    ))
    .await;
    let report = lab.run().await;
    let [name, path] = report.exposed_secrets.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(*name, place(Some("[redacted].txt"), false));
    let path = path.path.as_ref().unwrap();
    assert!(
        path.starts_with("y/xx") && path.len() == 300,
        "a report is a message of bounded size: {path}"
    );
}

#[tokio::test]
async fn what_the_repository_said_before_is_nobodys_secret() {
    if skipped_without_root() {
        return;
    }
    let mut lab =
        Lab::new("echo more >> a.txt; git commit -qam more; echo rest >> a.txt; echo x > b.txt").await;
    let source = lab.base.path().join("source");
    shell(
        &source,
        "echo s3cr3t-api-key > a.txt; git commit -qam known; git bundle create -q ../known HEAD",
    )
    .await;
    lab.bring(std::fs::read(lab.base.path().join("known")).unwrap());
    let report = lab.run().await;
    assert!(report.commits == 1 && report.uncommitted, "{report:?}");
    assert_eq!(report.exposed_secrets, []);
}

#[tokio::test]
async fn known_words_in_many_files_do_not_hide_a_secret_in_one_more() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new(
        "for file in known*; do echo more >> $file; done; echo new $API_KEY > new; git add .; git commit -qm all",
    )
    .await;
    let source = lab.base.path().join("source");
    let make = "for n in $(seq 150); do echo $n s3cr3t-api-key > known$n; done; git add .; git commit -qm known; \
                git bundle create -q ../known HEAD";
    shell(&source, make).await;
    lab.bring(std::fs::read(lab.base.path().join("known")).unwrap());
    let report = lab.run().await;
    assert_eq!(report.exposed_secrets, [place(Some("new"), false)]);
    assert!(was_searched(&report), "{report:?}");
}

#[tokio::test]
async fn work_without_the_commit_it_began_at_is_searched_as_a_whole() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new(
        "rm -rf .git; git init -q; echo $API_KEY > new; git add .; git commit -qm anew; echo $API_KEY > left",
    )
    .await;
    let report = lab.run().await;
    assert!(
        lab.host
            .text(Stream::Runner)
            .contains("is gone from the repository"),
        "{report:?}"
    );
    let both = [place(Some("new"), false), place(Some("left"), true)];
    assert_eq!(report.exposed_secrets, both, "{report:?}");
    assert!(was_searched(&report), "{report:?}");
}

#[tokio::test]
async fn work_that_could_not_be_searched_says_so_and_comes_all_the_same() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("echo harmless > b.txt; git add .; git commit -qm harmless").await;
    install(
        &lab,
        "git",
        "case \"$*\" in *'cat-file --batch'*) echo 'fatal: no memory for s3cr3t-api-key' >&2; exit 128;; esac; \
         exec /usr/bin/git \"$@\"",
    );
    let report = lab.run().await;
    assert_eq!((report.exposed_secrets.as_slice(), report.commits), (&[][..], 1));
    let Some(SecretSearch::Incomplete { reason }) = &report.secret_search else {
        panic!("{report:?}");
    };
    assert!(reason.contains("no memory for [redacted]"), "{reason}");
    let told = lab.host.text(Stream::Runner);
    assert!(told.contains("ALARM: the work could not be searched"), "{told}");
    assert!(lab.host.artifact("work.bundle").is_some());
}

#[tokio::test]
async fn what_was_found_is_named_also_where_the_search_fails_after_it() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("echo $API_KEY > key; git add .; git commit -qm key; echo harmless > left").await;
    install(
        &lab,
        "git",
        "case \"$*\" in *--no-abbrev*) echo 'fatal: no memory' >&2; exit 128;; esac; exec /usr/bin/git \"$@\"",
    );
    let report = lab.run().await;
    assert_eq!(report.exposed_secrets, [place(Some("key"), false)], "{report:?}");
    let Some(SecretSearch::Incomplete { reason }) = &report.secret_search else {
        panic!("{report:?}");
    };
    assert!(reason.contains("no memory"), "{reason}");
    let told = lab.host.text(Stream::Runner);
    for alarm in [
        "the work holds a secret: API_KEY in key",
        "the work could not be searched",
    ] {
        assert!(told.contains(&format!("ALARM: {alarm}")), "{told}");
    }
}

#[tokio::test]
async fn a_search_without_end_holds_no_work_back_and_tells_what_it_found() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("echo $API_KEY > key; git add .; git commit -qm key; echo harmless > left").await;
    let report = lab.run().await;
    // It hangs once it reads what is not committed.
    install(
        &lab,
        "git",
        "case \"$*\" in *--no-abbrev*) touch \"$GIT_DIR/listed\";; \
         *'cat-file --batch'*) mv \"$GIT_DIR/listed\" \"$GIT_DIR/hangs\" 2>/dev/null && exec sleep 1000;; esac; \
         exec /usr/bin/git \"$@\"",
    );
    let git_dir = lab.layout.spool.join("collect/git");
    let work = Work {
        head: report.head_commit,
        base: report.base_commit,
        commits: report.commits,
        uncommitted: report.uncommitted,
        store: Some(Store {
            git_dir: git_dir.clone(),
            objects: lab.layout.repo().join(".git/objects"),
        }),
        ..Work::default()
    };
    let secrets = named_secrets(&lab.answer);
    let needles = Arc::new(Needles::new(secrets.iter().map(|secret| secret.value.expose())));
    let log = JobLog::create(&lab.base.path().join("log"), needles, 1000, 0).unwrap();
    tokio::time::pause();
    for (asked_to_end, most) in [(false, 300), (true, 60)] {
        let (_cancel, cancelled) = watch::channel(asked_to_end);
        let began = Instant::now();
        // The clock stands still until git hangs. What is waited for then never comes, so that it goes on by itself.
        let hangs = git_dir.join("hangs");
        let (searching, searched) = mpsc::channel::<()>();
        let still = tokio::task::spawn_blocking(move || {
            let tick = Duration::from_millis(1);
            while !hangs.exists() && searched.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {}
            std::fs::remove_file(hangs).unwrap();
        });
        let findings = exposed::find(&work, &secrets, (&lab.layout, &log), cancelled).await;
        drop(searching);
        still.await.unwrap();
        let late = matches!(findings.incomplete, Some(ProcessError::Deadline { .. }));
        assert!(late, "{findings:?}");
        assert_eq!(findings.places, [place(Some("key"), false)]);
        // The host waits two minutes for all that is collected of a job that it ends.
        assert!(began.elapsed() < Duration::from_secs(most), "{asked_to_end}");
        assert!(!lab.layout.spool.join("objects").exists());
    }
    tokio::time::resume();
    assert!(end_user(lab.layout.user.uid).await);
}
