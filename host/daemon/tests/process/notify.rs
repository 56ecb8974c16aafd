//! sd_notify(3) as the service manager hears it.

use std::time::Duration;

use rustix::process::Signal;

use crate::lab::{Lab, count};

/// WatchdogSec=600ms: a sign of life every 300 ms.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "600000");

#[test]
fn a_service_manager_hears_of_readiness_counts_life_and_the_end() {
    let mut lab = Lab::new();
    lab.start(&[WATCHDOG]);
    assert_eq!(lab.get("/v1/status")["backend"]["kind"], "qemu");
    let (mut lives, mut status) = (0, String::new());
    while lives < 3 || !status.starts_with("STATUS=Serving: no sandbox") {
        match lab.told() {
            life if life.contains("WATCHDOG=1") => lives += 1,
            other => status = other,
        }
    }
    lab.signal(Signal::TERM);
    let last = lab.until("STOPPING=1");
    assert!(
        last.contains("STATUS=Stopping; sandboxes go on running"),
        "{last}"
    );
    assert!(lab.end().success());
    assert!(!lab.socket().exists());
}

#[test]
fn no_life_is_shown_while_the_records_cannot_be_written() {
    let mut lab = Lab::new();
    lab.start(&[WATCHDOG]);
    lab.until("WATCHDOG=1");
    let other = rusqlite::Connection::open(lab.path("data/agentlab.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    lab.until_logged("watchdog");
    // What was on its way.
    count(&lab, "WATCHDOG=1", Duration::from_millis(400));
    assert_eq!(count(&lab, "WATCHDOG=1", Duration::from_millis(1500)), 0);
    other.execute_batch("ROLLBACK").unwrap();
    lab.until("WATCHDOG=1");
}

#[test]
fn without_a_watchdog_no_life_is_shown() {
    let mut lab = Lab::new();
    lab.start(&[]);
    assert_eq!(count(&lab, "WATCHDOG=1", Duration::from_millis(700)), 0);
}
