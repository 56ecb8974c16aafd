//! Files a guest made, on their way into a directory of the operator's.
//!
//! The guest chose names and contents; the directory may hold whatever an earlier guest, or somebody else, left there.
//! So directories are walked by descriptor and no link is followed, and nothing arrives under a name that makes a git
//! repository of a directory: the next `git status` or shell prompt there would run what its settings name.
//!
//! ```text
//!   out/ ──openat──► files/ ──openat──► sub/   .agentlab-<random> ──whole? renameat──► name
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentlab_protocol::git_name::{is_git_directory, seen_by_git};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::CommandError;

/// Where one artifact goes, relative to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    directories: Vec<String>,
    last: String,
    renamed: bool,
}

impl Place {
    /// The place a name stands for. The daemon checked it; a file outside the directory is bad enough to check again.
    ///
    /// Without a file named `HEAD` git takes no directory for a repository, wherever objects, references and settings
    /// are: every one is given another name.
    fn new(name: &str) -> Result<Self, CommandError> {
        let refused = |why: &str| CommandError::Refused {
            message: format!(
                "Artifact name `{}` {why}; nothing was written",
                name.escape_debug()
            ),
            hint: Some("others of the job can be fetched one by one with `--name`".to_owned()),
        };
        if name.is_empty() || name.chars().any(|c| c.is_control() || c == '\\') {
            return Err(refused("is not a plain relative path"));
        }
        let mut parts: Vec<String> = name.split('/').map(ToOwned::to_owned).collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return Err(refused("is not a plain relative path"));
        }
        if parts.iter().any(|part| is_git_directory(part)) {
            return Err(refused("lies in what git would take for its own directory"));
        }
        let mut last = parts
            .pop()
            .ok_or_else(|| refused("is not a plain relative path"))?;
        let renamed = seen_by_git(&last).eq_ignore_ascii_case("HEAD");
        if renamed {
            last = "HEAD.guest".to_owned();
        }
        Ok(Self {
            directories: parts,
            last,
            renamed,
        })
    }

    /// The places of several names, in their order, no two alike.
    pub(crate) fn of_all<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>, CommandError> {
        let mut places = names.into_iter().map(Self::new).collect::<Result<Vec<_>, _>>()?;
        let mut taken: BTreeSet<PathBuf> = places
            .iter()
            .filter(|place| !place.renamed)
            .map(Self::path)
            .collect();
        for place in places.iter_mut().filter(|place| place.renamed) {
            while !taken.insert(place.path()) {
                place.last.push_str(".guest");
            }
        }
        Ok(places)
    }

    /// Whether it is not the artifact's own name.
    pub(crate) fn renamed(&self) -> bool {
        self.renamed
    }

    /// Relative to the directory.
    pub(crate) fn path(&self) -> PathBuf {
        let mut path: PathBuf = self.directories.iter().collect();
        path.push(&self.last);
        path
    }
}

/// The directory of the operator's.
#[derive(Debug)]
pub(crate) struct Landing {
    root: OwnedFd,
    path: PathBuf,
}

impl Landing {
    /// Makes it if it is absent. It may itself be reached through links: the operator named it.
    pub(crate) fn open(path: &Path) -> Result<Self, CommandError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = std::fs::create_dir_all(path)
            .and_then(|()| Ok(rustix::fs::open(path, flags, Mode::empty())?))
            .map_err(failed("Making the directory", path))?;
        Ok(Self {
            root,
            path: path.to_owned(),
        })
    }

    /// Where a place is, for people.
    pub(crate) fn shown(&self, place: &Place) -> PathBuf {
        self.path.join(place.path())
    }

    /// Opens a new file beside the place.
    pub(crate) fn begin(&self, place: &Place) -> Result<Arriving, CommandError> {
        let shown = self.shown(place);
        let mut directory = self.root.try_clone().map_err(failed("Opening", &self.path))?;
        let mut walked = self.path.clone();
        for part in &place.directories {
            walked.push(part);
            directory = below(&directory, part).map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP => CommandError::Refused {
                    message: format!("{} is a link or a file and not a directory", walked.display()),
                    hint: Some("remove it, or give another directory with `--out`".to_owned()),
                },
                _ => failed("Making the directory", &walked)(errno.into()),
            })?;
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| failed("Writing", &shown)(io::Error::other(error.to_string())))?;
        let temporary = format!(".agentlab-{}", hex::encode(random));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        let file = rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("Writing", &shown)(errno.into()))?;
        Ok(Arriving {
            directory,
            temporary,
            last: place.last.clone(),
            shown,
            file: File::from(file),
        })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CommandError {
    let path = path.display().to_string();
    move |source| CommandError::File { action, path, source }
}

fn below(directory: &OwnedFd, part: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(directory, part, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    rustix::fs::openat(directory, part, flags, Mode::empty())
}

/// A file that does not have its name yet, so that no half file has it. Gone when dropped before that.
#[derive(Debug)]
pub(crate) struct Arriving {
    directory: OwnedFd,
    temporary: String,
    last: String,
    shown: PathBuf,
    file: File,
}

impl Arriving {
    /// To write to.
    pub(crate) fn file(&self) -> Result<File, CommandError> {
        self.file.try_clone().map_err(failed("Writing", &self.shown))
    }

    /// Gives the file its name. What had it, be it a link, is replaced and not followed.
    pub(crate) fn finish(self) -> Result<(), CommandError> {
        let moved = self.file.sync_all().and_then(|()| {
            Ok(rustix::fs::renameat(
                &self.directory,
                &self.temporary,
                &self.directory,
                &self.last,
            )?)
        });
        moved.map_err(failed("Writing", &self.shown))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // Absent once it has its name.
        let _ = rustix::fs::unlinkat(&self.directory, &self.temporary, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn write(landing: &Landing, place: &Place, text: &str) -> Result<(), CommandError> {
        let arriving = landing.begin(place)?;
        arriving.file()?.write_all(text.as_bytes()).unwrap();
        arriving.finish()
    }

    #[test]
    fn a_name_stays_below_the_directory_and_is_none_of_git_s() {
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "files/../../x",
            "files//x",
            "./x",
            "x/",
            "a\\b",
            "a\nb",
            "files/.git/config",
            "files/.Git",
            "files/GIT~1/config",
            "files/.git ./config",
        ] {
            assert!(Place::of_all([name]).is_err(), "{name:?}");
        }
        let [place] = &Place::of_all(["files/out/a b"]).unwrap()[..] else {
            panic!("one place for one name")
        };
        assert_eq!((place.path(), place.renamed()), ("files/out/a b".into(), false));
    }

    #[test]
    fn no_repository_arrives_however_its_parts_are_spread() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let canary = dir.path().join("canary");
        let settings = format!(
            "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = .\n\tfsmonitor = touch {}\n",
            canary.display()
        );
        // The second one keeps everything but its HEAD in the first.
        let files = [
            ("files/HEAD", "ref: refs/heads/main\n"),
            ("files/HEAD.guest", "the guest's own"),
            ("files/config", settings.as_str()),
            ("files/objects/x", ""),
            ("files/refs/x", ""),
            ("files/other/HEAD", "ref: refs/heads/main\n"),
            ("files/other/commondir", "..\n"),
            ("files/third/head", "ref: refs/heads/main\n"),
        ];
        let status = |directory: &str| {
            let _ = Command::new("git")
                .arg("-C")
                .arg(out.join(directory))
                .arg("status")
                .env("GIT_CEILING_DIRECTORIES", dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            std::fs::remove_file(&canary).is_ok()
        };
        let landing = Landing::open(&out).unwrap();
        let places = Place::of_all(files.iter().map(|(name, _)| *name)).unwrap();
        for (place, (_, text)) in places.iter().zip(files) {
            write(&landing, place, text).unwrap();
        }
        for directory in ["files", "files/other", "files/third"] {
            assert!(!status(directory), "git in {directory} ran what the guest wrote");
        }
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read("files/HEAD.guest"), "the guest's own");
        assert_eq!(read("files/HEAD.guest.guest"), "ref: refs/heads/main\n");
        // The trap works: under their own names the same files are run.
        for (guest, own) in [
            ("files/HEAD.guest.guest", "files/HEAD"),
            ("files/other/HEAD.guest", "files/other/HEAD"),
        ] {
            std::fs::rename(out.join(guest), out.join(own)).unwrap();
        }
        assert!(
            status("files"),
            "the trap does not work, so this test shows nothing"
        );
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (out, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
        std::fs::create_dir(&out).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink("../elsewhere", out.join("files")).unwrap();
        std::fs::write(elsewhere.join("kept"), "kept").unwrap();
        std::os::unix::fs::symlink("../elsewhere/kept", out.join("agent.log")).unwrap();
        let landing = Landing::open(&out).unwrap();
        let places = Place::of_all(["files/x", "files/y/z", "agent.log"]).unwrap();
        for place in &places[..2] {
            let error = write(&landing, place, "bad").unwrap_err();
            assert!(error.to_string().contains("/out/files is a link"), "{error}");
        }
        write(&landing, &places[2], "log").unwrap();
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(elsewhere.join("kept")).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(out.join("agent.log")).unwrap(), "log");
        assert!(!out.join("agent.log").is_symlink());
    }

    #[test]
    fn what_did_not_arrive_whole_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let landing = Landing::open(dir.path()).unwrap();
        let places = Place::of_all(["report.json"]).unwrap();
        let arriving = landing.begin(&places[0]).unwrap();
        arriving.file().unwrap().write_all(b"half").unwrap();
        drop(arriving);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
