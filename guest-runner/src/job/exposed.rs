//! Secrets that stand in the work itself.
//!
//! The work is never altered: a patch with a hole in it is no patch. So everything the agent committed, or left
//! uncommitted, is read once more for what this job was given, and what is found is named in the report: which secret, in
//! which file, never a value.
//!
//! ```text
//!   new objects ──► git cat-file ──► all secrets at once ──► suspects ──► one secret after the other ──► named
//!                                                               └── without what the base says at the same path
//! ```
//!
//! Like all redaction this finds accidents: an agent that wants to hide what it was given can.

mod list;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use agentlab_protocol::message::ExposedSecret;
use tokio::sync::watch;
use tokio::time::sleep;

use self::list::{List, changed_objects, lines, tree_objects};
use super::agent::cancelled;
use super::collect::{LONG, Store, WORK_REF, Work};
use super::git::Git;
use super::process::{Memory, ProcessError, Sink};
use super::{JobLog, Layout};
use crate::redact::{Needles, Redactor};
use crate::secrets::NamedSecret;

/// More than anybody looks at one by one.
const MOST: usize = 100;
/// How long the search may take: the work itself is handed over after it.
const LONGEST: Duration = Duration::from_secs(120);
/// How long from the moment that the host asks for the end, for a cancellation or because the lease is over: once it has
/// heard that the work is being collected, it waits two minutes for that, and for the upload as long as one may take.
const HASTE: Duration = Duration::from_secs(30);
/// Longest path that is named, in characters.
const LONGEST_PATH: usize = 300;
/// Names and ids of what changed without being committed.
const MOST_LISTED: usize = 16 << 20;

/// What came of a search.
#[derive(Debug)]
pub(super) struct Findings {
    /// Places where a secret stands and did not stand before: all of them, or the first [`MOST`].
    pub(super) places: Vec<ExposedSecret>,
    /// Why there may be more: not all of the work could be read, or not in this time.
    pub(super) incomplete: Option<ProcessError>,
}

/// Searches the work for `secrets`.
pub(super) async fn find(
    work: &Work,
    secrets: &[NamedSecret],
    (layout, log): (&Layout, &JobLog),
    mut cancel: watch::Receiver<bool>,
) -> Findings {
    let mut found = BTreeSet::new();
    let overdue = async {
        let in_haste = async {
            cancelled(&mut cancel).await;
            sleep(HASTE).await;
        };
        tokio::select! {
            () = sleep(LONGEST) => LONGEST,
            () = in_haste => HASTE,
        }
    };
    let searched = tokio::select! {
        searched = search(work, secrets, (layout, log), &mut found) => searched,
        patience = overdue => Err(ProcessError::Deadline {
            what: "git cat-file".to_owned(),
            seconds: patience.as_secs(),
        }),
    };
    let places = found.into_iter().take(MOST);
    Findings {
        places: places.map(|place| place.told(log)).collect(),
        incomplete: searched.err(),
    }
}

async fn search(
    work: &Work,
    secrets: &[NamedSecret],
    (layout, log): (&Layout, &JobLog),
    found: &mut BTreeSet<Place>,
) -> Result<(), ProcessError> {
    let Some(store) = work.store.as_ref().filter(|_| !log.needles().is_empty()) else {
        return Ok(());
    };
    let search = Search {
        git: store.git(layout),
        store,
        layout,
        log,
        each: secrets
            .iter()
            .map(|secret| (secret, Arc::new(Needles::new([secret.value.expose()]))))
            .collect(),
    };
    if work.commits > 0 {
        let base = work.base.as_deref();
        let objects = search.committed(base).await?;
        search.within(objects, base, false, found).await?;
    }
    if work.uncommitted {
        let objects = search.uncommitted(work.head.is_some()).await?;
        search.within(objects, work.head.as_deref(), true, found).await?;
    }
    Ok(())
}

/// Why none of the work may go to an origin, from which nobody takes a secret back.
pub(super) fn forbids_push(found: &[ExposedSecret]) -> Option<String> {
    let first = found.iter().find(|one| !one.uncommitted)?;
    Some(format!(
        "The commits hold a secret: {first}. They came back with the job and went nowhere else"
    ))
}

/// Where a secret stands: in the commits first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    uncommitted: bool,
    /// Empty for the message of a commit.
    path: String,
    secret: String,
}

impl Place {
    fn told(self, log: &JobLog) -> ExposedSecret {
        let path = || log.redact(&self.path).chars().take(LONGEST_PATH).collect();
        ExposedSecret {
            path: (!self.path.is_empty()).then(path),
            secret: self.secret,
            uncommitted: self.uncommitted,
        }
    }
}

struct Search<'a> {
    git: Git<'a>,
    store: &'a Store,
    layout: &'a Layout,
    log: &'a JobLog,
    each: Vec<(&'a NamedSecret, Arc<Needles>)>,
}

/// What is in one object: which path it has, and the secrets in it by their number.
type Named = BTreeMap<Object, BTreeSet<usize>>;

/// One object, by the path it has; none for a commit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    path: String,
    id: String,
}

impl Search<'_> {
    /// `<id> <path>` of each object that is in the commits and not in the base.
    async fn committed(&self, base: Option<&str>) -> Result<File, ProcessError> {
        let not_base = base.map(|base| format!("^{base}"));
        let range = std::iter::once(WORK_REF).chain(not_base.as_deref());
        let words: Vec<&str> = ["rev-list", "--objects"].into_iter().chain(range).collect();
        let (mut into, objects) = List::create(&self.layout.spool).map_err(unlisted)?;
        self.git
            .run(&self.store.git_dir, &words, LONG)
            .success_into(&mut into)
            .await?;
        Ok(objects)
    }

    /// The same of what is in the index of the collection and not in HEAD.
    async fn uncommitted(&self, has_head: bool) -> Result<File, ProcessError> {
        let raw = ["diff", "--cached", "--raw", "-z", "--no-abbrev", "--no-renames"];
        let raw: Vec<&str> = raw.into_iter().chain(has_head.then_some("HEAD")).collect();
        let mut memory = Memory {
            bytes: Vec::new(),
            limit: MOST_LISTED,
        };
        self.git
            .run(&self.store.git_dir, &raw, LONG)
            .success_into(&mut memory)
            .await?;
        self.listed(&changed_objects(&memory.bytes))
    }

    /// Adds what is new in these objects: all of it, or as much as makes [`MOST`].
    async fn within(
        &self,
        objects: File,
        base: Option<&str>,
        uncommitted: bool,
        found: &mut BTreeSet<Place>,
    ) -> Result<(), ProcessError> {
        let all = self.log.needles();
        let mut suspects = Objects::new(vec![&all]);
        self.read(objects, &mut suspects).await?;
        let suspects: Vec<Object> = suspects.found.into_keys().collect();
        for suspects in suspects.chunks(MOST) {
            let new = self.new_in(suspects, base).await?;
            found.extend(new.into_iter().map(|(path, secret)| Place {
                uncommitted,
                path,
                secret,
            }));
            if found.len() >= MOST {
                break;
            }
        }
        Ok(())
    }

    /// Path and name of each secret in these objects that the base does not have at the same path.
    async fn new_in(
        &self,
        suspects: &[Object],
        base: Option<&str>,
    ) -> Result<BTreeSet<(String, String)>, ProcessError> {
        let mut new = BTreeSet::new();
        let named = self.named(&lines(suspects)).await?;
        let before = self.before(suspects, base).await?;
        for (object, secrets) in named {
            let known = before.get(&object.path);
            for secret in secrets
                .iter()
                .filter(|secret| !known.is_some_and(|known| known.contains(secret)))
            {
                if let Some((secret, _)) = self.each.get(*secret) {
                    new.insert((object.path.clone(), secret.name.clone()));
                }
            }
        }
        Ok(new)
    }

    async fn named(&self, objects: &[u8]) -> Result<Named, ProcessError> {
        let mut named = Objects::new(self.each.iter().map(|(_, needles)| needles).collect());
        self.read(self.listed(objects)?, &mut named).await?;
        Ok(named.found)
    }

    /// What the base says at the paths of the suspects: that is not new, and may be an ordinary word.
    async fn before(
        &self,
        suspects: &[Object],
        base: Option<&str>,
    ) -> Result<BTreeMap<String, BTreeSet<usize>>, ProcessError> {
        let paths: Vec<&str> = suspects
            .iter()
            .map(|object| object.path.as_str())
            .filter(|path| !path.is_empty())
            .collect();
        let Some(base) = base.filter(|_| !paths.is_empty()) else {
            return Ok(BTreeMap::new());
        };
        let mut memory = Memory {
            bytes: Vec::new(),
            limit: MOST_LISTED,
        };
        let words = [&["ls-tree", "-z", base, "--"], paths.as_slice()].concat();
        let run = self.git.run(&self.store.git_dir, &words, LONG);
        run.success_into(&mut memory).await?;
        let named = self.named(&tree_objects(&memory.bytes)).await?;
        Ok(named
            .into_iter()
            .map(|(object, secrets)| (object.path, secrets))
            .collect())
    }

    /// Reads the objects of a list.
    async fn read(&self, list: File, into: &mut Objects<'_>) -> Result<(), ProcessError> {
        let format = "--batch=%(objectname) %(objecttype) %(objectsize) %(rest)";
        let mut run = self.git.run(&self.store.git_dir, &["cat-file", format], LONG);
        run.command.stdin(list);
        run.success_into(into).await
    }

    fn listed(&self, lines: &[u8]) -> Result<File, ProcessError> {
        List::of(lines, &self.layout.spool).map_err(unlisted)
    }
}

/// There is no list to begin with.
fn unlisted(source: io::Error) -> ProcessError {
    let what = "git cat-file".to_owned();
    ProcessError::Start { what, source }
}

/// Reads what `git cat-file --batch` prints: a line about an object, its bytes, a line end, again and again.
struct Objects<'a> {
    needles: Vec<&'a Arc<Needles>>,
    found: Named,
    header: Vec<u8>,
    current: Option<Current>,
    nothing: Vec<u8>,
}

/// The object whose bytes come.
struct Current {
    object: Object,
    /// With the line end.
    left: u64,
    redactors: Vec<Redactor>,
}

impl<'a> Objects<'a> {
    fn new(needles: Vec<&'a Arc<Needles>>) -> Self {
        Self {
            needles,
            found: BTreeMap::new(),
            header: Vec::new(),
            current: None,
            nothing: Vec::new(),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        let header = String::from_utf8_lossy(&std::mem::take(&mut self.header)).into_owned();
        let mut words = header.trim_end_matches('\n').splitn(4, ' ');
        let (id, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        // An object that is missing says only so, and has no bytes.
        let Some(size) = words.next().and_then(|size| size.parse::<u64>().ok()) else {
            return Err(io::Error::other(format!("object {id} cannot be read")));
        };
        let path = words.next().unwrap_or_default().to_owned();
        // A tree says the names of what has a path of its own.
        let redactors = if kind == "tree" {
            &[][..]
        } else {
            self.needles.as_slice()
        };
        let mut redactors: Vec<Redactor> = redactors
            .iter()
            .map(|needles| Redactor::new(Arc::clone(needles)))
            .collect();
        for redactor in &mut redactors {
            redactor.push(format!("{path}\n").as_bytes(), &mut self.nothing);
        }
        let id = id.to_owned();
        self.current = Some(Current {
            object: Object { path, id },
            left: size.saturating_add(1),
            redactors,
        });
        Ok(())
    }

    fn end(&mut self) {
        let Some(current) = self.current.take() else {
            return;
        };
        let secrets: BTreeSet<usize> = current
            .redactors
            .iter()
            .enumerate()
            .filter_map(|(number, redactor)| redactor.found().then_some(number))
            .collect();
        if !secrets.is_empty() {
            self.found.insert(current.object, secrets);
        }
    }
}

impl Sink for Objects<'_> {
    fn take(&mut self, mut chunk: &[u8]) -> io::Result<Option<u64>> {
        while !chunk.is_empty() {
            let Some(current) = &mut self.current else {
                let end = chunk.iter().position(|byte| *byte == b'\n');
                let (head, rest) = chunk.split_at(end.map_or(chunk.len(), |end| end + 1));
                self.header.write_all(head)?;
                chunk = rest;
                if end.is_some() {
                    self.begin()?;
                }
                continue;
            };
            let count = usize::try_from(current.left).map_or(chunk.len(), |left| left.min(chunk.len()));
            let (bytes, rest) = chunk.split_at(count);
            for redactor in &mut current.redactors {
                redactor.push(bytes, &mut self.nothing);
                self.nothing.clear();
            }
            current.left -= u64::try_from(count).unwrap_or(current.left);
            chunk = rest;
            if current.left == 0 {
                self.end();
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_is_missing_is_not_an_object_without_secrets() {
        let needles = Arc::new(Needles::new(["s3cr3t-api-key"]));
        let mut objects = Objects::new(vec![&needles]);
        assert!(objects.take(b"12ab blob 5 a/b c\nhello\n34").is_ok());
        assert!(objects.take(b"cd missing\n").is_err());
    }
}
