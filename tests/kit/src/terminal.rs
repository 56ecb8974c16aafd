//! A terminal with a person at it, for commands that behave differently there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::lab::wait_for;

/// How long a command may take to show what is waited for, or to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// What Ctrl-C sends: whether it becomes a signal is the terminal's to say.
pub const CTRL_C: &str = "\u{3}";

/// A command that has a terminal of its own, 33 lines of 99 characters, as its controlling one.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// Kept open: its settings outlive the command.
    line: OwnedFd,
    before: Termios,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    screen: JoinHandle<()>,
}

/// What a command at a terminal did.
#[derive(Debug)]
pub struct Left {
    /// Exit status.
    pub status: ExitStatus,
    /// Everything that was shown.
    pub shown: String,
}

impl Terminal {
    /// Begins a command at a new terminal.
    ///
    /// # Errors
    /// There is no terminal to be had, or no `setsid`.
    pub fn begin(command: &Command) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(&path, flags, Mode::empty())?;
        tcsetwinsize(
            &line,
            Winsize {
                ws_row: 33,
                ws_col: 99,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        let before = tcgetattr(&line)?;
        let mut session = Command::new("setsid");
        session
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            session.env(name, value.unwrap_or_default());
        }
        if let Some(dir) = command.get_current_dir() {
            session.current_dir(dir);
        }
        let child = session
            .env("TERM", "xterm")
            .stdin(line.try_clone()?)
            .stdout(line.try_clone()?)
            .stderr(line.try_clone()?)
            .spawn()
            .context("setsid")?;
        let keyboard = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let screen = std::thread::spawn({
            let (mut screen, shown) = (keyboard.try_clone()?, Arc::clone(&shown));
            move || {
                let mut bytes = [0; 4096];
                // It fails once nobody has the other end open.
                while let Ok(count @ 1..) = screen.read(&mut bytes) {
                    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    shown.extend_from_slice(bytes.get(..count).unwrap_or_default());
                }
            }
        });
        Ok(Self {
            keyboard,
            line,
            before,
            child,
            shown,
            screen,
        })
    }

    /// Everything shown so far.
    #[must_use]
    pub fn shown(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits until this is shown.
    ///
    /// # Errors
    /// It is not within two minutes; what is shown is in the error.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let seen = wait_for(PATIENCE, || Ok(self.shown().contains(text)))?;
        ensure!(seen, "`{text}` is not shown:\n{}", self.shown());
        Ok(())
    }

    /// Presses keys.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// The process at the terminal.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and that it leaves the terminal as it was.
    ///
    /// # Errors
    /// It does not end within two minutes, or the terminal is another one now.
    pub fn finish(mut self) -> Result<Left> {
        let ended = wait_for(PATIENCE, || Ok(self.child.try_wait()?.is_some()))?;
        if !ended {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        let after = tcgetattr(self.line.as_fd())?;
        drop(self.line);
        ensure!(
            self.screen.join().is_ok(),
            "the thread that reads the terminal panicked"
        );
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = String::from_utf8_lossy(&shown).into_owned();
        ensure!(ended, "the command does not end:\n{shown}");
        ensure!(
            format!("{after:?}") == format!("{:?}", self.before),
            "the terminal was {:?} and is {after:?} now:\n{shown}",
            self.before
        );
        Ok(Left { status, shown })
    }
}
