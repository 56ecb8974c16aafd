//! Socket activation: the socket is the service manager's before, during and after.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::process::Signal;

use crate::lab::{Lab, ask, connect};

fn bound(lab: &Lab) -> UnixListener {
    fs::create_dir(lab.path("run")).unwrap();
    UnixListener::bind(lab.socket()).unwrap()
}

fn handed_over(name: &str) -> [(&str, &str); 2] {
    [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", name)]
}

#[test]
fn a_socket_that_was_handed_over_is_served_and_left_where_it_is() {
    let mut lab = Lab::new();
    let socket = bound(&lab);
    let inode = fs::metadata(lab.socket()).unwrap().ino();
    // Nobody serves yet, and nobody is turned away.
    let early = connect(&lab.socket());
    lab.spawn(&handed_over("control"), Some(&socket));
    lab.until("READY=1");
    assert_eq!(ask(early, "/v1/profiles")["profiles"][0]["name"], "demo");
    assert_eq!(lab.profiles(), ["demo"]);

    lab.signal(Signal::TERM);
    assert!(lab.end().success());
    assert_eq!(fs::metadata(lab.socket()).unwrap().ino(), inode);
    let waiting = connect(&lab.socket());
    lab.spawn(&handed_over("control"), Some(&socket));
    assert_eq!(ask(waiting, "/v1/profiles")["profiles"][0]["name"], "demo");
}

#[test]
fn a_socket_of_another_name_is_refused_and_not_replaced_by_one_of_our_own() {
    let mut lab = Lab::new();
    let socket = bound(&lab);
    lab.spawn(&handed_over("metrics"), Some(&socket));
    assert_eq!(lab.end().code(), Some(1));
    let log = lab.log();
    assert!(
        log.contains("metrics") && log.contains("FileDescriptorName=control"),
        "{log}"
    );
}

#[test]
fn what_was_meant_for_another_process_is_not_taken() {
    let mut lab = Lab::new();
    lab.start(&[
        ("LISTEN_FDS", "1"),
        ("LISTEN_FDNAMES", "control"),
        ("LISTEN_PID", "1"),
    ]);
    assert_eq!(lab.profiles(), ["demo"]);
    lab.signal(Signal::TERM);
    assert!(lab.end().success());
    let gone = UnixStream::connect(lab.socket()).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "its own socket is gone with it");
}
