//! The daemon as a process: it ends when told, and what it knew is known again.

use agentlab_tests_contract::Lab;

#[test]
fn sigterm_ends_a_daemon_that_is_followed_and_takes_the_socket_away() {
    let mut lab = Lab::started().unwrap();
    let mut following = lab
        .begin(&["job", "logs", "-f", &lab.detached("print begun\nhang").unwrap()])
        .unwrap();
    following.wait_for("begun").unwrap();
    let status = lab.stop().unwrap();
    assert!(status.success(), "{status}\n{}", lab.log());
    assert!(!lab.path("run/agentlabd.sock").exists());
    following.interrupt().unwrap();
    assert_eq!(following.finish().unwrap().code(), Some(130));
}

#[test]
fn a_job_and_whoever_follows_it_outlive_a_daemon_that_is_restarted() {
    let lab = Lab::started().unwrap();
    let go = lab.path("go").display().to_string();
    let task = format!("print one\nawait {go}\nprint two\ncommit sum.sh x");
    let mut following = lab.begin(&lab.job(&task, &[]).unwrap()).unwrap();
    following.wait_for("│ one").unwrap();
    lab.restart_beside_its_machines().unwrap();
    std::fs::write(go, "").unwrap();
    let ran = following.finish().unwrap();
    assert_eq!(
        (ran.code(), ran.stderr.as_str()),
        (Some(0), ""),
        "{ran:?}\n{}",
        lab.log()
    );
    let output: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with('│')).collect();
    assert_eq!(output, ["│ one", "│ two"], "lost or shown twice: {ran:?}");
    for words in [
        "is running",
        "work.bundle arrived",
        "is COMPLETED",
        "is DESTROYED",
    ] {
        let times = ran
            .stdout
            .lines()
            .filter(|line| line.starts_with('+') && line.contains(words));
        assert_eq!(times.count(), 1, "{words}: {ran:?}");
    }
}

#[test]
fn a_job_gets_through_a_daemon_that_is_restarted_again_and_again() {
    let lab = Lab::started().unwrap();
    let task = "print said\nwrite a.txt b\ncommit sum.sh x";
    let ran = lab.agentlab(&lab.job(task, &["--detach"]).unwrap()).unwrap();
    for _ in 0..3 {
        lab.restart_beside_its_machines().unwrap();
    }
    let job = lab.finished(ran.stdout.trim()).unwrap();
    assert_eq!(job["state"], "COMPLETED", "{job:#}\n{}", lab.log());
    assert_eq!(job["outcome"]["commits"], 1, "{job:#}");
    let list = lab.json(&["job", "artifacts", ran.stdout.trim()]).unwrap();
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 4, "{list:#}");
    let sandboxes = lab.json(&["sandbox", "list"]).unwrap();
    assert_eq!(
        sandboxes["sandboxes"].as_array().unwrap().len(),
        0,
        "{sandboxes:#}"
    );
}

#[test]
fn a_job_whose_machine_did_not_survive_the_daemon_is_lost_and_leaves_nothing() {
    let mut lab = Lab::started().unwrap();
    let job = lab.detached("print begun\nhang").unwrap();
    let mut following = lab.begin(&["job", "logs", "-f", &job]).unwrap();
    following.wait_for("begun").unwrap();
    lab.stop().unwrap();
    lab.start().unwrap();
    let ran = following.finish().unwrap();
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let view = lab.json(&["job", "show", &job]).unwrap();
    assert_eq!(view["state"], "FAILED", "{view:#}");
    assert_eq!(view["failure"]["code"], "sandbox_lost", "{view:#}");
    let status = lab.json(&["status"]).unwrap();
    assert_eq!(status["live_tokens"], 0, "{status:#}");
    assert!(status["sandboxes"]["RUNNING"].is_null(), "{status:#}");
}

#[test]
fn jobs_logs_artifacts_and_keys_are_there_after_a_restart() {
    let mut lab = Lab::started().unwrap();
    let job = lab.detached("print said\nwrite a.txt kept").unwrap();
    let before = lab.finished(&job).unwrap();
    let events = lab.json(&["sandbox", "logs", "1000"]).unwrap();
    lab.stop().unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["job", "show", &job]).unwrap(), before);
    assert_eq!(lab.json(&["sandbox", "logs", "1000"]).unwrap(), events);
    let ran = lab.agentlab(&["job", "logs", "--plain", &job]).unwrap();
    assert_eq!(ran.stdout, "said\n", "{ran:?}");
    let arguments = [
        "job",
        "artifacts",
        "download",
        &job,
        "--name",
        "files/a.txt",
        "--out",
        ".",
    ];
    assert_eq!(lab.agentlab(&arguments).unwrap().code(), Some(0));
    assert_eq!(std::fs::read(lab.path("files/a.txt")).unwrap(), b"kept");
}
