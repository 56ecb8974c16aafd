//! The key file: age identities as age-keygen writes them. The first is the one that is written to.

use std::fmt;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret as _;
use agentlab_protocol::secret::SecretText;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::SecretsError;
use crate::file::{self, Privacy};

/// What bundles are encrypted to: public.
#[derive(Clone)]
pub struct Recipient(pub(crate) age::x25519::Recipient);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Recipient {
    type Err = SecretsError;

    fn from_str(text: &str) -> Result<Self, SecretsError> {
        text.trim().parse().map(Self).map_err(|_| SecretsError::Value {
            what: "The recipient".to_owned(),
            reason: "is no X25519 key of age's, which begins with age1",
        })
    }
}

/// The private keys of this host. Wiped when dropped.
pub struct Identities {
    pub(crate) path: PathBuf,
    pub(crate) keys: Vec<age::x25519::Identity>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({} of {})", self.keys.len(), self.path.display())
    }
}

const PLUGIN: &str = "is a key of a plugin of age's, and only X25519 keys are read";
const NO_KEY: &str = "is neither a comment nor an AGE-SECRET-KEY-1… line";

impl Identities {
    /// Reads the key file.
    ///
    /// # Errors
    /// It is absent, can be read by others, or holds something else.
    pub fn load(path: &Path) -> Result<Self, SecretsError> {
        let bytes =
            file::read(path, Privacy::Owner)?.ok_or_else(|| SecretsError::KeyAbsent(path.to_owned()))?;
        Self::parse(&bytes, path)
    }

    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self, SecretsError> {
        let wrong = |line, reason| SecretsError::KeyFile {
            path: path.to_owned(),
            line,
            reason,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(1, "is not text; a key file of age's is"))?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let reason = if line.starts_with("AGE-PLUGIN-") {
                PLUGIN
            } else {
                NO_KEY
            };
            keys.push(line.parse().map_err(|_| wrong(number + 1, reason))?);
        }
        if keys.is_empty() {
            return Err(wrong(1, "holds no key"));
        }
        Ok(Self {
            path: path.to_owned(),
            keys,
        })
    }

    /// A new key, not written anywhere yet.
    #[must_use]
    pub fn generate(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            keys: vec![age::x25519::Identity::generate()],
        }
    }

    /// Writes the key file in place of the old one.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn store(&self) -> Result<(), SecretsError> {
        if let Some(directory) = self.path.parent() {
            file::make_dir(directory)?;
        }
        let mut text = Zeroizing::new(String::with_capacity(512 * (self.keys.len() + 1)));
        text.push_str(
            "# The first key is the one that bundles are encrypted to. Keep a copy where no bundle is.\n",
        );
        for key in &self.keys {
            text.push_str(&format!("# public key: {}\n", key.to_public()));
            text.push_str(key.to_string().expose_secret());
            text.push('\n');
        }
        file::replace(&self.path, text.as_bytes())
    }

    /// The key that bundles are encrypted to.
    #[must_use]
    pub fn recipient(&self) -> Option<Recipient> {
        self.keys.first().map(|key| Recipient(key.to_public()))
    }

    /// Twelve digits that tell values apart, and mean nothing to who has not the key: a short value cannot be guessed
    /// from them.
    #[must_use]
    pub fn fingerprint(&self, value: &SecretText) -> String {
        let mut digits = [0; 6];
        if let Some(key) = self.keys.first() {
            let salt = key.to_string();
            let prk = Hkdf::<Sha256>::new(Some(salt.expose_secret().as_bytes()), value.expose().as_bytes());
            // Six bytes are always short enough.
            let _ = prk.expand(b"agentlab secret fingerprint", &mut digits);
        }
        hex::encode(digits)
    }
}
