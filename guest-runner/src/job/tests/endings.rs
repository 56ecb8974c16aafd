//! How an agent may end, flood and linger.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentlab_protocol::message::{FailureCause, Phase, ReportStatus, Stream};
use agentlab_protocol::secret::SecretText;

use super::Lab;
use crate::requirement::skipped_without_root;

/// Longer than anything takes on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a test of this file as the only one of a process, so that what the process grows by is what the test needs.
/// True in that process.
fn is_alone(test: &str) -> bool {
    if std::env::args().any(|argument| argument == "--exact") {
        return true;
    }
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("job::tests::endings::{test}"), "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = alone.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{failed}"
    );
    false
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_failing_agent_keeps_its_code_and_its_files() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("echo made > $AGENTLAB_ARTIFACTS_DIR/f; echo oh >&2; exit 7").await;
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.exit_code, report.failed_phase),
        (ReportStatus::Failed, Some(7), Some(Phase::Agent))
    );
    assert_eq!(lab.host.text(Stream::Stderr), "oh\n");
    assert!(lab.host.artifact("files/f").is_some());
    for inner_sandbox in [true, false] {
        lab = Lab::new("kill -SEGV $$").await;
        lab.order.inner_sandbox = inner_sandbox;
        let report = lab.run().await;
        assert_eq!(
            report.exit_code,
            Some(139),
            "128 + SIGSEGV, inner sandbox {inner_sandbox}"
        );
    }
}

#[tokio::test]
async fn an_agent_that_ignores_term_is_killed_and_its_work_still_comes() {
    if skipped_without_root() {
        return;
    }
    for inner_sandbox in [true, false] {
        // A busy machine needs longer to begin an agent, and the agent longer to say what it was sent.
        for seconds in [2, 20, 200] {
            let mut lab = Lab::new(
                "trap 'echo got TERM' TERM; echo more >> a.txt; git commit -qam more\n\
                 (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.2; done' &)\n\
                 echo started; while :; do sleep 0.2 || true; done",
            )
            .await;
            lab.order.inner_sandbox = inner_sandbox;
            lab.order.deadline_seconds = seconds;
            lab.order.kill_grace_seconds = seconds / 2;
            let report = lab.run().await;
            let heard = lab.host.text(Stream::Stdout);
            if heard != "started\ngot TERM\n" && seconds < 200 {
                continue;
            }
            assert_eq!(
                (report.status, report.exit_code, report.commits),
                (ReportStatus::Timeout, Some(137), 1),
                "{report:?}"
            );
            assert_eq!(heard, "started\ngot TERM\n", "inner sandbox {inner_sandbox}");
            assert!(lab.host.artifact("work.bundle").is_some());
            break;
        }
    }
}

#[tokio::test]
async fn a_cancelled_agent_is_sent_term_and_reports_cancelled() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done").await;
    lab.order.kill_grace_seconds = 60;
    lab.host(|seen| seen.cancel_at = Some("ready"));
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.exit_code),
        (ReportStatus::Cancelled, Some(3))
    );
    assert_eq!(lab.host.text(Stream::Stdout), "ready\nbye\n");
}

#[tokio::test]
async fn what_an_agent_leaves_in_the_background_does_not_hold_the_job_up() {
    if skipped_without_root() {
        return;
    }
    for inner_sandbox in [true, false] {
        let mut lab =
            Lab::new("setsid sleep 1000 & setsid sh -c 'trap \"\" TERM HUP; sleep 1000' & echo done").await;
        lab.order.inner_sandbox = inner_sandbox;
        lab.order.deadline_seconds = 800;
        let begun = Instant::now();
        assert_eq!(lab.run().await.status, ReportStatus::Completed);
        assert!(begun.elapsed() < PATIENCE, "what lives for 1000 s was waited for");
    }
}

#[tokio::test]
async fn a_flood_of_output_stays_within_the_log_and_the_memory() {
    if skipped_without_root() || !is_alone("a_flood_of_output_stays_within_the_log_and_the_memory") {
        return;
    }
    let mut lab =
        Lab::new("yes 0123456789012345678901234567890123456789 | head -c 50000000; echo end >&2").await;
    lab.answer.limits.max_log_bytes = 300_000;
    lab.order.deadline_seconds = 600;
    let before = resident_kib();
    let report = lab.run().await;
    let grown = resident_kib().saturating_sub(before);
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    let log = lab.host.artifact("agent.log").unwrap();
    assert!(log.len() <= 300_100, "{}", log.len());
    assert!(String::from_utf8_lossy(&log).contains("The log is full"));
    assert!(grown < 40_000, "{grown} KiB more for 50 MB of output");
}

#[tokio::test]
async fn a_host_that_takes_no_log_does_not_hold_the_agent() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("yes 0123456789 | head -c 4000000; echo; echo end").await;
    lab.answer.limits.max_log_bytes = 10_000_000;
    lab.host(|seen| seen.deaf = true);
    lab.order.deadline_seconds = 800;
    let report = tokio::time::timeout(PATIENCE, lab.run()).await.unwrap();
    assert_eq!(report.status, ReportStatus::Completed);
    let log = String::from_utf8(lab.host.artifact("agent.log").unwrap()).unwrap();
    assert!(
        log.len() > 4_000_000 && log.contains("\nend\n"),
        "the file has everything"
    );
}

#[tokio::test]
async fn an_agent_whose_runner_was_killed_is_ended_and_what_it_made_is_handed_over() {
    if skipped_without_root() {
        return;
    }
    let task = "echo more >> a.txt; git commit -qam more; echo made > \"$AGENTLAB_ARTIFACTS_DIR/f\"\n\
                echo begun; sleep 600";
    let mut lab = Lab::new(task).await;
    let first = super::super::run(
        lab.order.clone(),
        &lab.answer,
        lab.host.clone(),
        lab.layout.clone(),
        0,
    );
    let begun = async {
        while !lab.host.text(Stream::Stdout).contains("begun") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Dropped in the middle, as a SIGKILL would end it.
    tokio::select! {
        _ = first => panic!("the agent ended by itself"),
        () = begun => {}
    }
    let secret = lab.layout.run.join("environment");
    assert!(secret.exists());
    let reserve = lab.layout.spool.join("reserve");
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 64 << 20);
    lab.deaths = 1;
    lab.host(|seen| seen.next = 1 << 32);
    let report = lab.run().await;
    assert_eq!(
        (report.status, report.cause, report.failed_phase),
        (ReportStatus::Failed, Some(FailureCause::Lost), Some(Phase::Agent))
    );
    assert!(report.message.unwrap().contains("was killed"));
    assert_eq!(report.commits, 1);
    assert!(lab.host.artifact("work.bundle").is_some() && lab.host.artifact("files/f").is_some());
    let log = String::from_utf8(lab.host.artifact("agent.log").unwrap()).unwrap();
    assert!(log.contains("begun") && log.contains("was killed"), "{log}");
    assert!(!secret.exists(), "a secret is left");
    assert!(!reserve.exists(), "room that was set aside is not given back");

    // Killed before the agent began: nothing to collect, and the host hears why.
    std::fs::remove_file(lab.layout.spool.join("base")).unwrap();
    lab.deaths = 2;
    lab.host(|seen| seen.next = 2 << 32);
    let report = lab.run().await;
    assert_eq!(
        (report.cause, report.failed_phase, report.commits),
        (Some(FailureCause::Lost), Some(Phase::Repository), 0)
    );
    // Killed before the job began: as if nothing had been.
    std::fs::remove_dir_all(&lab.layout.spool).unwrap();
    std::fs::remove_dir_all(&lab.layout.work).unwrap();
    lab.order.task = "echo fresh".to_owned();
    lab.host(|seen| seen.next = 2 << 32);
    assert_eq!(lab.run().await.status, ReportStatus::Completed);
}

#[tokio::test]
async fn two_hundred_thousand_files_are_bounded_counted_and_reported() {
    if skipped_without_root() || !is_alone("two_hundred_thousand_files_are_bounded_counted_and_reported") {
        return;
    }
    let task = "cd \"$AGENTLAB_ARTIFACTS_DIR\"; for d in $(seq 20); do mkdir $d; (cd $d; seq 10000 | xargs touch); done\n\
                cd \"$AGENTLAB_REPO_DIR\"; echo more >> a.txt; git commit -qam more";
    let mut lab = Lab::new(task).await;
    lab.order.deadline_seconds = 600;
    let before = resident_kib();
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{:?}", report.message);
    assert!(lab.host.artifact("work.bundle").is_some(), "the work comes first");
    assert!(report.artifacts.len() <= 100 && report.artifacts.len() > 90);
    let left_out = report.left_out.join("\n");
    assert!(
        left_out.contains("more than 100 artifacts") && left_out.contains("entries"),
        "{left_out}"
    );
    assert!(
        report.left_out.len() < 300,
        "{} lines about what was left out",
        report.left_out.len()
    );
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 96 * 1024, "grew by {grown} KiB");
}

#[tokio::test]
async fn what_does_not_fit_into_the_tmpfs_ends_the_job_before_its_agent_and_is_not_taken_for_a_full_disk() {
    if skipped_without_root() {
        return;
    }
    let large = "x".repeat(17 << 20);
    for name in ["task", "claude-settings.json"] {
        let mut lab = Lab::new("echo never").await;
        if name == "task" {
            lab.order.task = format!("echo never {large}");
        } else {
            lab.answer.claude_settings = Some(SecretText::new(large.clone()));
        }
        let report = lab.run().await;
        assert_eq!(
            (report.status, report.failed_phase, report.cause),
            (
                ReportStatus::Failed,
                Some(Phase::Idle),
                Some(FailureCause::Policy)
            )
        );
        let words = report.message.unwrap();
        assert!(
            words.contains(&format!("run/{name}")) && words.contains("tmpfs") && words.contains("16 MiB"),
            "{words}"
        );
        assert!(!lab.host.text(Stream::Stdout).contains("never"));
        let left = std::fs::read_dir(&lab.layout.run).unwrap().count();
        assert_eq!(left, 0, "something is left of the secrets");
    }
}
