//! Pages, names that are used again, and what is no longer kept.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole file is tests"
)]

mod support;

use std::time::Duration;

use agentlab_api::{JobState, LogStream, SandboxState, SandboxView, Vmid};
use agentlab_store::{
    EventFilter, Expiry, IdempotencyRecord, JobRecord, Pruned, SandboxRecord, Store, Write,
};
use jiff::{Timestamp, ToSpan as _};
use support::{event, job, keep, open, put, sandbox};

/// Nothing, or everything there is, is too old.
fn expiry(all: bool) -> Expiry {
    let now = Timestamp::now();
    let before = if all { now + 1.hour() } else { now - 1.hour() };
    Expiry {
        ended_before: before,
        keys_before: before,
        max_events: 1000,
    }
}

fn destroyed(vmid: u32) -> SandboxRecord {
    SandboxRecord {
        state: SandboxState::Destroyed,
        ..sandbox(vmid)
    }
}

fn ended() -> JobRecord {
    JobRecord {
        state: JobState::Completed,
        finished_at: Some(Timestamp::now()),
        ..job(None)
    }
}

async fn events(store: &Store) -> usize {
    store
        .events(&EventFilter::default(), 0, 1000)
        .await
        .unwrap()
        .len()
}

#[tokio::test]
async fn pages_of_sandboxes_join_without_gap_or_overlap() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    // Three of each moment, so that pages end within one.
    let base = Timestamp::now();
    let mut records: Vec<SandboxRecord> = (0..10)
        .map(|n| SandboxRecord {
            created_at: base + (i64::from(n) / 3).seconds(),
            ..if n % 2 == 0 {
                sandbox(1000 + n)
            } else {
                destroyed(1000 + n)
            }
        })
        .collect();
    store.commit(records.iter().map(put).collect()).await.unwrap();
    records.sort_by_key(|record| std::cmp::Reverse((record.created_at, record.id.to_string())));
    for include_destroyed in [true, false] {
        let mut wanted: Vec<_> = records.iter().collect();
        wanted.retain(|record| include_destroyed || record.state != SandboxState::Destroyed);
        let (mut paged, mut cursor) = (Vec::new(), None);
        loop {
            let page = store.sandbox_page(include_destroyed, cursor, 4).await.unwrap();
            let views: Vec<SandboxView> = serde_json::from_str(&page.sandboxes).unwrap();
            paged.extend(views.into_iter().map(|view| view.id));
            let Some(next) = page.next else { break };
            // As a client sends it back.
            cursor = Some(next.to_string().parse().unwrap());
        }
        assert_eq!(paged, wanted.iter().map(|record| record.id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_an_older_program_has_written_is_listed_like_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (older, newer) = (sandbox(1000), sandbox(1001));
    store.commit(vec![put(&older), put(&newer)]).await.unwrap();
    let page = store.sandbox_page(false, None, 10).await.unwrap();
    let file = rusqlite::Connection::open(directory.path().join("agentlab.db")).unwrap();
    let forgotten = file.execute("UPDATE sandboxes SET view = NULL WHERE vmid = 1000", []);
    assert_eq!(forgotten.unwrap(), 1);
    assert_eq!(store.sandbox_page(false, None, 10).await.unwrap(), page);
    assert!(page.sandboxes.contains(&older.id.to_string()));
}

#[tokio::test]
async fn a_number_or_name_means_the_living_one_and_then_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let at = |record: SandboxRecord, seconds: i64| SandboxRecord {
        created_at: record.created_at + seconds.seconds(),
        ..record
    };
    let (old, living, newest) = (
        at(destroyed(1000), 0),
        at(sandbox(1000), 1),
        at(destroyed(1000), 2),
    );
    let vmid = Some(Vmid::try_from(1000).unwrap());
    let find = async |vmid, name| {
        let found = store.sandbox_named(vmid, name).await.unwrap();
        found.map(|record| record.id)
    };
    assert_eq!(find(vmid, "1000").await, None);
    store.commit(vec![put(&newest), put(&old)]).await.unwrap();
    assert_eq!(find(vmid, "1000").await, Some(newest.id));
    assert_eq!(find(None, "sandbox-1000").await, Some(newest.id));
    store.commit(vec![put(&living)]).await.unwrap();
    assert_eq!(find(vmid, "1000").await, Some(living.id));
    assert_eq!(find(None, "sandbox-1000").await, Some(living.id));
    // Somebody named his after a number that is gone.
    let called = SandboxRecord {
        name: "2000".into(),
        ..sandbox(1001)
    };
    store
        .commit(vec![put(&destroyed(2000)), put(&called)])
        .await
        .unwrap();
    assert_eq!(
        find(Some(Vmid::try_from(2000).unwrap()), "2000").await,
        Some(called.id)
    );
}

#[tokio::test]
async fn only_what_has_ended_and_is_old_goes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (alive, gone, told_of) = (sandbox(1000), destroyed(1001), destroyed(1002));
    let unfinished = job(Some(told_of.id));
    let key = Write::Idempotency(IdempotencyRecord {
        key: "k".into(),
        request_sha256: "0".repeat(64),
        job: unfinished.id.clone(),
    });
    let writes = vec![
        put(&alive),
        put(&gone),
        put(&told_of),
        Write::Job(Box::new(unfinished.clone())),
        key,
        event(Some(gone.id), None, "x"),
    ];
    store.commit(writes).await.unwrap();
    assert_eq!(store.prune(expiry(false), 10).await.unwrap(), Pruned::default());
    let pruned = store.prune(expiry(true), 10).await.unwrap();
    assert_eq!((pruned.sandboxes, pruned.keys, pruned.events), (1, 1, 1));
    assert_eq!(store.prune(expiry(true), 10).await.unwrap(), Pruned::default());
    assert_eq!(store.sandbox(gone.id).await.unwrap(), None);
    for id in [alive.id, told_of.id] {
        assert!(store.sandbox(id).await.unwrap().is_some());
    }
    assert!(store.job(&unfinished.id).await.unwrap().is_some());
    // A number is never given twice, although all events are gone.
    assert_eq!(store.last_event().await.unwrap(), 1);
    let next = store.commit(vec![event(None, None, "y")]).await.unwrap();
    assert_eq!(next[0].seq, 2);
}

#[tokio::test]
async fn events_are_bounded_in_number_too_and_go_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    store
        .commit((0..20).map(|n| event(None, None, &n.to_string())).collect())
        .await
        .unwrap();
    let few = Expiry {
        max_events: 5,
        ..expiry(false)
    };
    for left in [12, 5, 5] {
        store.prune(few, 8).await.unwrap();
        assert_eq!(events(&store).await, left);
    }
    let newest = store.events(&EventFilter::default(), 0, 1).await.unwrap();
    assert_eq!(newest[0].message, "15");
}

#[tokio::test]
async fn a_job_goes_with_all_its_files_and_an_unfinished_one_never() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (old, unfinished) = (ended(), job(None));
    for job in [&old, &unfinished] {
        store
            .commit(vec![Write::Job(Box::new(job.clone()))])
            .await
            .unwrap();
        keep(&store, &job.id, "files/a/b", b"bytes").await;
        let line = vec![(LogStream::Stdout, "words\n".to_owned())];
        let log = store.files().append_log(&job.id, 0, line, Timestamp::now(), 1000);
        log.await.unwrap();
    }
    let (now, later) = (Timestamp::now(), Timestamp::now() + 1.hour());
    assert_eq!(store.ended_jobs(now - 1.hour(), now, 10).await.unwrap(), []);
    assert_eq!(
        store.ended_jobs(later, now, 10).await.unwrap(),
        vec![old.id.clone()]
    );

    store.files().remove_job(&old.id).await.unwrap();
    store.files().remove_job(&old.id).await.unwrap();
    store
        .forget_jobs(vec![old.id.clone(), unfinished.id.clone()])
        .await
        .unwrap();
    assert_eq!(store.job(&old.id).await.unwrap(), None);
    assert_eq!(store.artifacts(&old.id).await.unwrap(), []);
    assert!(store.job(&unfinished.id).await.unwrap().is_some());
    assert_eq!(store.artifacts(&unfinished.id).await.unwrap().len(), 1);

    let logs = async |unchanged| store.files().jobs_with_logs(unchanged, later).await.unwrap();
    assert_eq!(logs(Duration::ZERO).await, vec![unfinished.id.clone()]);
    assert_eq!(logs(Duration::from_secs(7200)).await, []);
    assert_eq!(
        store
            .unknown_jobs(vec![old.id.clone(), unfinished.id.clone()])
            .await
            .unwrap(),
        [old.id]
    );
}

#[tokio::test]
async fn a_bundle_ages_from_its_last_upload() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let upload = async || {
        let mut incoming = store.files().receive_bundle(10).await.unwrap();
        incoming.write(b"bundle").await.unwrap();
        incoming.finish(None).await.unwrap().sha256
    };
    let sha256 = upload().await;
    let path = directory.path().join("bundles").join(&sha256);
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(100_000);
    std::fs::File::open(&path)
        .unwrap()
        .set_modified(yesterday)
        .unwrap();
    let day = Duration::from_secs(86_400);
    let old = async || store.files().old_bundles(day, Timestamp::now()).await.unwrap();
    assert_eq!(old().await, vec![sha256.clone()]);
    upload().await;
    assert_eq!(old().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_profile_says_of_its_jobs_stands_above_what_the_daemon_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let of_days = |retention_days| JobRecord {
        retention_days,
        ..ended()
    };
    let (plain, short, always) = (ended(), of_days(Some(2)), of_days(Some(0)));
    for job in [&plain, &short, &always] {
        store
            .commit(vec![Write::Job(Box::new(job.clone()))])
            .await
            .unwrap();
    }
    let end = plain.finished_at.unwrap();
    let (days, never) = (|count: i64| end + (count * 24).hours(), end - 1.hour());
    let kept = |before, now| {
        let store = &store;
        async move { store.ended_jobs(before, now, 10).await.unwrap() }
    };
    assert_eq!(kept(never, days(1)).await, []);
    assert_eq!(kept(never, days(3)).await, vec![short.id.clone()]);
    assert_eq!(kept(days(1), days(1)).await, vec![plain.id.clone()]);
    let all = kept(days(4000), days(4000)).await;
    assert!(all.len() == 2 && !all.contains(&always.id), "{all:?}");
}
