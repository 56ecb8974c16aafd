//! How an agent may end, flood and linger.

use std::time::{Duration, Instant};

use agentlab_protocol::message::{Phase, ReportStatus, Stream};

use super::Lab;
use crate::requirement::skipped_without_root;

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
        let mut lab = Lab::new(
            "trap 'echo got TERM' TERM; echo more >> a.txt; git commit -qam more\n\
             (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.2; done' &)\n\
             echo started; while :; do sleep 0.2 || true; done",
        )
        .await;
        lab.order.inner_sandbox = inner_sandbox;
        lab.order.deadline_seconds = 2;
        let begun = Instant::now();
        let report = lab.run().await;
        assert_eq!(
            (report.status, report.exit_code, report.commits),
            (ReportStatus::Timeout, Some(137), 1),
            "{report:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert_eq!(
            lab.host.text(Stream::Stdout),
            "started\ngot TERM\n",
            "inner sandbox {inner_sandbox}"
        );
        assert!(lab.host.artifact("work.bundle").is_some());
    }
}

#[tokio::test]
async fn a_cancelled_agent_is_sent_term_and_reports_cancelled() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done").await;
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
        let begun = Instant::now();
        assert_eq!(lab.run().await.status, ReportStatus::Completed);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_flood_of_output_stays_within_the_log_and_the_memory() {
    if skipped_without_root() {
        return;
    }
    let mut lab =
        Lab::new("yes 0123456789012345678901234567890123456789 | head -c 50000000; echo end >&2").await;
    lab.answer.limits.max_log_bytes = 300_000;
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
    let begun = Instant::now();
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let log = String::from_utf8(lab.host.artifact("agent.log").unwrap()).unwrap();
    assert!(
        log.len() > 4_000_000 && log.contains("\nend\n"),
        "the file has everything"
    );
}
