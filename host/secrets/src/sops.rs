//! Files of sops whose data key was encrypted with age. Read, never written.
//!
//! ```text
//!   env:
//!     TOKEN: ENC[AES256_GCM,data:…,iv:…,tag:…,type:str]     AAD "env:TOKEN:", the keys above it
//!   sops:
//!     age: [{recipient, enc: armored}]                      the data key, 32 bytes
//!     lastmodified: …                                       AAD of the MAC
//!     mac: ENC[…]                                           SHA-512 over all values in the order of the file
//! ```
//! Every value is decrypted under the path it stands at, and then all of them are compared with the MAC: nothing in a
//! file can have been moved, changed, added or left out by somebody who does not have the key.

use aes_gcm::AesGcm;
use aes_gcm::aead::consts::U32;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::aes::Aes256;
use agentlab_protocol::secret::SecretText;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha512};
use zeroize::Zeroizing;

use crate::identity::Identities;
use crate::read::below;
use crate::tree::{Entry, Kind, Node, Value};
use crate::{SecretsError, seal};

type Cipher = AesGcm<Aes256, U32>;

const METADATA: &str = "sops";
const PREFIX: &str = "ENC[AES256_GCM,";
/// Keys of other kinds, which only sops itself can use.
const OTHERS: &[&str] = &["kms", "gcp_kms", "azure_kv", "hc_vault", "pgp"];

/// Whether sops made it.
pub(crate) fn made(root: &Node) -> bool {
    root.at(METADATA)
        .is_some_and(|node| matches!(node.value, Value::Map(_)))
}

/// Decrypts all values and takes the metadata out.
pub(crate) fn open(root: Node, identities: &Identities, label: &str) -> Result<Node, SecretsError> {
    let damaged = |reason: &str| SecretsError::Damaged {
        label: label.to_owned(),
        reason: reason.to_owned(),
    };
    let Value::Map(entries) = root.value else {
        return Err(damaged("is no file of sops"));
    };
    let (metadata, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == METADATA);
    let [metadata] = metadata.as_slice() else {
        return Err(damaged("has no metadata of sops, or has it twice"));
    };
    let metadata = &metadata.node;
    if metadata
        .at("shamir_threshold")
        .and_then(Node::text)
        .is_some_and(|text| text.expose() != "0")
        || metadata
            .at("key_groups")
            .is_some_and(|node| !matches!(node.value, Value::Null))
    {
        return Err(damaged(
            "splits its key over groups; decrypt it with sops and encrypt it anew with age",
        ));
    }
    if metadata
        .at("mac_only_encrypted")
        .and_then(Node::text)
        .is_some_and(|text| text.expose() == "true")
    {
        return Err(damaged(
            "has a MAC over its encrypted values only (`mac_only_encrypted`), which protects too little",
        ));
    }
    let key = data_key(metadata, identities, label)?;
    let cipher = Cipher::new_from_slice(&key).map_err(|_| damaged("has a data key of a wrong length"))?;
    let mut walk = Walk {
        cipher: &cipher,
        hash: Sha512::new(),
        label,
    };
    let entries = walk.entries(entries, "", "")?;
    let computed = SecretText::new(hex::encode_upper(walk.hash.clone().finalize()));
    let said = metadata.at("mac").and_then(Node::text);
    let modified = metadata.at("lastmodified").and_then(Node::text);
    let (Some(said), Some(modified)) = (said, modified) else {
        return Err(damaged("has no MAC of sops: nothing says that it is whole"));
    };
    let (_, said) = walk.decrypt(said, modified.expose(), "sops.mac")?;
    // Both are secret only in so far as nobody could forge them without the key.
    if said != computed {
        return Err(damaged(
            "was changed after sops encrypted it: its MAC does not match",
        ));
    }
    Ok(Node {
        place: root.place,
        value: Value::Map(entries),
    })
}

fn data_key(
    metadata: &Node,
    identities: &Identities,
    label: &str,
) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let entries = match metadata.at("age").map(|node| &node.value) {
        Some(Value::List(entries)) if !entries.is_empty() => entries,
        _ => {
            let has = |key: &&&str| {
                metadata
                    .at(key)
                    .is_some_and(|node| matches!(&node.value, Value::List(items) if !items.is_empty()))
            };
            let others: Vec<&str> = OTHERS.iter().filter(has).copied().collect();
            let reason = if others.is_empty() {
                "is encrypted to no key of age's".to_owned()
            } else {
                format!(
                    "is encrypted to keys of {} only: add one of age's with sops",
                    others.join(", ")
                )
            };
            return Err(SecretsError::Damaged {
                label: label.to_owned(),
                reason,
            });
        }
    };
    let mut last = None;
    for entry in entries {
        let Some(sealed) = entry.at("enc").and_then(Node::text) else {
            continue;
        };
        match seal::open(sealed.expose().trim_start().as_bytes(), identities, label) {
            Ok(key) => return Ok(key),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| SecretsError::Damaged {
        label: label.to_owned(),
        reason: "has no `enc` below `sops.age`".to_owned(),
    }))
}

struct Walk<'a> {
    cipher: &'a Cipher,
    hash: Sha512,
    label: &'a str,
}

impl Walk<'_> {
    /// `path` is for people, `bound` what sops bound each value to.
    fn entries(&mut self, entries: Vec<Entry>, path: &str, bound: &str) -> Result<Vec<Entry>, SecretsError> {
        let mut plain = Vec::with_capacity(entries.len());
        for entry in entries {
            let path = below(path, &entry.key);
            let bound = format!("{bound}{}:", entry.key);
            plain.push(Entry {
                key: entry.key,
                place: entry.place,
                node: self.node(entry.node, &path, &bound)?,
            });
        }
        Ok(plain)
    }

    fn node(&mut self, node: Node, path: &str, bound: &str) -> Result<Node, SecretsError> {
        let value = match node.value {
            Value::Null => Value::Null,
            Value::Map(entries) => Value::Map(self.entries(entries, path, bound)?),
            Value::List(items) => {
                let items: Result<Vec<_>, _> = items
                    .into_iter()
                    // The number of an item is not part of what its value is bound to.
                    .map(|item| self.node(item, path, bound))
                    .collect();
                Value::List(items?)
            }
            Value::Scalar(Kind::Text, text) if text.expose().starts_with(PREFIX) => {
                let (kind, text) = self.decrypt(&text, bound, path)?;
                self.count(kind, &text);
                Value::Scalar(kind, text)
            }
            Value::Scalar(kind, text) => {
                self.count(kind, &text);
                Value::Scalar(kind, text)
            }
        };
        Ok(Node {
            place: node.place,
            value,
        })
    }

    /// Into the MAC, in the words of Python.
    fn count(&mut self, kind: Kind, text: &SecretText) {
        match (kind, text.expose()) {
            (Kind::Bool, "true") => self.hash.update("True"),
            (Kind::Bool, _) => self.hash.update("False"),
            (Kind::Text | Kind::Integer | Kind::Float, text) => self.hash.update(text),
        }
    }

    fn decrypt(
        &self,
        text: &SecretText,
        bound: &str,
        path: &str,
    ) -> Result<(Kind, SecretText), SecretsError> {
        let damaged = |reason: &str| SecretsError::Damaged {
            label: self.label.to_owned(),
            reason: format!(
                "{reason} (`{}`)",
                path.escape_debug().take(80).collect::<String>()
            ),
        };
        let shape = || damaged("holds a value that sops did not write");
        let inner = text
            .expose()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_suffix(']'))
            .ok_or_else(shape)?;
        let field = |name: &str| {
            let mut fields = inner.split(',');
            fields
                .find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))
                .ok_or_else(shape)
        };
        let bytes = |name: &str| STANDARD.decode(field(name)?).map_err(|_| shape());
        let (mut sealed, iv, tag) = (bytes("data")?, bytes("iv")?, bytes("tag")?);
        let iv: [u8; 32] = iv.try_into().map_err(|_| shape())?;
        if tag.len() != 16 {
            return Err(shape());
        }
        sealed.extend(tag);
        let payload = Payload {
            msg: &sealed,
            aad: bound.as_bytes(),
        };
        let plain = self.cipher.decrypt(&iv.into(), payload);
        let plain =
            plain.map_err(|_| damaged("was changed after sops encrypted it, or a value was moved"))?;
        let plain = String::from_utf8(plain).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            damaged("holds a value that is not text")
        })?;
        let (kind, plain) = match field("type")? {
            "str" | "bytes" => (Kind::Text, plain),
            "int" | "int64" => (Kind::Integer, plain),
            "float" => (Kind::Float, plain),
            "bool" => (Kind::Bool, plain.to_ascii_lowercase()),
            _ => return Err(shape()),
        };
        Ok((kind, SecretText::new(plain)))
    }
}
