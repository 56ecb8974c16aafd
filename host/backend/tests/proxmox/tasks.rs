//! Tasks: written down as soon as they are named, and awaited by whoever reads the name.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_backend::proxmox::connect;
use agentlab_backend::{BegunTask, CloneSpec, Power, PowerOn, SnapshotHolds, TaskEnd, TaskLedger};
use async_trait::async_trait;
use pve_sim::{PveSim, Scale, Version};
use tokio::sync::Notify;

use crate::lab::{options, shape, spec, stamp, vmid};
use crate::ownership::{backend, settings};

/// A clone takes a second here.
const SLOW: Scale = Scale(4.0);
const QUICK: Scale = Scale(0.01);
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps what it is told, and keeps whoever told it for as long as it is closed.
#[derive(Debug, Default)]
struct Book {
    tasks: Mutex<Vec<BegunTask>>,
    told: Notify,
    closed: bool,
}

#[async_trait]
impl TaskLedger for Book {
    async fn begun(&self, task: BegunTask) {
        self.tasks.lock().unwrap().push(task);
        self.told.notify_one();
        if self.closed {
            std::future::pending::<()>().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_is_in_the_ledger_with_its_machine_and_its_action() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    let book = Arc::new(Book::default());
    backend.keep_ledger(book.clone());
    let (at, stamp) = (vmid(1000), stamp());
    backend.clone_template(&spec()).await.unwrap();
    backend.configure(at, &stamp, &shape()).await.unwrap();
    backend.power_on(at, &stamp, PowerOn { nic: None }).await.unwrap();
    backend
        .take_snapshot(at, &stamp, "clean", SnapshotHolds::Memory)
        .await
        .unwrap();
    backend.destroy(at, &stamp).await.unwrap();
    let told = book.tasks.lock().unwrap().clone();
    let actions: Vec<_> = told.iter().map(|task| (task.vmid, task.action)).collect();
    let asked = ["clone", "start", "snapshot", "stop", "destroy"];
    assert_eq!(actions, asked.map(|action| (at, action)));
    for task in told {
        assert_eq!(
            backend.await_task(&task.id, PATIENCE).await.unwrap(),
            Some(TaskEnd::Done)
        );
    }
    let unknown = "UPID:pve9:00001433:000A5657:6B008793:qmclone:9000:agentlab@pve!lp:";
    for name in [unknown, "job-17"] {
        let answer = backend
            .await_task(&name.parse().unwrap(), PATIENCE)
            .await
            .unwrap();
        assert_eq!(answer, Some(TaskEnd::Forgotten), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_failed_says_with_what() {
    let node = PveSim::start(Version::V8, QUICK).await.unwrap();
    let backend = backend(&node);
    let book = Arc::new(Book::default());
    backend.keep_ledger(book.clone());
    backend.clone_template(&spec()).await.unwrap();
    backend.roll_back(vmid(1000), &stamp(), "nope").await.unwrap_err();
    let task = book.tasks.lock().unwrap().pop().unwrap();
    assert_eq!(task.action, "rollback");
    let end = backend.await_task(&task.id, PATIENCE).await.unwrap();
    assert!(
        matches!(&end, Some(TaskEnd::Failed { reason }) if reason.contains("'nope' does not exist")),
        "{end:?}"
    );
}

/// A daemon that dies between PVE's answer and its own first look at the task of a clone.
async fn begun_by_another(node: &PveSim, spec: &CloneSpec) -> BegunTask {
    let backend = backend(node);
    let book = Arc::new(Book {
        closed: true,
        ..Book::default()
    });
    backend.keep_ledger(book.clone());
    tokio::select! {
        answer = backend.clone_template(spec) => panic!("it did not wait for the ledger: {answer:?}"),
        () = book.told.notified() => {}
    }
    book.tasks.lock().unwrap().pop().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_still_runs_when_patience_is_over_has_no_end() {
    let node = PveSim::start(Version::V9, Scale(40.0)).await.unwrap();
    let task = begun_by_another(&node, &spec()).await;
    let end = backend(&node).await_task(&task.id, Duration::ZERO).await.unwrap();
    assert_eq!(end, None);
}

/// The next daemon finds a machine that it may not see yet, because a clone joins its pool last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_an_earlier_process_began_is_awaited_by_name_and_without_it() {
    let node = PveSim::start(Version::V9, SLOW).await.unwrap();
    for by_name in [true, false] {
        let spec = spec();
        let task = begun_by_another(&node, &spec).await;
        let mut patient = options();
        patient.node = None;
        patient.clone_patience = PATIENCE;
        let second = connect(settings(&node, patient)).unwrap();
        if by_name {
            let end = second.await_task(&task.id, PATIENCE).await.unwrap();
            assert_eq!(end, Some(TaskEnd::Done));
        }
        let made = second.clone_template(&spec).await.unwrap();
        assert_eq!((made.power, made.stamp), (Power::Stopped, Some(stamp())));
        second.destroy(spec.vmid, &spec.stamp).await.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}
