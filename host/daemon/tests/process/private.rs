//! What others see of the daemon's memory: nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::Lab;

const PATIENCE: Duration = Duration::from_secs(60);
/// No group of any system's. Files of a process in `/proc` are its own user's and group's, and root's alone when nobody
/// may look into it.
const GROUP: u32 = 876_543;

/// Begins something that waits for its standard input.
fn begin(mut command: Command) -> Child {
    if rustix::process::geteuid().is_root() {
        command.gid(GROUP);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn is_closed(child: &Child) -> bool {
    let seen = fs::metadata(format!("/proc/{}/environ", child.id())).unwrap();
    (seen.uid(), seen.gid()) == (0, 0)
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn no_core_file_and_nobody_of_its_user_gets_the_daemons_memory() {
    let other = begin(Command::new("cat"));
    assert!(
        !is_closed(&other),
        "any process is closed, so this test shows nothing"
    );
    end(other);

    let lab = Lab::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentlabd"));
    command
        .arg("--ask-proxmox")
        .arg("--config")
        .arg(lab.path("config.yaml"));
    let daemon = begin(command);
    let give_up = Instant::now() + PATIENCE;
    while !is_closed(&daemon) {
        assert!(Instant::now() < give_up, "its memory stays open to its user");
        std::thread::yield_now();
    }
    end(daemon);
}
