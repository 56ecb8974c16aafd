//! The store as the engine sees it: what survives, what conflicts, what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole file is tests"
)]

mod support;

use agentlab_api::{SandboxId, SandboxState, Vmid};
use agentlab_store::{
    EventFilter, IdempotencyRecord, Intent, JobRecord, SandboxRecord, StoreError, TokenRecord, Write,
};
use jiff::{Timestamp, ToSpan as _};
use support::{event, job, open, put, sandbox};

fn intent(sandbox: SandboxId, step: &str) -> Intent {
    Intent {
        sandbox,
        step: step.into(),
        undo: false,
        detail: serde_json::json!({"vmid": 1000}),
    }
}

#[tokio::test]
async fn an_open_intent_survives_a_daemon_that_never_closed_its_store() {
    let directory = tempfile::tempdir().unwrap();
    let record = sandbox(1000);
    let store = open(directory.path()).await.unwrap();
    store
        .commit(vec![
            put(&record),
            Write::Intent(intent(record.id, "Clone")),
            Write::Intent(intent(record.id, "Configure")),
        ])
        .await
        .unwrap();
    store
        .commit(vec![Write::Fact {
            sandbox: record.id,
            step: "Clone".into(),
            undo: false,
        }])
        .await
        .unwrap();
    // No close: the WAL is as a SIGKILL would leave it, and is copied away under the open store.
    let after_crash = tempfile::tempdir().unwrap();
    for name in ["agentlab.db", "agentlab.db-wal"] {
        std::fs::copy(directory.path().join(name), after_crash.path().join(name)).unwrap();
    }
    let reopened = open(after_crash.path()).await.unwrap();
    assert_eq!(
        reopened.open_intents(record.id).await.unwrap(),
        [intent(record.id, "Configure")]
    );
    assert_eq!(
        reopened.sandbox(record.id).await.unwrap().unwrap().vmid,
        record.vmid
    );
}

#[tokio::test]
async fn a_commit_stands_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    store.commit(vec![put(&sandbox(1000))]).await.unwrap();
    let watch = store.watch_events();
    let good = sandbox(1001);
    let error = store
        .commit(vec![
            put(&good),
            event(Some(good.id), None, "never seen"),
            put(&sandbox(1000)),
        ])
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::Conflict(reason) if reason.contains("is taken")),
        "{error}"
    );
    assert!(store.sandbox(good.id).await.unwrap().is_none());
    assert!(
        store
            .events(&EventFilter::default(), 0, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test]
async fn vmid_address_and_name_are_unique_among_the_living_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let mut first = sandbox(1000);
    store.commit(vec![put(&first)]).await.unwrap();
    type Change = fn(&mut SandboxRecord);
    let changes: [(Change, &str); 3] = [
        (|second| second.vmid = Vmid::try_from(1000).unwrap(), "VMID"),
        (|second| second.address = [10, 77, 0, 0].into(), "Address"),
        (|second| second.name = "sandbox-1000".into(), "Name"),
    ];
    for (change, what) in changes {
        let mut second = sandbox(1001);
        change(&mut second);
        let error = store.commit(vec![put(&second)]).await.unwrap_err();
        assert!(error.to_string().starts_with(what), "{what}: {error}");
    }
    first.state = SandboxState::Destroyed;
    store.commit(vec![put(&first)]).await.unwrap();
    let successor = sandbox(1000);
    store.commit(vec![put(&successor)]).await.unwrap();
    assert_eq!(store.sandboxes(false).await.unwrap().len(), 1);
    assert_eq!(store.sandboxes(true).await.unwrap().len(), 2);
    assert_eq!(store.sandboxes(true).await.unwrap()[0].id, successor.id);
}

#[tokio::test]
async fn two_reservations_at_once_never_choose_the_same_vmid() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let reserve = || {
        store.reserve(|live: &[SandboxRecord]| {
            let vmid = (1000..1010).find(|vmid| live.iter().all(|other| u32::from(other.vmid) != *vmid));
            let record = sandbox(vmid.ok_or("all VMIDs are taken")?);
            Ok((
                record.vmid,
                vec![
                    Write::Sandbox(Box::new(record.clone())),
                    event(Some(record.id), None, "new"),
                ],
            ))
        })
    };
    let (a, b) = tokio::join!(reserve(), reserve());
    let ((a, events), (b, _)) = (a.unwrap(), b.unwrap());
    assert_ne!(a, b);
    assert_eq!(events.len(), 1);
    for _ in 2..10 {
        reserve().await.unwrap();
    }
    let error = reserve().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Conflict(reason) if reason == "all VMIDs are taken"),
        "{error}"
    );
}

#[tokio::test]
async fn a_panic_in_a_reservation_hits_its_caller_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let poisoned = store.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let _ = poisoned
            .reserve::<(), _>(|_| panic!("a defect of the caller's"))
            .await;
    });
    assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
    store.commit(vec![put(&sandbox(1000))]).await.unwrap();
}

#[tokio::test]
async fn event_numbers_go_on_after_a_restart_and_carry_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let record = sandbox(1000);
    let store = open(directory.path()).await.unwrap();
    let mut watch = store.watch_events();
    let written = store
        .commit(vec![
            put(&record),
            event(Some(record.id), None, "a"),
            event(None, None, "b"),
        ])
        .await
        .unwrap();
    assert_eq!(*watch.borrow_and_update(), written[1].seq);
    assert_eq!(
        store.events(&EventFilter::default(), 0, 10).await.unwrap(),
        written
    );
    store.close().await;
    let store = open(directory.path()).await.unwrap();
    assert_eq!(store.last_event().await.unwrap(), written[1].seq);
    assert_eq!(*store.watch_events().borrow(), written[1].seq);
    let later = store.commit(vec![event(None, None, "c")]).await.unwrap();
    assert!(later[0].seq > written[1].seq);
    assert_eq!(
        store
            .events(&EventFilter::default(), written[0].seq, 1)
            .await
            .unwrap()[0],
        written[1]
    );
}

#[tokio::test]
async fn events_of_a_job_include_those_of_its_sandbox_but_not_of_another_job_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (mine, other) = (sandbox(1000), sandbox(1001));
    let (first, second) = (job(Some(mine.id)), job(Some(mine.id)));
    store
        .commit(vec![
            put(&mine),
            put(&other),
            Write::Job(Box::new(first.clone())),
            Write::Job(Box::new(second.clone())),
            event(Some(mine.id), None, "of the sandbox"),
            event(None, Some(&first.id), "of the job"),
            event(Some(mine.id), Some(&second.id), "of the next job"),
            event(Some(other.id), None, "of another sandbox"),
        ])
        .await
        .unwrap();
    let messages = async |filter: EventFilter| -> Vec<String> {
        store
            .events(&filter, 0, 10)
            .await
            .unwrap()
            .into_iter()
            .map(|event| event.message)
            .collect()
    };
    let of_job = EventFilter {
        job: Some(first.id.clone()),
        sandbox: None,
    };
    assert_eq!(messages(of_job).await, ["of the sandbox", "of the job"]);
    let of_sandbox = EventFilter {
        sandbox: Some(mine.id),
        job: None,
    };
    assert_eq!(messages(of_sandbox).await, ["of the sandbox", "of the next job"]);
}

#[tokio::test]
async fn pages_of_jobs_meet_every_job_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let moment = Timestamp::now();
    let mut ids = Vec::new();
    for _ in 0..5 {
        // The same moment for all: the id must decide.
        let record = JobRecord {
            created_at: moment,
            ..job(None)
        };
        ids.push(record.id.clone());
        store.commit(vec![Write::Job(Box::new(record))]).await.unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = store.jobs(cursor, 2).await.unwrap();
        assert!(page.len() <= 2);
        seen.extend(page.into_iter().map(|record| record.id));
        let Some(next) = next else { break };
        cursor = Some(next.to_string().parse().unwrap());
    }
    ids.sort();
    seen.sort();
    assert_eq!(seen, ids);
    assert_eq!(store.unfinished_jobs().await.unwrap().len(), 5);
    assert!("1.job_short".parse::<agentlab_store::JobCursor>().is_err());
}

#[tokio::test]
async fn a_new_token_kills_the_older_one_of_its_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let record = sandbox(1000);
    let now = Timestamp::now();
    let token = |sha256: &str, expires_at| {
        Write::Token(TokenRecord {
            sha256: sha256.into(),
            sandbox: record.id,
            expires_at,
        })
    };
    store
        .commit(vec![put(&record), token("aa", now + 1.minute())])
        .await
        .unwrap();
    store.commit(vec![token("bb", now + 1.minute())]).await.unwrap();
    assert!(store.token("aa").await.unwrap().is_none());
    assert_eq!(store.token("bb").await.unwrap().unwrap().sandbox, record.id);
    assert_eq!(store.live_tokens(now).await.unwrap(), 1);
    assert_eq!(store.live_tokens(now + 2.minutes()).await.unwrap(), 0);
    let acknowledged = SandboxRecord {
        acknowledged: true,
        ..record.clone()
    };
    store.commit(vec![put(&acknowledged)]).await.unwrap();
    assert_eq!(store.live_tokens(now).await.unwrap(), 0);
    assert!(store.token("bb").await.unwrap().is_some(), "to be known again");
    store.commit(vec![Write::ForgetTokens(record.id)]).await.unwrap();
    assert!(store.token("bb").await.unwrap().is_none());
}

#[tokio::test]
async fn an_idempotency_key_is_used_once_and_artifacts_are_replaced_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let record = job(None);
    let key = IdempotencyRecord {
        key: "k".into(),
        request_sha256: "aa".into(),
        job: record.id.clone(),
    };
    let artifact = |sha256| support::artifact(&record.id, "files/a", sha256, 1);
    store
        .commit(vec![
            Write::Job(Box::new(record.clone())),
            Write::Idempotency(key.clone()),
            Write::Artifact(artifact("aa")),
            Write::Artifact(artifact("bb")),
        ])
        .await
        .unwrap();
    assert_eq!(store.idempotent_job("k").await.unwrap(), Some(key.clone()));
    assert!(matches!(
        store.commit(vec![Write::Idempotency(key)]).await,
        Err(StoreError::Conflict(_))
    ));
    assert_eq!(store.artifacts(&record.id).await.unwrap().len(), 1);
    assert_eq!(
        store
            .artifact(&record.id, "files/a")
            .await
            .unwrap()
            .unwrap()
            .sha256,
        "bb"
    );
    assert_eq!(store.counts().await.unwrap().jobs["QUEUED"], 1);
}

#[tokio::test]
async fn a_record_of_something_absent_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let error = store
        .commit(vec![Write::Intent(intent(SandboxId::generate(), "Clone"))])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
}

#[tokio::test]
async fn a_newer_database_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await;
    let path = directory.path().join("agentlab.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = open(directory.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("newer agentlabd") && error.contains("agentlab.db"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("agentlab.db"),
        "not a database, not at all; sixteen bytes and more",
    )
    .unwrap();
    let error = open(directory.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("agentlab.db") && error.contains("damaged"),
        "{error}"
    );
}

#[tokio::test]
async fn a_closed_store_refuses_instead_of_hanging() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    store.close().await;
    store.close().await;
    assert!(matches!(store.commit(Vec::new()).await, Err(StoreError::Closed)));
    assert!(matches!(store.sandboxes(true).await, Err(StoreError::Closed)));
    assert!(!directory.path().join("agentlab.db-wal").exists());
}
