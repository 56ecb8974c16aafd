//! The directory of bundles: found by name, opened, replaced whole.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::audit::{Audit, Change};
use crate::file::{self, Privacy, failed};
use crate::identity::{Identities, Recipient};
use crate::{Bundle, SecretsError, seal, sops, tree};

const LOCK: &str = ".lock";

/// How a bundle lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All of it encrypted with age.
    Age,
    /// Its values encrypted by sops.
    Sops,
}

/// What a file's name must end with.
const FORMS: &[(&str, Form)] = &[
    (".age", Form::Age),
    (".sops.yaml", Form::Sops),
    (".sops.yml", Form::Sops),
    (".sops.json", Form::Sops),
];

/// The right to write, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct WriteLock(File);

impl Drop for WriteLock {
    fn drop(&mut self) {
        // A child that is just being begun still has the descriptor, and closing ours alone would leave it locked. Where
        // this fails, the kernel gives it back a moment later.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// A bundle that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What it holds.
    pub bundle: Bundle,
    /// Its file.
    pub path: PathBuf,
    /// How it lies there.
    pub form: Form,
    /// Twelve digits of the SHA-256 of the file: another one means that somebody wrote it.
    pub fingerprint: String,
    /// How many keys it is encrypted to; 0 where sops knows.
    pub recipients: usize,
}

/// A change of one bundle.
#[derive(Debug)]
pub struct Edit<'a> {
    /// Which bundle.
    pub name: &'a str,
    /// One word for the record.
    pub action: &'a str,
    /// Further keys to encrypt to.
    pub recipients: &'a [Recipient],
    /// Let go of keys that are not named.
    pub drop_recipients: bool,
}

/// Directory and key. Holds nothing secret.
#[derive(Debug, Clone)]
pub struct Vault {
    pub(crate) dir: PathBuf,
    pub(crate) key_path: PathBuf,
}

pub(crate) fn digits(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..6])
}

/// The file's name, for messages.
pub(crate) fn label(path: &Path) -> String {
    path.display().to_string()
}

impl Vault {
    /// Names both; nothing is read yet.
    #[must_use]
    pub fn new(dir: &Path, key_path: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            key_path: key_path.to_owned(),
        }
    }

    /// The private keys.
    ///
    /// # Errors
    /// As [`Identities::load`].
    pub fn identities(&self) -> Result<Identities, SecretsError> {
        Identities::load(&self.key_path)
    }

    /// File names of all bundles, sorted.
    ///
    /// # Errors
    /// The directory cannot be read, or others may change it.
    pub fn files(&self) -> Result<Vec<String>, SecretsError> {
        let seen = match std::fs::metadata(&self.dir) {
            Ok(seen) => seen,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("Looking at", &self.dir)(error)),
        };
        if seen.mode() & 0o022 != 0 {
            return Err(SecretsError::Permissions {
                path: self.dir.clone(),
                mode: seen.mode() & 0o7777,
                reason: "others can put files into it",
            });
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed("Reading", &self.dir))? {
            let entry = entry.map_err(failed("Reading", &self.dir))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if form(&name).is_some() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn find(&self, name: &str) -> Result<Option<(PathBuf, Form)>, SecretsError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(SecretsError::Name(name.escape_debug().take(80).collect()));
        }
        let matches = |file: &&String| {
            **file == name
                || FORMS
                    .iter()
                    .any(|(ending, _)| file.strip_suffix(ending) == Some(name))
        };
        let files = self.files()?;
        let found: Vec<&String> = files.iter().filter(matches).collect();
        match found.as_slice() {
            [] => Ok(None),
            [file] => Ok(form(file).map(|form| (self.dir.join(file), form))),
            several => Err(SecretsError::Ambiguous {
                name: name.to_owned(),
                files: several.iter().map(|file| (*file).clone()).collect(),
            }),
        }
    }

    /// Reads and decrypts a bundle as it lies there now.
    ///
    /// # Errors
    /// It is absent, others can change it, no key opens it, or it is no bundle.
    pub fn open(&self, name: &str) -> Result<Opened, SecretsError> {
        match self.open_once(name) {
            // A rotation may have come between the bundle and the key.
            Err(SecretsError::NoMatchingKey { .. }) => self.open_once(name),
            opened => opened,
        }
    }

    fn open_once(&self, name: &str) -> Result<Opened, SecretsError> {
        let absent = || SecretsError::Absent {
            name: name.to_owned(),
            dir: self.dir.clone(),
        };
        let (path, form) = self.find(name)?.ok_or_else(absent)?;
        let bytes = file::read(&path, Privacy::Group)?.ok_or_else(absent)?;
        let identities = self.identities()?;
        open_bytes(&bytes, path, form, &identities)
    }

    /// One writer at a time.
    pub(crate) fn lock(&self) -> Result<WriteLock, SecretsError> {
        file::make_dir(&self.dir)?;
        let path = self.dir.join(LOCK);
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("Opening", &path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(WriteLock(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(SecretsError::Busy(self.dir.clone())),
            Err(errno) => Err(failed("Locking", &path)(errno.into())),
        }
    }

    /// Changes a bundle; makes it, and the key, where there is none. `change` names what it changed. What is written
    /// is decrypted again before it replaces anything.
    ///
    /// # Errors
    /// As [`Vault::open`]; the bundle belongs to sops; keys of others would be let go of; `change` refused.
    pub fn edit(
        &self,
        edit: &Edit<'_>,
        change: impl FnOnce(&mut Bundle) -> Result<Vec<String>, SecretsError>,
    ) -> Result<Opened, SecretsError> {
        let _lock = self.lock()?;
        let mut audit = Audit::open(&self.dir)?;
        let (identities, is_new) = self.identities_or_new()?;
        let (mut opened, before) = match self.find(edit.name)? {
            Some((path, Form::Age)) => {
                let bytes = file::read(&path, Privacy::Group)?.unwrap_or_default();
                let opened = open_bytes(&bytes, path, Form::Age, &identities)?;
                let before = Some(opened.fingerprint.clone());
                (opened, before)
            }
            Some((path, Form::Sops)) => return Err(SecretsError::ReadOnly { label: label(&path) }),
            None => (self.fresh(edit.name), None),
        };
        let recipients = recipients(&identities, edit.recipients);
        spare_others(&opened, recipients.len(), edit.drop_recipients)?;
        let names = change(&mut opened.bundle)?;
        let sealed = sealed(&opened.bundle, &recipients, &identities, &opened.path)?;
        if is_new {
            identities.store()?;
        }
        file::replace(&opened.path, &sealed)?;
        opened.fingerprint = digits(&sealed);
        opened.recipients = recipients.len();
        audit.tell(&Change {
            action: edit.action,
            bundle: edit.name,
            names: &names,
            before,
            after: Some(opened.fingerprint.clone()),
        })?;
        Ok(opened)
    }

    /// The keys, and whether they are yet to be stored.
    fn identities_or_new(&self) -> Result<(Identities, bool), SecretsError> {
        match self.identities() {
            // With bundles there, the key is not missing but lost, and a new one would hide that.
            Err(SecretsError::KeyAbsent(_)) if self.files()?.is_empty() => {
                Ok((Identities::generate(&self.key_path), true))
            }
            found => Ok((found?, false)),
        }
    }

    fn fresh(&self, name: &str) -> Opened {
        let name = name.strip_suffix(".age").unwrap_or(name);
        Opened {
            bundle: Bundle::default(),
            path: self.dir.join(format!("{name}.age")),
            form: Form::Age,
            fingerprint: String::new(),
            recipients: 0,
        }
    }
}

fn form(file: &str) -> Option<Form> {
    let ends = |(ending, form): &(&str, Form)| {
        let stem = file.strip_suffix(ending)?;
        (!stem.is_empty() && !stem.starts_with('.')).then_some(*form)
    };
    FORMS.iter().find_map(ends)
}

pub(crate) fn open_bytes(
    bytes: &[u8],
    path: PathBuf,
    form: Form,
    identities: &Identities,
) -> Result<Opened, SecretsError> {
    let label = label(&path);
    let bundle = match form {
        Form::Age => {
            let plain = seal::open(bytes, identities, &label)?;
            Bundle::parse(&plain, &label)?
        }
        Form::Sops => {
            let root = tree::read(bytes, &label)?;
            if !sops::made(&root) {
                return Err(SecretsError::Damaged {
                    label,
                    reason: "is not encrypted: it has no metadata of sops".to_owned(),
                });
            }
            Bundle::from_tree(sops::open(root, identities, &label)?, &label)?
        }
    };
    Ok(Opened {
        bundle,
        path,
        form,
        fingerprint: digits(bytes),
        recipients: match form {
            Form::Age => seal::recipients(bytes),
            Form::Sops => 0,
        },
    })
}

pub(crate) fn recipients(identities: &Identities, others: &[Recipient]) -> Vec<Recipient> {
    let mut all: Vec<Recipient> = identities.recipient().into_iter().collect();
    for other in others {
        if !all.iter().any(|known| known.to_string() == other.to_string()) {
            all.push(other.clone());
        }
    }
    all
}

pub(crate) fn spare_others(opened: &Opened, known: usize, let_go: bool) -> Result<(), SecretsError> {
    if opened.recipients > known && !let_go {
        return Err(SecretsError::OtherRecipients {
            label: label(&opened.path),
            recipients: opened.recipients,
            known,
        });
    }
    Ok(())
}

/// Encrypts, and makes sure that what was encrypted opens and reads as the same.
pub(crate) fn sealed(
    bundle: &Bundle,
    recipients: &[Recipient],
    identities: &Identities,
    path: &Path,
) -> Result<Vec<u8>, SecretsError> {
    let label = label(path);
    let text = bundle.emit();
    let sealed = seal::seal(text.as_bytes(), recipients, &label)?;
    let opened = seal::open(&sealed, identities, &label)?;
    if *Bundle::parse(&opened, &label)?.emit() != *text {
        return Err(SecretsError::Damaged {
            label,
            reason: "would not read as it was written; it stays as it was".to_owned(),
        });
    }
    Ok(sealed)
}
