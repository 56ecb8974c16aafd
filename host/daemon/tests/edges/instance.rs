//! One daemon per socket and per directory; what it finds and leaves there.

use std::os::unix::fs::PermissionsExt as _;

use agentlab_backend::Machines as _;
use agentlabd::StartError;

use crate::lab::Lab;
use crate::wire::request;

#[tokio::test]
async fn a_second_daemon_on_the_same_socket_is_refused_and_told_who_has_it() {
    let lab = Lab::start().await;
    let mut second = Lab::prepare();
    second.config.socket_path = lab.config.socket_path.clone();
    let error = second.start_daemon().await.unwrap_err();
    assert!(matches!(error, StartError::AnotherDaemon { .. }), "{error}");
    let words = error.to_string();
    assert!(
        words.contains(&std::process::id().to_string()) && words.contains("agentlabd.sock"),
        "{words}"
    );
    assert_eq!(lab.get("/v1/profiles").await.status, 200);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_records_is_refused() {
    let lab = Lab::start().await;
    let mut second = Lab::prepare();
    second.config.data_dir = lab.config.data_dir.clone();
    assert!(matches!(
        second.start_daemon().await,
        Err(StartError::AnotherDaemon { .. })
    ));
}

#[tokio::test]
async fn records_of_another_machine_are_refused_and_its_sandboxes_left_alone() {
    let mut lab = Lab::start().await;
    let job = lab.job().await;
    lab.until(&job, |job| job.vmid.is_some()).await;
    lab.stop().await;
    let machines = lab.fake.list().await.unwrap();
    let home = lab.config.data_dir.join("machine");
    std::fs::write(&home, "another").unwrap();
    let started = lab.start_daemon().await;
    // A system without a machine-id cannot tell.
    if std::fs::read_to_string("/etc/machine-id").is_ok_and(|id| id.trim().len() == 32) {
        let error = started.unwrap_err();
        assert!(
            matches!(error, StartError::AnotherMachine { living: 1, .. }),
            "{error}"
        );
        assert_eq!(lab.fake.list().await.unwrap(), machines);
        std::fs::remove_file(&home).unwrap();
        lab.restart().await;
    } else {
        started.unwrap().stop().await;
    }
}

#[tokio::test]
async fn a_socket_that_a_dead_daemon_left_is_replaced() {
    let mut lab = Lab::prepare();
    std::fs::create_dir_all(&lab.config.run_dir).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&lab.config.socket_path).unwrap());
    lab.restart().await;
    assert_eq!(lab.get("/v1/profiles").await.status, 200);
    let mode = std::fs::metadata(&lab.config.socket_path)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn what_is_no_dead_socket_is_left_alone() {
    let lab = Lab::prepare();
    std::fs::create_dir_all(&lab.config.run_dir).unwrap();
    std::fs::write(&lab.config.socket_path, "precious").unwrap();
    assert!(matches!(
        lab.start_daemon().await,
        Err(StartError::SocketTaken { .. })
    ));
    assert_eq!(std::fs::read(&lab.config.socket_path).unwrap(), b"precious");

    let lab = Lab::prepare();
    std::fs::create_dir_all(&lab.config.run_dir).unwrap();
    let _theirs = std::os::unix::net::UnixListener::bind(&lab.config.socket_path).unwrap();
    assert!(matches!(
        lab.start_daemon().await,
        Err(StartError::SocketTaken { .. })
    ));
}

#[tokio::test]
async fn stopping_ends_open_streams_and_removes_the_socket() {
    let mut lab = Lab::start().await;
    let mut control = lab.control().await;
    let stream = control
        .open(request(
            "GET",
            "/v1/events",
            &[("accept", "text/event-stream")],
            "",
        ))
        .await;
    assert_eq!(stream.status(), 200);
    lab.stop().await;
    assert!(!lab.config.socket_path.exists());
}

#[tokio::test]
async fn a_restart_keeps_the_pinned_key() {
    let mut lab = Lab::start().await;
    let pin = lab.daemon().spki_sha256();
    lab.restart().await;
    assert_eq!(lab.daemon().spki_sha256(), pin);
}
