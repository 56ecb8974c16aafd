//! A terminal of our own for a program: we hold one end, it gets the other.

use std::io;
use std::os::fd::OwnedFd;

use agentlab_protocol::command::Terminal;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;

use crate::link::serial::SerialPort;

/// Our end, and the program's.
pub(super) fn open(size: &Terminal, uid: u32) -> io::Result<(SerialPort, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    // The program may open its terminal by name.
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    resize(&ours, size.rows, size.columns)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((SerialPort::of(ours)?, theirs))
}

pub(super) fn resize(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
