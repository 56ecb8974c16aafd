//! `agentlab status`, with a daemon and without one.

use agentlab_tests_contract::{Lab, run};

use crate::assert_shown;
use crate::shown::{document, shown};

#[test]
fn a_daemon_at_rest_says_how_it_is() {
    let lab = Lab::started().unwrap();
    assert_shown!("status", shown(&lab, &lab.agentlab(&["status"]).unwrap()));
    assert_shown!("status-json", document(&lab, &lab.json(&["status"]).unwrap()));
}

#[test]
fn jobs_and_sandboxes_are_counted_by_state() {
    let lab = Lab::started().unwrap();
    lab.finished(&lab.detached("exit 3").unwrap()).unwrap();
    let mut running = lab
        .begin(&["job", "logs", "-f", &lab.detached("print begun\nhang").unwrap()])
        .unwrap();
    running.wait_for("begun").unwrap();
    let status = lab.json(&["status"]).unwrap();
    assert_eq!(status["jobs"]["FAILED"], 1, "{status:#}");
    assert_eq!(status["jobs"]["RUNNING"], 1, "{status:#}");
    assert_eq!(status["sandboxes"]["RUNNING"], 1, "{status:#}");
    running.interrupt().unwrap();
    running.finish().unwrap();
}

#[test]
fn without_a_daemon_every_noun_says_so_with_code_six() {
    let lab = Lab::prepare().unwrap();
    assert_shown!("unreachable", shown(&lab, &lab.agentlab(&["status"]).unwrap()));
    assert_shown!(
        "unreachable-json",
        document(&lab, &lab.json(&["status"]).unwrap())
    );
    for arguments in [["job", "list"], ["sandbox", "list"], ["profile", "list"]] {
        assert_eq!(lab.agentlab(&arguments).unwrap().code(), Some(6), "{arguments:?}");
    }
}

#[test]
fn what_is_mistyped_is_a_usage_error_with_the_nearest_word() {
    let lab = Lab::prepare().unwrap();
    assert_shown!("mistyped-noun", shown(&lab, &lab.agentlab(&["stauts"]).unwrap()));
    assert_shown!(
        "mistyped-verb",
        shown(&lab, &lab.agentlab(&["job", "lsit"]).unwrap())
    );
    assert_shown!(
        "mistyped-flag",
        shown(&lab, &lab.agentlab(&["job", "run", "--profil", "demo"]).unwrap())
    );
    assert_shown!(
        "no-job-id",
        shown(&lab, &lab.agentlab(&["job", "show", "1000"]).unwrap())
    );
}

#[test]
fn a_path_that_is_no_socket_is_named() {
    let lab = Lab::prepare().unwrap();
    std::fs::write(lab.path("file"), "").unwrap();
    let mut command = lab.command(&["status"]);
    command.env("AGENTLAB_SOCKET", lab.path("file"));
    assert_shown!("no-socket", shown(&lab, &run(command).unwrap()));
}
