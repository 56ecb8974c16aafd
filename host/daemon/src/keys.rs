//! Two keys of the host's, made once and kept: sessions are derived from one, guests have pinned the other.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_protocol::secret::Secret32;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::error::StartError;

const MAX_KEY_BYTES: u64 = 16 << 10;

/// Keys of this host.
pub(crate) struct Keys {
    /// Sessions are derived from it.
    pub(crate) host: Secret32,
    /// What guest listeners show.
    pub(crate) tls: Arc<ServerConfig>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo: what a seed pins.
    pub(crate) spki_sha256: [u8; 32],
}

impl Keys {
    /// Reads both keys, or makes those that are absent. The caller holds the lock of the data directory.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, StartError> {
        let directory = data_dir.join("keys");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| StartError::File {
                action: "Making",
                path: directory.clone(),
                source,
            })?;
        let host = host_key(&directory.join("host.key"))?;
        let (tls, spki_sha256) = tls_key(&directory.join("tls.key"))?;
        Ok(Self {
            host,
            tls,
            spki_sha256,
        })
    }
}

fn host_key(path: &Path) -> Result<Secret32, StartError> {
    let bytes = match read(path)? {
        Some(bytes) => bytes,
        None => {
            let mut bytes = vec![0u8; 32];
            getrandom::fill(&mut bytes).map_err(|error| wrong(path, format!("cannot be made: {error}")))?;
            write(path, &bytes)?;
            bytes
        }
    };
    let length = bytes.len();
    let key = <[u8; 32]>::try_from(bytes).map_err(|_| {
        wrong(
            path,
            format!("holds {length} bytes instead of 32: restore it, or remove it, which ends running jobs"),
        )
    })?;
    Ok(Secret32::new(key))
}

/// The certificate is made anew at each start: nothing in it but the key means anything to a guest.
fn tls_key(path: &Path) -> Result<(Arc<ServerConfig>, [u8; 32]), StartError> {
    let damaged = |error: &dyn std::fmt::Display| {
        wrong(
            path,
            format!("is no usable key ({error}): restore it, or remove it, which cuts running sandboxes off"),
        )
    };
    let key = match read(path)? {
        Some(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| damaged(&"not PEM"))?;
            KeyPair::from_pem(&text).map_err(|error| damaged(&error))?
        }
        None => {
            let key = KeyPair::generate().map_err(|error| damaged(&error))?;
            write(path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    let certificate = CertificateParams::new(vec!["agentlab".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .map_err(|error| damaged(&error))?;
    let spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], private)
        })
        .map_err(|error| damaged(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would skip the certificate; guests come seldom enough for a whole handshake.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), spki_sha256))
}

/// The file's bytes; `None` when it is absent.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StartError> {
    let failed = |source| StartError::File {
        action: "Reading",
        path: path.to_owned(),
        source,
    };
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(wrong(
            path,
            format!("can be read by others (mode {mode:o}): chmod 600 it if nobody could have"),
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEY_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// All of the bytes or none of them, whenever the power fails, in a file for its owner alone.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    let failed = |source| StartError::File {
        action: "Writing",
        path: path.to_owned(),
        source,
    };
    let mut temporary = PathBuf::from(path).into_os_string();
    temporary.push(".new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    match path.parent() {
        Some(directory) => File::open(directory)
            .and_then(|handle| handle.sync_all())
            .map_err(failed),
        None => Ok(()),
    }
}

fn wrong(path: &Path, reason: String) -> StartError {
    StartError::Key {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_private_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let first = Keys::load(directory.path()).unwrap();
        let second = Keys::load(directory.path()).unwrap();
        assert_eq!(first.host, second.host);
        assert_eq!(first.spki_sha256, second.spki_sha256);
        assert_ne!(first.host.expose(), &[0u8; 32]);
        for name in ["host.key", "tls.key"] {
            let metadata = std::fs::metadata(directory.path().join("keys").join(name)).unwrap();
            assert_eq!(metadata.mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_damaged_or_open_key_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        Keys::load(directory.path()).unwrap();
        let path = directory.path().join("keys/host.key");
        std::fs::write(&path, "short").unwrap();
        let error = Keys::load(directory.path()).err().unwrap().to_string();
        assert!(error.contains("5 bytes") && error.contains("host.key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::load(directory.path()).err().unwrap().to_string();
        assert!(error.contains("640"), "{error}");
    }
}
