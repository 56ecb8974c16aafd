//! A new age key, and everything encrypted to it.
//!
//! ```text
//!   key file     old          new old         new old                    new
//!   bundles      old          old             some new, some old         new
//!                    replace         replace one by one        replace
//! ```
//! Each arrow is one rename. Whenever it is cut off, the key file opens every bundle there is; and beginning anew ends
//! in the same place, with one key more to let go of.

use crate::audit::{Audit, Change};
use crate::file::{self, Privacy};
use crate::identity::{Identities, Recipient};
use crate::vault::{self, Form, Vault, digits, label, open_bytes};
use crate::{Opened, SecretsError};

/// Why the old key stays in the key file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Files of sops that only the old key opens.
    pub files: Vec<String>,
}

/// What a rotation did.
#[derive(Debug)]
pub struct Rotated {
    /// The new public key.
    pub recipient: Option<Recipient>,
    /// Files that were encrypted anew.
    pub files: Vec<String>,
    /// What still needs the old key, if anything.
    pub left: Option<Left>,
}

impl Vault {
    /// Makes a new key, encrypts every bundle of age's to it (and to `others`), and lets go of the old key unless a
    /// file of sops needs it. Nothing is changed unless everything opens.
    ///
    /// # Errors
    /// As [`Vault::edit`]. Whatever was done until then, every bundle can be opened.
    pub fn rotate(&self, others: &[Recipient], drop_recipients: bool) -> Result<Rotated, SecretsError> {
        self.rotate_watched(others, drop_recipients, &mut |_| Ok(()))
    }

    /// The same; `after` is called after each change on the disk, and may end it there as a power failure would.
    pub(crate) fn rotate_watched(
        &self,
        others: &[Recipient],
        drop_recipients: bool,
        after: &mut dyn FnMut(&str) -> Result<(), SecretsError>,
    ) -> Result<Rotated, SecretsError> {
        let _lock = self.lock()?;
        let mut audit = Audit::open(&self.dir)?;
        let old = self.identities()?;
        let mut bundles = Vec::new();
        let mut left = Vec::new();
        for name in self.files()? {
            let opened = self.opened(&name, &old)?;
            match opened.form {
                Form::Age => {
                    vault::spare_others(&opened, others.len() + 1, drop_recipients)?;
                    bundles.push((name, opened));
                }
                Form::Sops => left.push(name),
            }
        }
        let alone = Identities::generate(&self.key_path);
        let recipient = alone.recipient();
        let mut both = Identities {
            path: alone.path.clone(),
            keys: alone.keys.clone(),
        };
        both.keys.extend(old.keys.iter().cloned());
        both.store()?;
        after("key added")?;
        let recipients = vault::recipients(&alone, others);
        let mut files = Vec::new();
        for (name, opened) in bundles {
            let sealed = vault::sealed(&opened.bundle, &recipients, &alone, &opened.path)?;
            file::replace(&opened.path, &sealed)?;
            after(&name)?;
            audit.tell(&Change {
                action: "rotate",
                bundle: &name,
                names: &[],
                before: Some(opened.fingerprint),
                after: Some(digits(&sealed)),
            })?;
            files.push(name);
        }
        let left = if left.is_empty() {
            alone.store()?;
            after("key removed")?;
            None
        } else {
            Some(Left { files: left })
        };
        Ok(Rotated {
            recipient,
            files,
            left,
        })
    }

    fn opened(&self, name: &str, identities: &Identities) -> Result<Opened, SecretsError> {
        let path = self.dir.join(name);
        let form = if name.ends_with(".age") {
            Form::Age
        } else {
            Form::Sops
        };
        let bytes = file::read(&path, Privacy::Group)?.ok_or_else(|| SecretsError::Absent {
            name: label(&path),
            dir: self.dir.clone(),
        })?;
        open_bytes(&bytes, path, form, identities)
    }
}
