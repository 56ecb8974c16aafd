//! The bytes of artifacts beside their records: once on disk, gone with the last record, and nothing between them that a
//! crash could leave.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole file is tests"
)]

mod support;

use std::path::Path;

use agentlab_api::{JobState, LogStream};
use agentlab_store::{JobRecord, Store, Write};
use jiff::Timestamp;
use support::{job, keep, open};

const BYTES: &[u8] = b"hello";
const SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

async fn ended(store: &Store) -> JobRecord {
    let job = JobRecord {
        state: JobState::Completed,
        finished_at: Some(Timestamp::now()),
        ..job(None)
    };
    store
        .commit(vec![Write::Job(Box::new(job.clone()))])
        .await
        .unwrap();
    job
}

/// Received, and never recorded.
async fn leave(store: &Store, bytes: &[u8], sha256: &str) {
    let hold = store.files().hold(sha256).unwrap();
    let mut incoming = store.files().receive_artifact(&hold, 100).await.unwrap();
    incoming.write(bytes).await.unwrap();
    incoming.finish(Some(sha256)).await.unwrap();
}

/// The paths of all files below, in order.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()).iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn the_same_bytes_of_two_jobs_are_there_once_and_go_with_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (one, two) = (ended(&store).await, ended(&store).await);
    let artifacts = directory.path().join("artifacts");
    for (job, name) in [(&one, "files/a"), (&one, "files/b"), (&two, "report.json")] {
        keep(&store, &job.id, name, BYTES).await;
    }
    assert_eq!(files(&artifacts), [format!("2c/{SHA256}")]);
    store.forget_jobs(vec![one.id]).await.unwrap();
    assert_eq!(store.remove_unrecorded().await.unwrap(), 0);
    assert!(store.files().open_artifact(SHA256).await.unwrap().is_some());
    store.forget_jobs(vec![two.id]).await.unwrap();
    assert_eq!(store.remove_unrecorded().await.unwrap(), 1);
    assert_eq!(files(&artifacts), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_never_recorded_goes_at_once_and_after_a_crash_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let job = ended(&store).await;
    let artifacts = directory.path().join("artifacts");
    leave(&store, BYTES, SHA256).await;
    assert_eq!(store.remove_unrecorded().await.unwrap(), 1);
    assert_eq!(files(&artifacts), Vec::<String>::new());

    let kept = keep(&store, &job.id, "files/a", b"kept").await;
    leave(&store, BYTES, SHA256).await;
    // What is no file of ours is left alone.
    std::fs::write(artifacts.join("README"), "").unwrap();
    std::fs::write(artifacts.join("2c/note"), "").unwrap();
    // The process that knew of it ends; the next one finds it, and not what is just arriving.
    let store = open(directory.path()).await.unwrap();
    let hold = store.files().hold(SHA256).unwrap();
    assert_eq!(store.compare_artifacts().await.unwrap(), 0);
    drop(hold);
    assert_eq!(store.compare_artifacts().await.unwrap(), 1);
    let mut left = [
        format!("{}/{kept}", &kept[..2]),
        "2c/note".to_owned(),
        "README".to_owned(),
    ];
    left.sort();
    assert_eq!(files(&artifacts), left);
}

#[tokio::test]
async fn work_that_an_older_database_does_not_know_of_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    store.close().await;
    let database = directory.path().join("agentlab.db");
    let older = std::fs::read(&database).unwrap();
    let store = open(directory.path()).await.unwrap();
    let job = ended(&store).await;
    keep(&store, &job.id, "work.bundle", BYTES).await;
    let line = vec![(LogStream::Stdout, "done\n".to_owned())];
    let log = store.files().append_log(&job.id, 0, line, Timestamp::now(), 1000);
    log.await.unwrap();
    store.close().await;
    let newer = std::fs::read(&database).unwrap();

    std::fs::write(&database, older).unwrap();
    let store = open(directory.path()).await.unwrap();
    assert!(store.job(&job.id).await.unwrap().is_none());
    assert_eq!(store.compare_artifacts().await.unwrap(), 0);
    assert!(store.files().open_artifact(SHA256).await.unwrap().is_some());
    store.close().await;

    std::fs::write(&database, newer).unwrap();
    let store = open(directory.path()).await.unwrap();
    assert_eq!(store.artifacts(&job.id).await.unwrap()[0].sha256, SHA256);
    assert_eq!(store.compare_artifacts().await.unwrap(), 0);
    // With the log of the last such job goes what nobody knows of any more.
    store.forget_jobs(vec![job.id.clone()]).await.unwrap();
    store.files().remove_job(&job.id).await.unwrap();
    assert_eq!(store.compare_artifacts().await.unwrap(), 1);
}

#[tokio::test]
async fn what_an_older_program_kept_by_name_is_found_by_its_hash() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (one, two) = (ended(&store).await, ended(&store).await);
    let of_job = |job: &JobRecord| directory.path().join("artifacts").join(job.id.as_str());
    for (job, name) in [(&one, "files/deep/a"), (&one, "report.json"), (&two, "files/b")] {
        keep(&store, &job.id, name, BYTES).await;
        let path = of_job(job).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, BYTES).unwrap();
    }
    std::fs::write(of_job(&one).join("files/unrecorded"), "half").unwrap();
    let artifacts = directory.path().join("artifacts");
    std::fs::remove_dir_all(artifacts.join("2c")).unwrap();
    store.close().await;
    let database = rusqlite::Connection::open(directory.path().join("agentlab.db")).unwrap();
    database
        .execute_batch(
            "DROP INDEX artifacts_of_bytes; ALTER TABLE artifacts DROP COLUMN sha256; PRAGMA user_version = 4;",
        )
        .unwrap();
    // A start that was cut short in the midst of it had moved this one.
    std::fs::create_dir(artifacts.join("2c")).unwrap();
    std::fs::rename(
        of_job(&one).join("report.json"),
        artifacts.join("2c").join(SHA256),
    )
    .unwrap();

    let store = open(directory.path()).await.unwrap();
    assert_eq!(files(&artifacts), [format!("2c/{SHA256}")]);
    assert!(!of_job(&one).exists() && !of_job(&two).exists());
    assert_eq!(store.compare_artifacts().await.unwrap(), 0);
    let (_, size) = store.files().open_artifact(SHA256).await.unwrap().unwrap();
    assert_eq!(size, 5);
    store.forget_jobs(vec![one.id, two.id]).await.unwrap();
    assert_eq!(store.remove_unrecorded().await.unwrap(), 1);
}
