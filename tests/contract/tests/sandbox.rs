//! `agentlab sandbox`.

use agentlab_testkit::job_run;
use agentlab_tests_contract::Lab;

use crate::assert_shown;
use crate::shown::{document, shown};

/// A job whose agent runs until somebody ends it.
fn running(lab: &Lab) -> String {
    let job = lab.detached("print begun\nhang").unwrap();
    let mut following = lab.begin(&["job", "logs", "-f", &job]).unwrap();
    following.wait_for("begun").unwrap();
    following.interrupt().unwrap();
    following.finish().unwrap();
    job
}

#[test]
fn a_running_sandbox_is_listed_shown_and_destroyed_with_its_job() {
    let lab = Lab::started().unwrap();
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    let job = running(&lab);
    assert_shown!("sandbox-list", say(&["sandbox", "list"]));
    assert_shown!("sandbox-show", say(&["sandbox", "show", "1000"]));
    assert_shown!(
        "sandbox-show-json",
        document(&lab, &lab.json(&["sandbox", "show", "1000"]).unwrap())
    );
    let mut following = lab.begin(&["job", "logs", "-f", &job]).unwrap();
    following.wait_for("begun").unwrap();
    assert_shown!("sandbox-destroy", say(&["sandbox", "destroy", "1000"]));
    let ran = following.finish().unwrap();
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert_shown!(
        "job-of-destroyed-sandbox",
        document(&lab, &lab.json(&["job", "show", &job]).unwrap()["failure"])
    );
    assert_shown!("sandbox-list-empty", say(&["sandbox", "list"]));
    assert_shown!("sandbox-list-all", say(&["sandbox", "list", "--all"]));
    assert_shown!("sandbox-destroy-again", say(&["sandbox", "destroy", "1000"]));
}

#[test]
fn a_sandbox_answers_to_its_vmid_its_name_and_its_uuid() {
    let lab = Lab::started().unwrap();
    running(&lab);
    let one = lab.json(&["sandbox", "show", "1000"]).unwrap();
    for name in ["id", "name"] {
        let same = lab
            .json(&["sandbox", "show", one[name].as_str().unwrap()])
            .unwrap();
        assert_eq!(same["id"], one["id"]);
    }
    assert_eq!(lab.agentlab(&["rm", "1000"]).unwrap().code(), Some(0));
}

#[test]
fn a_sandbox_that_does_not_exist_is_not_found_by_any_verb() {
    let lab = Lab::started().unwrap();
    let absent = "1234";
    let ran = lab.agentlab(&["sandbox", "show", absent]).unwrap();
    assert_shown!("no-such-sandbox", shown(&lab, &ran));
    for verb in [
        &["show"][..],
        &["destroy"],
        &["logs"],
        &["logs", "-f"],
        &["logs", "--console"],
    ] {
        let ran = lab.agentlab(&[&["sandbox"], verb, &[absent]].concat()).unwrap();
        assert_eq!(ran.code(), Some(3), "{verb:?}: {ran:?}");
    }
    let ran = lab.agentlab(&["sandbox", "show", "../../v1/status"]).unwrap();
    assert_eq!(ran.code(), Some(3), "{ran:?}");
}

#[test]
fn a_sandboxs_own_story_stays_when_it_is_gone_and_its_console_does_not() {
    let lab = Lab::started().unwrap();
    lab.finished(&lab.detached("ok").unwrap()).unwrap();
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    assert_shown!("sandbox-logs", say(&["sandbox", "logs", "1000"]));
    assert_shown!(
        "sandbox-console-gone",
        say(&["sandbox", "logs", "--console", "1000"])
    );
    let events = lab.json(&["sandbox", "logs", "1000"]).unwrap();
    let last = events["events"].as_array().unwrap().last().unwrap();
    assert_eq!(last["data"]["state"], "DESTROYED", "{last:#}");
}

#[test]
fn a_followed_story_of_a_sandbox_ends_with_ctrl_c() {
    let lab = Lab::started().unwrap();
    running(&lab);
    let mut following = lab.begin(&["sandbox", "logs", "-f", "1000"]).unwrap();
    following.wait_for("is RUNNING").unwrap();
    following.interrupt().unwrap();
    assert_eq!(following.finish().unwrap().code(), Some(130));
}

#[test]
fn a_kept_sandbox_outlives_its_job_and_is_ready_for_the_operator() {
    let lab = Lab::started().unwrap();
    let url = "https://example.invalid/r.git";
    let ran = lab
        .agentlab(&job_run(url, "demo", "ok", &["--keepalive"]))
        .unwrap();
    assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let list = lab.json(&["sandbox", "list"]).unwrap();
    assert_eq!(list["sandboxes"][0]["state"], "READY", "{list:#}");
    let ran = lab.agentlab(&["sandbox", "destroy", "1000"]).unwrap();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
}

#[test]
fn a_sandbox_is_paused_resumed_stopped_renewed_started_and_pruned() {
    let lab = Lab::started().unwrap();
    running(&lab);
    let say = |arguments: &[&str]| lab.agentlab(arguments).unwrap();
    for (verb, reached) in [("pause", "SUSPENDED"), ("resume", "RUNNING"), ("stop", "STOPPED")] {
        for _ in 0..2 {
            let ran = say(&["sandbox", verb, "1000"]);
            assert_eq!(ran.code(), Some(0), "{ran:?}");
            assert!(ran.stdout.contains(reached), "{ran:?}");
        }
    }
    let refused = say(&["sandbox", "pause", "1000"]);
    assert_eq!(refused.code(), Some(5), "{refused:?}");
    assert!(
        refused.stderr.contains("allowed now: show, logs, start"),
        "{refused:?}"
    );
    let renewed = say(&["sandbox", "lease", "renew", "--ttl", "2h", "1000"]);
    assert!(renewed.stdout.contains("has a lease until"), "{renewed:?}");
    let started = say(&["sandbox", "start", "--detach", "1000"]);
    assert!(started.stdout.contains("PROVISIONING"), "{started:?}");
    assert_eq!(say(&["sandbox", "destroy", "1000"]).code(), Some(0));
    let nothing = say(&["sandbox", "prune"]);
    assert_eq!(nothing.stdout, "nothing to prune\n");
}

#[test]
fn prune_shows_what_would_go_before_it_goes() {
    let lab = Lab::started().unwrap();
    running(&lab);
    assert_eq!(lab.agentlab(&["stop", "1000"]).unwrap().code(), Some(0));
    let pruned = |arguments: &[&str]| lab.json(&[&["sandbox", "prune"], arguments].concat()).unwrap();
    assert_eq!(pruned(&[])["count"], 0, "what is stopped is kept");
    let shown = pruned(&["--stopped", "--dry-run"]);
    assert_eq!(
        (&shown["count"], &shown["sandboxes"][0]["vmid"]),
        (&1.into(), &1000.into())
    );
    assert_eq!(shown["sandboxes"][0]["state"], "STOPPED");
    assert_eq!(pruned(&["--stopped"])["count"], 1);
}
