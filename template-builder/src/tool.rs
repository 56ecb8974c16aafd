//! Runs the programs we build on. Each gets a log file, dies with us, and fails in its own words.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{During, Result, TemplateError};
use crate::store::StoreLock;

/// Where the programs are. A name without a slash is looked up on the search path and in the `sbin` directories,
/// which the path of an ordinary user lacks.
#[derive(Debug, Clone)]
pub struct Toolbox {
    /// Bootstraps a root tree.
    pub mmdebstrap: PathBuf,
    /// Makes the file system.
    pub mke2fs: PathBuf,
    /// Changes a file system that lies in a file.
    pub debugfs: PathBuf,
    /// Unpacks a root tree, with owners and extended attributes.
    pub tar: PathBuf,
    /// Fetches packages of npm, for recipes that have any.
    pub npm: PathBuf,
    /// Fetches images that others publish.
    pub curl: PathBuf,
    /// Looks whether a file system is sound.
    pub e2fsck: PathBuf,
    /// Converts disks between formats.
    pub qemu_img: PathBuf,
    /// Starts a program with mounts and processes of its own.
    pub unshare: PathBuf,
}

impl Default for Toolbox {
    fn default() -> Self {
        Self {
            mmdebstrap: "mmdebstrap".into(),
            mke2fs: "mke2fs".into(),
            debugfs: "debugfs".into(),
            tar: "tar".into(),
            npm: "npm".into(),
            curl: "curl".into(),
            e2fsck: "e2fsck".into(),
            qemu_img: "qemu-img".into(),
            unshare: "unshare".into(),
        }
    }
}

/// Where a build works, and with what.
#[derive(Debug)]
pub(crate) struct Workshop<'a> {
    pub(crate) tools: &'a Toolbox,
    /// Work directory, on the store's file system.
    pub(crate) scratch: &'a Path,
    /// Held by us, and by every program that we start for as long as it runs.
    pub(crate) lock: &'a StoreLock,
}

/// One run of a program.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) package: &'a str,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'a str, String)>,
}

impl Call<'_> {
    /// Returns when the program has ended well. It gets SIGTERM when we die first, which mmdebstrap answers in its own
    /// time. Its standard input is the store's lock: the next build waits for it, and does not clear the directory
    /// that it still works in.
    pub(crate) fn run(&self, workshop: &Workshop<'_>) -> Result<()> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let log_path = workshop.scratch.join(format!("{name}.log"));
        let program = locate(self.program, self.package)?;
        let setpriv = locate(Path::new("setpriv"), "util-linux")?;
        let log = File::create(&log_path).during("create", &log_path)?;
        let again = log.try_clone().during("share", &log_path)?;
        let status = Command::new(setpriv)
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("LC_ALL", "C.UTF-8")
            .stdin(workshop.lock.share()?)
            .stdout(log)
            .stderr(again)
            .status()
            .during("start", self.program)?;
        if status.success() {
            return Ok(());
        }
        let words = last_words(&String::from_utf8_lossy(&fs::read(&log_path).unwrap_or_default()));
        Err(TemplateError::ToolFailed {
            hint: hint(&words),
            program: name.into_owned(),
            status: status.to_string(),
            words,
        })
    }
}

fn locate(program: &Path, package: &str) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| TemplateError::ToolMissing {
            program: program.display().to_string(),
            hint: format!("apt install {package}"),
        })
}

/// What of a log is worth showing: the lines that apt, dpkg and mmdebstrap mark as errors, else its end.
fn last_words(log: &str) -> String {
    const MOST: usize = 12;
    let starts = |line: &str, marks: &[&str]| marks.iter().any(|mark| line.starts_with(mark));
    let mut lines: Vec<&str> = Vec::new();
    let mut within = false;
    for line in log.lines() {
        // dpkg gives its reason in an indented line below.
        within =
            starts(line, &["E: ", "Err:", "dpkg: error", "W: Failed"]) || (within && line.starts_with(' '));
        // That a program failed because the one before it did says nothing.
        if within && !starts(line, &["E: setup failed", "E: mmdebstrap failed", "E: apt-get "]) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        lines = log.lines().filter(|line| !line.trim().is_empty()).collect();
    }
    lines.dedup();
    let skipped = lines.len().saturating_sub(MOST);
    let shown: Vec<String> = lines
        .iter()
        .skip(skipped)
        .map(|line| format!("  {}", visible(line.trim_end())))
        .collect();
    if shown.is_empty() {
        "  (it said nothing)".to_owned()
    } else {
        shown.join("\n")
    }
}

/// Control characters as escapes: a mirror must not speak to the terminal.
fn visible(line: &str) -> String {
    let one = |letter: char| {
        if letter.is_control() {
            letter.escape_default().to_string()
        } else {
            letter.to_string()
        }
    };
    line.chars().map(one).collect()
}

fn hint(words: &str) -> Option<String> {
    let cases: [(&[&str], &str); 6] = [
        (
            &["No space left on device"],
            "free some space or choose another --store; nothing half-made was left",
        ),
        (
            &["Could not allocate block"],
            "the packages do not fit: raise `size_mb` in the recipe",
        ),
        (
            &["NO_PUBKEY", "is not signed"],
            "install a newer debian-archive-keyring: it lacks the key of that suite",
        ),
        (
            &["does not have a Release file"],
            "the mirror has no suite of that name: check `suite` in the recipe",
        ),
        (
            &["Unable to locate package", "has no installation candidate"],
            "a package of the recipe is not in that suite",
        ),
        (
            &[
                "Could not resolve",
                "Could not connect",
                "Unable to connect",
                "Failed to fetch",
                "timed out",
            ],
            "check that the mirror can be reached from here, or give another with --mirror",
        ),
    ];
    let found = cases
        .iter()
        .find(|(signs, _)| signs.iter().any(|sign| words.contains(sign)));
    found.map(|(_, hint)| (*hint).to_owned())
}

/// Refuses early what would only fail after minutes.
///
/// # Errors
/// When we are not root.
pub(crate) fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(TemplateError::Permission {
        problem: "A system with its owners can only be made by root".to_owned(),
        hint: "run it again with sudo".to_owned(),
    })
}

/// First line of a program's output, when it ends well within five seconds.
pub(crate) fn first_line(program: &Path, argument: &str) -> Option<String> {
    use std::io::Read;
    let mut child = Command::new(program)
        .arg(argument)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let ended = ends_within(&child, 5).unwrap_or(false);
    if !ended {
        let _gone = child.kill();
    }
    let status = child.wait().ok()?;
    let mut output = String::new();
    // Bounded: a pipe holds no more than this of a program that has ended.
    child
        .stdout
        .take()?
        .take(1 << 16)
        .read_to_string(&mut output)
        .ok()?;
    (ended && status.success()).then(|| output.lines().next().unwrap_or_default().to_owned())
}

fn ends_within(child: &std::process::Child, seconds: i64) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Ok(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&deadline))? == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = locate(Path::new("mmdebstrap-of-nobody"), "mmdebstrap").unwrap_err();
        assert_eq!(error.to_string(), "`mmdebstrap-of-nobody` is not installed");
        assert_eq!(error.hint().as_deref(), Some("apt install mmdebstrap"));
    }

    #[test]
    fn a_failure_shows_the_lines_that_say_why_and_a_hint() {
        let log = "I: running apt-get update...\nGet:1 x\nErr:2 http://a.invalid trixie InRelease\n  Could not resolve 'a.invalid'\n\
                   E: Failed to fetch http://a.invalid/InRelease  Could not resolve 'a.invalid'\nE: apt-get failed\n";
        let words = last_words(log);
        assert!(
            words.contains("E: Failed to fetch") && !words.contains("Get:1"),
            "{words}"
        );
        assert!(hint(&words).unwrap().contains("--mirror"));
        let dpkg = "dpkg: error processing archive x.deb (--unpack):\n cannot copy: No space left on device\nSetting up y\n\
                    E: Sub-process env returned an error code (1)\nE: setup failed: E: apt-get -o a -o b failed\n";
        let words = last_words(dpkg);
        assert!(
            words.contains("No space left") && !words.contains("setup failed"),
            "{words}"
        );
        assert!(hint(&words).unwrap().contains("free some space"));
        assert_eq!(last_words("\u{1b}[2Jone\n\n"), "  \\u{1b}[2Jone");
    }

    #[test]
    fn a_program_that_never_ends_is_not_waited_for() {
        assert_eq!(first_line(Path::new("/usr/bin/sleep"), "600"), None);
        assert_eq!(
            first_line(Path::new("/usr/bin/echo"), "hello").as_deref(),
            Some("hello")
        );
    }
}
