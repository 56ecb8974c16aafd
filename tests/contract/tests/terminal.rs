//! The command at a real terminal: the keys of a person, what they end, and how the terminal is left.

use agentlab_testkit::{CTRL_C, Terminal};
use agentlab_tests_contract::Lab;
use rustix::process::{Pid, Signal, kill_process};

const TASK: &str = "print begun\nawait go\nprint ended";

#[test]
fn ctrl_c_detaches_from_a_job_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::started().unwrap();
    let words = lab.job(TASK, &[]).unwrap();
    let mut terminal = Terminal::begin(&lab.command(&words)).unwrap();
    terminal.wait_for("begun").unwrap();
    terminal.press(CTRL_C).unwrap();
    let left = terminal.finish().unwrap();
    assert_eq!(left.status.code(), Some(130), "{}", left.shown);
    assert!(left.shown.contains("Detached; the job goes on"), "{}", left.shown);
    let list = lab.json(&["job", "list"]).unwrap();
    assert_eq!(list["jobs"][0]["state"], "RUNNING", "{list:#}");

    let job = list["jobs"][0]["id"].as_str().unwrap();
    for words in [&["job", "logs", "-f", job][..], &["logs", "-f", "1000"]] {
        let mut terminal = Terminal::begin(&lab.command(words)).unwrap();
        terminal.wait_for("RUNNING").unwrap();
        terminal.press(CTRL_C).unwrap();
        let left = terminal.finish().unwrap();
        assert_eq!(left.status.code(), Some(130), "{words:?}: {}", left.shown);
    }
}

#[test]
fn a_command_that_is_told_to_end_says_what_goes_on_without_it() {
    let lab = Lab::started().unwrap();
    let words = lab.job(TASK, &[]).unwrap();
    let terminal = Terminal::begin(&lab.command(&words)).unwrap();
    terminal.wait_for("begun").unwrap();
    let pid = Pid::from_raw(terminal.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let left = terminal.finish().unwrap();
    assert_eq!(left.status.code(), Some(143), "{}", left.shown);
    assert!(left.shown.contains("Detached; the job goes on"), "{}", left.shown);
}

#[test]
fn a_prompt_shows_nothing_that_is_typed_and_ctrl_c_gives_it_up() {
    let lab = Lab::prepare().unwrap();
    let (dir, key) = (lab.path("secrets"), lab.path("keys/age.key"));
    let (dir, key) = (dir.display().to_string(), key.display().to_string());
    let place = ["secrets", "--dir", &dir, "--age-key", &key];
    for (line, keys, code) in [
        (&["set-env", "--name", "KEY"][..], "typed-c4n4ry\u{3}", 130),
        (&["set-git"], "typed-c4n4ry\u{3}", 130),
        (&["set-env", "--name", "KEY"], "typed-c4n4ry\r", 0),
    ] {
        let words = [&place, line].concat();
        let mut terminal = Terminal::begin(&lab.command(&words)).unwrap();
        terminal.wait_for("(not shown): ").unwrap();
        terminal.press(keys).unwrap();
        let left = terminal.finish().unwrap();
        assert_eq!(left.status.code(), Some(code), "{line:?}: {}", left.shown);
        assert!(!left.shown.contains("c4n4ry"), "{line:?}: {}", left.shown);
    }
    let ran = lab.agentlab(&[&place[..], &["show"]].concat()).unwrap();
    assert!(
        ran.stdout.contains("KEY") && !ran.stdout.contains("token"),
        "{ran:?}"
    );
}
