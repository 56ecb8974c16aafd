//! age, to and from bytes.

use std::io::{Read as _, Write as _};

use age::DecryptError;
use age::armor::ArmoredReader;
use zeroize::Zeroizing;

use crate::SecretsError;
use crate::identity::{Identities, Recipient};

/// No bundle is larger; what decrypts to more was not made for us.
const LARGEST: u64 = 4 << 20;

/// Of what age encrypted, as it is and armored.
const BEGINNINGS: &[&[u8]] = &[b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----"];

/// Decrypts what age encrypted, armored or not.
pub(crate) fn open(
    bytes: &[u8],
    identities: &Identities,
    label: &str,
) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let damaged = |reason: &str| SecretsError::Damaged {
        label: label.to_owned(),
        reason: reason.to_owned(),
    };
    let refused = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys => SecretsError::NoMatchingKey {
            label: label.to_owned(),
            key_path: identities.path.clone(),
        },
        DecryptError::UnknownFormat | DecryptError::InvalidHeader => {
            damaged("is not encrypted with age, or its beginning is damaged")
        }
        DecryptError::ExcessiveWork { .. } => damaged("is encrypted with a passphrase, and not to a key"),
        DecryptError::InvalidMac
        | DecryptError::DecryptionFailed
        | DecryptError::KeyDecryptionFailed
        | DecryptError::Io(_) => damaged("was changed or cut off after it was encrypted"),
        _ => damaged("cannot be decrypted"),
    };
    if !BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning)) {
        return Err(damaged("is not encrypted with age, or its beginning is damaged"));
    }
    let decryptor = age::Decryptor::new_buffered(ArmoredReader::new(bytes)).map_err(refused)?;
    if decryptor.is_scrypt() {
        return Err(damaged("is encrypted with a passphrase, and not to a key"));
    }
    let keys = identities.keys.iter().map(|key| {
        let key: &dyn age::Identity = key;
        key
    });
    let reader = decryptor.decrypt(keys).map_err(refused)?;
    // A plaintext is never longer than what it was encrypted to: nothing is left behind by growing.
    let mut plain = Zeroizing::new(Vec::with_capacity(bytes.len()));
    reader
        .take(LARGEST)
        .read_to_end(&mut plain)
        .map_err(|_| damaged("was changed or cut off after it was encrypted"))?;
    Ok(plain)
}

/// Encrypts to all of these.
pub(crate) fn seal(plain: &[u8], recipients: &[Recipient], label: &str) -> Result<Vec<u8>, SecretsError> {
    let failed = || SecretsError::Damaged {
        label: label.to_owned(),
        reason: "could not be encrypted".to_owned(),
    };
    let keys = recipients.iter().map(|recipient| {
        let recipient: &dyn age::Recipient = &recipient.0;
        recipient
    });
    let encryptor = age::Encryptor::with_recipients(keys).map_err(|_| failed())?;
    let mut sealed = Vec::with_capacity(plain.len() + 512);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|_| failed())?;
    writer.write_all(plain).map_err(|_| failed())?;
    writer.finish().map_err(|_| failed())?;
    Ok(sealed)
}

/// To how many keys these bytes were encrypted; age adds a line that is none now and then.
pub(crate) fn recipients(bytes: &[u8]) -> usize {
    let mut reader = ArmoredReader::new(bytes).take(64 << 10);
    let mut header = Vec::new();
    // What cannot be read is told by whoever decrypts it.
    let _ = reader.read_to_end(&mut header);
    header
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.starts_with(b"---"))
        .filter(|line| {
            line.starts_with(b"-> X25519 ")
                || line.starts_with(b"-> ssh-")
                || line.starts_with(b"-> piv-p256")
        })
        .count()
}
