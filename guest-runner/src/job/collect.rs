//! Brings together what the agent made in its repository.
//!
//! The repository is hostile: its configuration may name programs (filters, diff drivers, file system monitors,
//! hooks, remote helpers for missing objects). So its configuration is used only to find its objects and its HEAD;
//! everything else happens in a git directory of our own, which borrows those objects and knows no program at all.
//!
//! ```text
//!   /work/repo/.git ── objects (borrowed), HEAD, a copy of the index ──► <spool>/collect/git
//!   /work/repo      ── work tree ─────────────────────────────────────►   work.bundle, work.patch, uncommitted.diff
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::message::{ArtifactRole, BUNDLE_NAME, DIFF_NAME, PATCH_NAME};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::git::Git;
use super::process::{Finished, Memory, ProcessError, Sink};
use super::repository::{RepositoryError, make};
use super::{JobLog, Layout, files};
use crate::sys_mount;

/// For one command that reads a work tree or writes a pack.
pub(crate) const LONG: Duration = Duration::from_secs(10 * 60);
/// For one command that looks something up.
const SHORT: Duration = Duration::from_secs(60);
/// What [`Work::head`] is called in [`Work::store`].
pub(crate) const WORK_REF: &str = "refs/heads/agentlab";

/// One file that was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) name: &'static str,
    pub(crate) role: ArtifactRole,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) head: Option<String>,
    /// The commit the agent began at, if the repository still has it: what the commits are counted from.
    pub(crate) base: Option<String>,
    pub(crate) commits: u32,
    pub(crate) uncommitted: bool,
    pub(crate) made: Vec<Made>,
    pub(crate) left_out: Vec<String>,
    /// Holds the commits, and the index of what is uncommitted.
    pub(crate) store: Option<Store>,
    /// Why the commits may not go to an origin.
    pub(crate) withheld: Option<String>,
}

/// The git directory of our own that the work was collected in, and the objects that it borrows.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) git_dir: PathBuf,
    pub(crate) objects: PathBuf,
}

impl Store {
    /// git in it, with no configuration at all.
    pub(crate) fn git<'a>(&self, layout: &'a Layout) -> Git<'a> {
        Git::without_configuration(&layout.user, &self.git_dir)
            .env("GIT_DIR", self.git_dir.display().to_string())
            .env(
                "GIT_ALTERNATE_OBJECT_DIRECTORIES",
                self.objects.display().to_string(),
            )
    }
}

/// Collects. Never fails as a whole: what could not be had is named in `left_out`.
pub(crate) async fn collect(layout: &Layout, base: Option<&str>, limit: u64, log: &JobLog) -> Work {
    let mut work = Work::default();
    let collector = match Collector::open(layout, limit).await {
        Ok(collector) => collector,
        Err(error) => {
            work.left_out
                .push(format!("{BUNDLE_NAME}, {PATCH_NAME}, {DIFF_NAME}: {error}"));
            return work;
        }
    };
    work.store = Some(Store {
        git_dir: collector.git_dir.clone(),
        objects: collector.objects.clone(),
    });
    if let Err(error) = collector.commits(base, &mut work, log).await {
        work.left_out
            .push(format!("{BUNDLE_NAME}, {PATCH_NAME}: {error}"));
        // How many there are is not known; that there are some is.
        if work.head.is_some() && work.head.as_deref() != base {
            work.commits = work.commits.max(1);
        }
    }
    if let Err(error) = collector.uncommitted(&mut work).await {
        // Nobody can say that there is nothing.
        work.uncommitted = true;
        work.left_out.push(format!("{DIFF_NAME}: {error}"));
    }
    work
}

struct Collector<'a> {
    layout: &'a Layout,
    repo: PathBuf,
    git_dir: PathBuf,
    objects: PathBuf,
    git: Git<'a>,
    head: Option<String>,
    limit: u64,
}

impl<'a> Collector<'a> {
    async fn open(layout: &'a Layout, limit: u64) -> Result<Self, RepositoryError> {
        let repo = layout.repo();
        let home = layout.spool.join("collect");
        make(&home, 0o700, Some(&layout.user))?;
        let git_dir = home.join("git");
        let git = Git::without_configuration(&layout.user, &home)
            .env("GIT_CEILING_DIRECTORIES", layout.work.display().to_string());
        // These two read the agent's configuration, and are two that never act on it.
        let found = git.run(
            &repo,
            &["rev-parse", "--show-object-format", "--git-path", "objects"],
            SHORT,
        );
        let found = found.success().await?;
        let (format, objects) = found.split_once('\n').unwrap_or(("sha1", ""));
        let head = git
            .run(&repo, &["rev-parse", "--verify", "--quiet", "HEAD"], SHORT)
            .success()
            .await;
        let head = match head {
            Ok(head) => Some(head),
            Err(ProcessError::Failed { words, .. }) if words.is_empty() => None,
            Err(error) => return Err(error.into()),
        };
        let target = git_dir.display().to_string();
        let format = format!("--object-format={format}");
        let arguments = [
            "init",
            "--quiet",
            "--bare",
            "--template=",
            "--initial-branch=agentlab",
            &format,
            &target,
        ];
        git.run(&home, &arguments, SHORT).success().await?;
        let objects = repo.join(objects);
        let git = git
            .env("GIT_DIR", target)
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", objects.display().to_string());
        if let Some(head) = &head {
            git.run(&home, &["update-ref", WORK_REF, head], SHORT)
                .success()
                .await?;
        }
        Ok(Self {
            layout,
            repo,
            git_dir,
            objects,
            git,
            head,
            limit,
        })
    }

    async fn commits(&self, base: Option<&str>, work: &mut Work, log: &JobLog) -> Result<(), ProcessError> {
        let Some(head) = &self.head else { return Ok(()) };
        work.head = Some(head.clone());
        if base == Some(head.as_str()) {
            return Ok(());
        }
        let base = match base {
            Some(base)
                if self
                    .succeeds(&["cat-file", "-e", &format!("{base}^{{commit}}")])
                    .await? =>
            {
                Some(base)
            }
            Some(base) => {
                log.runner(&format!(
                    "Commit {base} is gone from the repository: all of its history is taken"
                ));
                None
            }
            None => None,
        };
        if let Some(base) = base
            && !self
                .succeeds(&["merge-base", "--is-ancestor", base, head])
                .await?
        {
            let text = format!(
                "The work does not continue commit {base}: it was rewritten or another was checked out"
            );
            log.runner(&text);
        }
        work.base = base.map(str::to_owned);
        let not_base = base.map(|base| format!("^{base}"));
        let range: Vec<&str> = std::iter::once(WORK_REF).chain(not_base.as_deref()).collect();
        let count = [&["rev-list", "--count"], range.as_slice()].concat();
        let count = self.git.run(&self.git_dir, &count, LONG).success().await?;
        work.commits = count.parse().unwrap_or(u32::MAX);
        if work.commits == 0 {
            return Ok(());
        }
        let bundle = [&["bundle", "create", "--quiet", "-"], range.as_slice()].concat();
        self.keep(BUNDLE_NAME, ArtifactRole::Bundle, &self.git_dir, &bundle, work)
            .await;
        let patch = [
            "format-patch",
            "--stdout",
            "--binary",
            "--no-ext-diff",
            "--no-textconv",
            "--no-signature",
        ];
        let patch: Vec<&str> = patch.into_iter().chain(["--root"]).chain(range).collect();
        self.keep(PATCH_NAME, ArtifactRole::Patch, &self.git_dir, &patch, work)
            .await;
        Ok(())
    }

    async fn uncommitted(&self, work: &mut Work) -> Result<(), ProcessError> {
        let git = self
            .git
            .clone()
            .env("GIT_WORK_TREE", self.repo.display().to_string());
        let exclude = self.repo.join(".git/info/exclude");
        let exclude = format!("core.excludesFile={}", exclude.display());
        let add = ["-c", &exclude, "add", "-A", "--ignore-errors", "--", "."];
        let mut added = None;
        if self.copy_index().is_ok() && self.forget_nested(&git).await.is_ok() {
            added = self.finished(&git, &add).await?;
        }
        if added.as_ref().is_none_or(|done| !done.status.success()) {
            // The agent's index is missing or of a kind only its own configuration explains: begin from HEAD.
            let from = if self.head.is_some() { "HEAD" } else { "--empty" };
            let _ = std::fs::remove_file(self.git_dir.join("index"));
            git.run(&self.repo, &["read-tree", from], LONG).success().await?;
            self.forget_nested(&git).await?;
            added = self.finished(&git, &add).await?;
        }
        if let Some(done) = added.filter(|done| !done.status.success()) {
            let words = done.stderr.trim();
            work.left_out
                .push(format!("{DIFF_NAME}: some files could not be read: {words}"));
        }
        let head = self.head.as_ref().map(|_| "HEAD");
        let plain = [
            "diff",
            "--cached",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--no-renames",
        ];
        let diff: Vec<&str> = plain
            .into_iter()
            .chain(["--binary", "--full-index"])
            .chain(head)
            .collect();
        let inside = Self {
            git,
            repo: self.repo.clone(),
            git_dir: self.git_dir.clone(),
            objects: self.objects.clone(),
            head: None,
            ..*self
        };
        work.uncommitted = inside
            .keep(DIFF_NAME, ArtifactRole::Diff, &self.repo, &diff, work)
            .await;
        if work.uncommitted {
            let raw: Vec<&str> = plain.into_iter().chain(["--raw", "-z"]).chain(head).collect();
            let mut memory = Memory {
                bytes: Vec::new(),
                limit: 16 * 1024 * 1024,
            };
            inside
                .git
                .run(&self.repo, &raw, LONG)
                .success_into(&mut memory)
                .await?;
            for path in nested_repositories(&memory.bytes) {
                let text = "a repository inside the repository: only the id of its commit is in";
                work.left_out
                    .push(format!("{}: {text} {DIFF_NAME}", path.escape_debug()));
            }
        }
        Ok(())
    }

    /// The agent's index knows which files did not change since they were last read: without it, every file of the
    /// work tree is read again.
    fn copy_index(&self) -> io::Result<()> {
        let work = sys_mount::open_directory(&self.layout.work)?;
        let index = files::open_beneath(work, "repo/.git/index", OFlags::NONBLOCK)?;
        let mut index = File::from(index);
        if !index.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let path = self.git_dir.join("index");
        let mut copy = File::create_new(&path)?;
        io::copy(&mut index, &mut copy)?;
        std::os::unix::fs::fchown(&copy, Some(self.layout.user.uid), Some(self.layout.user.gid))
    }

    /// Takes repositories inside the repository out of the index. To compare one that is there with the work tree,
    /// git starts another git inside it, under *its* configuration; to add one that is not there, it only reads its
    /// HEAD.
    async fn forget_nested(&self, git: &Git<'_>) -> Result<(), ProcessError> {
        let mut nested = Gitlinks::default();
        git.run(&self.repo, &["ls-files", "--stage", "-z"], LONG)
            .success_into(&mut nested)
            .await?;
        if nested.paths.is_empty() {
            return Ok(());
        }
        let what = "git update-index".to_owned();
        let list = self.layout.spool.join("nested");
        let list = std::fs::write(&list, &nested.paths).and_then(|()| File::open(&list));
        let list = list.map_err(|source| ProcessError::Start { what, source })?;
        let mut run = git.run(
            &self.repo,
            &["update-index", "-z", "--force-remove", "--stdin"],
            LONG,
        );
        run.command.stdin(list);
        run.success().await.map(drop)
    }

    async fn succeeds(&self, arguments: &[&str]) -> Result<bool, ProcessError> {
        match self.git.run(&self.git_dir, arguments, SHORT).success().await {
            Ok(_) => Ok(true),
            Err(ProcessError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn finished(&self, git: &Git<'_>, arguments: &[&str]) -> Result<Option<Finished>, ProcessError> {
        let mut nothing = Memory {
            bytes: Vec::new(),
            limit: 1024 * 1024,
        };
        git.run(&self.repo, arguments, LONG)
            .into_sink(&mut nothing)
            .await
            .map(Some)
    }

    /// Runs git with its output going to a file of the spool. `true` when there was any. A failure is noted.
    async fn keep(
        &self,
        name: &'static str,
        role: ArtifactRole,
        directory: &Path,
        arguments: &[&str],
        work: &mut Work,
    ) -> bool {
        let path = self.layout.spool.join(name);
        let mut sink = match HashedFile::create(&path, self.limit) {
            Ok(sink) => sink,
            Err(error) => {
                work.left_out.push(format!("{name}: {error}"));
                return false;
            }
        };
        match self
            .git
            .run(directory, arguments, LONG)
            .success_into(&mut sink)
            .await
        {
            Ok(()) if sink.size == 0 => false,
            Ok(()) => {
                let sha256 = hex::encode(sink.hash.finalize());
                work.made.push(Made {
                    name,
                    role,
                    path,
                    size: sink.size,
                    sha256,
                });
                true
            }
            Err(error) => {
                work.left_out.push(format!("{name}: {error}"));
                // What is there is not whole, but that something is there is known.
                sink.size > 0
            }
        }
    }
}

/// A file that is hashed while it is written, and stays below a bound.
struct HashedFile {
    file: File,
    hash: Sha256,
    size: u64,
    limit: u64,
}

impl HashedFile {
    fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            hash: Sha256::new(),
            size: 0,
            limit,
        })
    }
}

impl Sink for HashedFile {
    fn take(&mut self, chunk: &[u8]) -> io::Result<Option<u64>> {
        self.size += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if self.size > self.limit {
            return Ok(Some(self.limit));
        }
        self.hash.update(chunk);
        self.file.write_all(chunk)?;
        Ok(None)
    }
}

/// Picks the gitlinks out of `git ls-files --stage -z`, however long that is.
#[derive(Default)]
struct Gitlinks {
    record: Vec<u8>,
    /// Each followed by NUL.
    paths: Vec<u8>,
}

impl Sink for Gitlinks {
    fn take(&mut self, chunk: &[u8]) -> io::Result<Option<u64>> {
        for &byte in chunk {
            self.record.push(byte);
            if byte == 0 {
                if self.record.starts_with(b"160000 ")
                    && let Some(tab) = self.record.iter().position(|byte| *byte == b'\t')
                {
                    self.paths.extend_from_slice(&self.record[tab + 1..]);
                }
                self.record.clear();
            }
        }
        Ok(None)
    }
}

/// Paths that became a gitlink, from `git diff --raw -z`.
fn nested_repositories(raw: &[u8]) -> Vec<String> {
    let mut fields = raw.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let mut found = Vec::new();
    while let (Some(meta), Some(path)) = (fields.next(), fields.next()) {
        let mut words = meta.trim_start_matches(':').split(' ');
        if words.next() != Some("160000") && words.next() == Some("160000") && found.len() < 50 {
            found.push(path.into_owned());
        }
    }
    found
}
