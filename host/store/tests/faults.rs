//! Disks that are full, read-only or held by somebody else: real ones, in a mount namespace of the test's own. Each says
//! what is the matter, and when it is over, what had been stored is there and work goes on.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole file is tests"
)]

use std::fs;
use std::path::{Path, PathBuf};

use agentlab_api::{EventKind, JobId, LogStream};
use agentlab_store::{NewEvent, Store, StoreError, StoreOptions, Write};
use agentlab_testkit::root_tier;
use jiff::Timestamp;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

/// Runs on a thread whose mounts nobody else sees, with `dir` on a file system of this many KiB. They go with the thread.
fn on_small_disk(kib: u32, work: impl AsyncFnOnce(&Path) + Send + 'static) {
    if !root_tier() {
        return;
    }
    let done = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k,mode=700");
        mount(
            Some("small"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work(dir.path()));
        drop(runtime);
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    done.join().unwrap();
}

async fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open(StoreOptions {
        database_path: directory.join("agentlab.db"),
        files_dir: directory.join("files"),
        disk_floor_bytes: 0,
    })
    .await
}

/// The whole chain of causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

fn told(message: String) -> Write {
    Write::Event(NewEvent {
        kind: EventKind::Alarm,
        sandbox: None,
        job: None,
        message,
        data: serde_json::Value::Null,
    })
}

/// Takes every byte that is left.
fn fill(directory: &Path) -> PathBuf {
    use std::io::Write as _;
    let path = directory.join("ballast");
    let mut file = fs::File::create(&path).unwrap();
    for size in [65536, 4096, 1] {
        let piece = vec![7u8; size];
        while file.write_all(&piece).is_ok() {}
    }
    path
}

fn job() -> JobId {
    "job_0123456789ab".parse().unwrap()
}

#[test]
fn a_full_disk_refuses_commits_with_what_to_do_and_takes_them_again_when_there_is_space() {
    on_small_disk(4096, async |dir| {
        let store = open(dir).await.unwrap();
        store.commit(vec![told("first".into())]).await.unwrap();
        let ballast = fill(dir);
        let mut stood = 1;
        let error = loop {
            let large = told("x".repeat(20_000));
            match store.commit(vec![large]).await {
                Ok(_) => stood += 1,
                Err(error) => break error,
            }
        };
        let text = words(&error);
        assert!(
            text.contains("disk is full") && text.contains("free some space"),
            "{text}"
        );
        assert_eq!(store.last_event().await.unwrap(), stood, "reads go on");
        fs::remove_file(ballast).unwrap();
        store.commit(vec![told("last".into())]).await.unwrap();
        store.close().await;
        let again = open(dir).await.unwrap();
        assert_eq!(
            again.last_event().await.unwrap(),
            stood + 1,
            "nothing that stood is lost"
        );
    });
}

#[test]
fn a_full_disk_is_named_at_the_start_too() {
    on_small_disk(256, async |dir| {
        let ballast = fill(dir);
        let text = words(&open(dir).await.unwrap_err());
        assert!(
            text.contains("No space left") || text.contains("disk is full"),
            "{text}"
        );
        fs::remove_file(ballast).unwrap();
        open(dir).await.unwrap();
    });
}

#[test]
fn an_upload_onto_a_full_disk_leaves_nothing_and_can_be_repeated() {
    on_small_disk(2048, async |dir| {
        let store = open(dir).await.unwrap();
        let ballast = fill(dir);
        let sha256 = hex::encode(Sha256::digest([1; 8 * (64 << 10)]));
        let upload = async || {
            let files = store.files();
            let hold = files.hold(&sha256)?;
            let mut incoming = files.receive_artifact(&hold, 1 << 20).await?;
            for _ in 0..8 {
                incoming.write(&[1; 64 << 10]).await?;
            }
            incoming.finish(None).await
        };
        let error = upload().await.unwrap_err();
        assert!(error.is_disk_full(), "{}", words(&error));
        assert!(words(&error).contains("No space left"), "{}", words(&error));
        let left = fs::read_dir(dir.join("files/incoming")).unwrap().count();
        assert_eq!(left, 0, "half a file is left");
        assert!(store.files().open_artifact(&sha256).await.unwrap().is_none());
        fs::remove_file(ballast).unwrap();
        assert_eq!(upload().await.unwrap().size_bytes, 8 * (64 << 10));
    });
}

#[test]
fn a_log_on_a_full_disk_loses_and_repeats_no_line() {
    on_small_disk(1024, async |dir| {
        let store = open(dir).await.unwrap();
        let ballast = fill(dir);
        let mut refused = 0;
        let append = async |number: u64| {
            let line = format!("{number} {}\n", "y".repeat(3000));
            let records = vec![(LogStream::Stdout, line)];
            store
                .files()
                .append_log(&job(), number, records, Timestamp::now(), 1 << 20)
                .await
        };
        let mut next = 0;
        while refused == 0 {
            match append(next).await {
                Ok(_) => next += 1,
                Err(error) => {
                    assert!(error.is_disk_full(), "{}", words(&error));
                    refused += 1;
                }
            }
        }
        fs::remove_file(ballast).unwrap();
        for number in next..next + 3 {
            append(number).await.unwrap();
        }
        let log = store.files().read_log(&job(), 0, 1000).await.unwrap();
        let numbers: Vec<u64> = log
            .iter()
            .map(|record| record.text.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers, (0..next + 3).collect::<Vec<_>>());
    });
}

#[test]
fn a_read_only_disk_is_named_and_opened_once_it_can_be_written() {
    on_small_disk(4096, async |dir| {
        open(dir).await.unwrap().close().await;
        let remount = |flags| {
            let none = None::<&str>;
            mount(
                none,
                dir,
                none,
                MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
                none,
            )
            .unwrap();
        };
        remount(MsFlags::MS_RDONLY);
        let text = words(&open(dir).await.unwrap_err());
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains(dir.to_str().unwrap()), "{text}");
        remount(MsFlags::empty());
        open(dir).await.unwrap();
    });
}

#[tokio::test]
async fn a_database_that_another_program_locks_is_refused_and_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let other = Connection::open(directory.path().join("agentlab.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (commit, second) = tokio::join!(store.commit(vec![told("refused".into())]), open(directory.path()));
    let text = words(&commit.unwrap_err());
    assert!(text.contains("locked by another program"), "{text}");
    assert_eq!(store.last_event().await.unwrap(), 0, "reads go on");
    // A database that is up to date is opened without writing to it.
    drop(second);
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(vec![told("taken".into())]).await.unwrap();
    assert_eq!(store.last_event().await.unwrap(), 1);
}

#[tokio::test]
async fn a_new_database_that_another_program_locks_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let other = Connection::open(directory.path().join("agentlab.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let text = words(&open(directory.path()).await.unwrap_err());
    assert!(text.contains("locked"), "{text}");
    other.execute_batch("ROLLBACK").unwrap();
    open(directory.path()).await.unwrap();
}
