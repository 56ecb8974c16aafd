//! Where images lie.
//!
//! ```text
//!   <store>/<id>/              manifest.json root.ext4 vmlinuz initrd.img    0444 in 0755, never changed
//!   <store>/by-name/<name>  -> ../<id>     switched atomically by a build
//!   <store>/.cache/<key>.tar   root trees, kept
//!   <store>/.building-*        work of a build; of a dead one when nobody holds the lock
//!   <store>/.lock              held by build, gc and remove
//! ```
//!
//! A disk image is the backing file of every machine cloned from it, so that it never changes under its path: a
//! rebuilt template is another id, and the old one goes when `gc` finds it without a name and unused.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;

use crate::error::{During, Result, TemplateError, nearest};
use crate::fingerprint;
use crate::manifest::{DISK, MANIFEST, Manifest, WHOLE_DISK};
use crate::shape::Shape;

/// Where templates lie unless told otherwise.
pub const DEFAULT_STORE: &str = "/var/lib/agentlab/templates";
/// Directory of links, one per template name.
pub const BY_NAME: &str = "by-name";
/// Directory of kept root trees.
pub const CACHE: &str = ".cache";
/// Start of the name of a build's work directory.
pub const BUILDING: &str = ".building-";
const LOCK: &str = ".lock";

/// A directory of images.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    dir: PathBuf,
}

/// An image in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What it is.
    pub manifest: Manifest,
    /// Where it lies.
    pub dir: PathBuf,
    /// Whether its name leads to it; else a newer build of that name does.
    pub current: bool,
}

/// A directory that looks like an image and cannot be read as one, with the reason.
pub type Damaged = (PathBuf, TemplateError);

/// How a file differs from its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Name of the file.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The store's lock; other processes wait until it is dropped.
#[derive(Debug)]
pub struct StoreLock(File);

impl StoreLock {
    /// The lock as a program's standard input, empty to read. The store stays locked until that program has ended
    /// too, whatever becomes of us.
    pub(crate) fn share(&self) -> Result<Stdio> {
        self.0
            .try_clone()
            .map(Stdio::from)
            .during("share", Path::new(LOCK))
    }
}

impl TemplateStore {
    /// Opens a store. One that does not exist is empty.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Makes the store's directories where they are missing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(&self) -> Result<()> {
        for directory in [self.dir.clone(), self.dir.join(BY_NAME), self.dir.join(CACHE)] {
            fs::create_dir_all(&directory).during("create", &directory)?;
        }
        let opened = Permissions::from_mode(0o755);
        fs::set_permissions(&self.dir, opened.clone()).during("open up", &self.dir)?;
        let names = self.dir.join(BY_NAME);
        fs::set_permissions(&names, opened).during("open up", &names)
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn open_lock(&self) -> Result<(File, PathBuf)> {
        let path = self.dir.join(LOCK);
        let file = File::options().create(true).read(true).append(true).open(&path);
        Ok((file.during("open", &path)?, path))
    }

    /// Takes the lock when nobody has it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn try_lock(&self) -> Result<Option<StoreLock>> {
        let (file, path) = self.open_lock()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(StoreLock(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error).during("lock", &path),
        }
    }

    /// Takes the lock, waiting for whoever has it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn lock(&self) -> Result<StoreLock> {
        let (file, path) = self.open_lock()?;
        file.lock().during("lock", &path)?;
        Ok(StoreLock(file))
    }

    /// Every image whose manifest can be read, the newest of a name first; and the directories that look like images
    /// and cannot be, with the reason.
    ///
    /// # Errors
    /// When the store exists and cannot be read.
    pub fn list(&self) -> Result<(Vec<Template>, Vec<Damaged>)> {
        let mut templates = Vec::new();
        let mut damaged = Vec::new();
        let names = self.names()?;
        for entry in read_dir(&self.dir)? {
            if !is_id(&entry) || !self.dir.join(&entry).is_dir() {
                continue;
            }
            let dir = self.dir.join(&entry);
            match Manifest::read(&dir) {
                Ok(manifest) => {
                    let current = names
                        .iter()
                        .any(|(name, id)| *name == manifest.name && *id == entry);
                    templates.push(Template {
                        manifest,
                        dir,
                        current,
                    });
                }
                Err(error) => damaged.push((dir, error)),
            }
        }
        templates.sort_by(|one, two| {
            let rank = |template: &Template| (template.manifest.name.clone(), !template.current);
            rank(one)
                .cmp(&rank(two))
                .then(two.manifest.created.cmp(&one.manifest.created))
        });
        Ok((templates, damaged))
    }

    /// Names and the ids that they lead to, without looking whether those exist.
    ///
    /// # Errors
    /// When the directory exists and cannot be read.
    pub fn names(&self) -> Result<Vec<(String, String)>> {
        let directory = self.dir.join(BY_NAME);
        let mut names = Vec::new();
        for name in read_dir(&directory)? {
            if let Ok(target) = fs::read_link(directory.join(&name)) {
                let id = target
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                names.push((name, id));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The current image of a name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_by_name(&self, name: &str) -> Result<Option<Template>> {
        Ok(self
            .current()?
            .into_iter()
            .find(|template| template.manifest.name == name))
    }

    /// The current local image that stands for a VMID.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_by_vmid(&self, vmid: u32) -> Result<Option<Template>> {
        Ok(self
            .current()?
            .into_iter()
            .find(|template| template.manifest.shape == Shape::Local && template.manifest.vmid == vmid))
    }

    fn current(&self) -> Result<Vec<Template>> {
        Ok(self
            .list()?
            .0
            .into_iter()
            .filter(|template| template.current)
            .collect())
    }

    /// An image by name, VMID, or the start of its id, at least four digits of it.
    ///
    /// # Errors
    /// [`TemplateError::NotFound`] with the names there are, when there is none or more than one.
    pub fn find(&self, wanted: &str) -> Result<Template> {
        let (mut templates, _) = self.list()?;
        let vmid: Option<u32> = wanted.parse().ok();
        let named = |template: &Template| {
            let stands_for = template.manifest.shape == Shape::Local && Some(template.manifest.vmid) == vmid;
            template.current && (template.manifest.name == wanted || stands_for)
        };
        if let Some(place) = templates.iter().position(named) {
            return Ok(templates.swap_remove(place));
        }
        let matching = |template: &Template| wanted.len() >= 4 && template.manifest.id.starts_with(wanted);
        let mut places = templates
            .iter()
            .enumerate()
            .filter(|(_, template)| matching(template))
            .map(|(place, _)| place);
        if let (Some(place), None) = (places.next(), places.next()) {
            return Ok(templates.swap_remove(place));
        }
        let names = || templates.iter().map(|template| template.manifest.name.as_str());
        let hint = match nearest(wanted, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if templates.is_empty() => "build one: `agentlab-template build demo`".to_owned(),
            None => format!("there is: {}", names().collect::<Vec<_>>().join(", ")),
        };
        Err(TemplateError::NotFound {
            wanted: wanted.to_owned(),
            store: self.dir.clone(),
            hint: Some(hint),
        })
    }

    /// Hashes every file of an image again and says what differs from its manifest.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn verify(&self, template: &Template) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        let mut differs = |file: &str, problem: String| {
            differences.push(Difference {
                file: file.to_owned(),
                problem,
            })
        };
        for (name, record) in &template.manifest.files {
            match fingerprint::of_file(&template.dir.join(name)) {
                Ok((_, size)) if size != record.size_bytes => {
                    differs(
                        name,
                        format!("is {size} bytes long and should be {}", record.size_bytes),
                    );
                }
                Ok((sha256, _)) if sha256 != record.sha256 => {
                    differs(
                        name,
                        format!("has SHA-256 {sha256} and should have {}", record.sha256),
                    );
                }
                Ok(_) => {}
                Err(error) => differs(name, error.to_string()),
            }
        }
        for name in read_dir(&template.dir)? {
            if name != MANIFEST && !template.manifest.files.contains_key(&name) {
                differs(&name, "is not in the manifest".to_owned());
            }
        }
        let directory = template.dir.file_name().unwrap_or_default().to_string_lossy();
        let computed = image_id(&template.manifest);
        if directory != template.manifest.id.as_str() || computed != template.manifest.id {
            differs(
                MANIFEST,
                format!(
                    "says it is image {} and its content is {computed}",
                    template.manifest.id
                ),
            );
        }
        Ok(differences)
    }

    /// Moves a finished work directory to its place and its name to it. Both are atomic, in this order: a name never
    /// leads to an image that is not whole.
    pub(crate) fn publish(&self, work: &Path, manifest: &Manifest) -> Result<Template> {
        let dir = self.dir.join(&manifest.id);
        for name in manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
            let path = work.join(name);
            fs::set_permissions(&path, Permissions::from_mode(0o444)).during("protect", &path)?;
            File::open(&path)
                .and_then(|file| file.sync_all())
                .during("flush", &path)?;
        }
        fs::set_permissions(work, Permissions::from_mode(0o755)).during("open up", work)?;
        match fs::rename(work, &dir) {
            Ok(()) => {}
            // The very same bytes are there already.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error).during("publish", &dir),
        }
        self.name(&manifest.name, &manifest.id)?;
        File::open(&self.dir)
            .and_then(|opened| opened.sync_all())
            .during("flush", &self.dir)?;
        Ok(Template {
            manifest: Manifest::read(&dir)?,
            dir,
            current: true,
        })
    }

    fn name(&self, name: &str, id: &str) -> Result<()> {
        let link = self.dir.join(BY_NAME).join(name);
        let fresh = self.dir.join(BY_NAME).join(format!(".{name}.new"));
        let _absent = fs::remove_file(&fresh);
        symlink(Path::new("..").join(id), &fresh).during("link", &fresh)?;
        fs::rename(&fresh, &link).during("switch", &link)
    }

    /// Takes a template's name away; its files go with the next `gc`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        let link = self.dir.join(BY_NAME).join(name);
        fs::remove_file(&link).during("remove", &link)
    }

    /// Whether machines use an image: its disk has another hard link, or a process has it open.
    ///
    /// # Errors
    /// When the disk exists and cannot be looked at.
    pub fn in_use(&self, dir: &Path) -> Result<bool> {
        for disk in [DISK, WHOLE_DISK].map(|name| dir.join(name)) {
            let seen = match fs::metadata(&disk) {
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).during("look at", &disk),
            };
            if seen.nlink() > 1 || is_open(seen.dev(), seen.ino()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Looks through the descriptors of all processes. One whose descriptors we may not see counts as not using it: only
/// root runs machines, and `gc` runs as root.
fn is_open(device: u64, inode: u64) -> bool {
    let same =
        |path: PathBuf| fs::metadata(path).is_ok_and(|seen| (seen.dev(), seen.ino()) == (device, inode));
    let processes = read_dir(Path::new("/proc")).unwrap_or_default();
    processes
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .any(|process| {
            let descriptors = Path::new("/proc").join(process).join("fd");
            read_dir(&descriptors)
                .unwrap_or_default()
                .iter()
                .any(|name| same(descriptors.join(name)))
        })
}

/// The content address: what it was made from, and what came out.
pub(crate) fn image_id(manifest: &Manifest) -> String {
    let start =
        fingerprint::Fingerprint::of("agentlab image 1").with("input_id", manifest.input_id.as_bytes());
    let add = |print: fingerprint::Fingerprint, (name, record): (&String, &crate::manifest::FileRecord)| {
        print.with(name, record.sha256.as_bytes())
    };
    manifest.files.iter().fold(start, add).finish()
}

/// Names that only we give to directories.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Names in a directory, sorted; none when there is no such directory.
pub(crate) fn read_dir(directory: &Path) -> Result<Vec<String>> {
    let mut names = match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
            .during("read", directory)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).during("read", directory),
    };
    names.sort_unstable();
    Ok(names)
}
