//! Records are at home on the machine that made them. A copy of them that comes up elsewhere, as a backup or a disk that
//! was taken along does, names sandboxes that another daemon looks after: their stamps fit, and so this one would end
//! their leases, undo what seems half made, and destroy them.

use std::io::ErrorKind;
use std::path::Path;

use agentlab_store::Store;
use sha2::{Digest as _, Sha256};

use crate::error::StartError;
use crate::keys;

const FILE: &str = "machine";
const MACHINE_ID: &str = "/etc/machine-id";

/// Refuses records of another machine that name living sandboxes. Without any they are at home here from now on.
pub(crate) async fn settle(data_dir: &Path, store: &Store) -> Result<(), StartError> {
    let Some(own) = machine(Path::new(MACHINE_ID)) else {
        tracing::debug!("this system has no machine-id, and any records are taken for its own");
        return Ok(());
    };
    if is_home(data_dir, &own)? {
        return Ok(());
    }
    let living = store.sandboxes(false).await?.len();
    take_over(data_dir, &own, living)
}

/// What stands for this machine in a file: machine-id(5) itself is not to be told.
fn machine(id_path: &Path) -> Option<String> {
    let id = std::fs::read_to_string(id_path).ok()?;
    let id = id.trim();
    let is_one = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then(|| hex::encode(Sha256::digest(format!("agentlab data directory of {id}"))))
}

fn is_home(data_dir: &Path, own: &str) -> Result<bool, StartError> {
    let path = data_dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(found) => Ok(found.trim() == own),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            keys::write(&path, own.as_bytes()).map(|()| true)
        }
        Err(source) => Err(StartError::File {
            action: "Reading",
            path,
            source,
        }),
    }
}

fn take_over(data_dir: &Path, own: &str, living: usize) -> Result<(), StartError> {
    let path = data_dir.join(FILE);
    if living > 0 {
        return Err(StartError::AnotherMachine { living, path });
    }
    tracing::warn!(data_dir = %data_dir.display(), "records of another machine without living sandboxes are taken over");
    keys::write(&path, own.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_machine_are_taken_over_only_without_living_sandboxes() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path();
        assert!(is_home(data_dir, "here").unwrap(), "new records");
        assert!(is_home(data_dir, "here").unwrap());
        assert!(!is_home(data_dir, "there").unwrap());
        let words = take_over(data_dir, "there", 2).unwrap_err().to_string();
        assert!(
            words.contains("(2)") && words.contains(&*data_dir.join(FILE).to_string_lossy()),
            "{words}"
        );
        assert!(is_home(data_dir, "here").unwrap(), "a refusal changes nothing");
        take_over(data_dir, "there", 0).unwrap();
        assert!(is_home(data_dir, "there").unwrap());
    }

    #[test]
    fn a_machine_is_known_by_a_whole_id_which_is_not_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        assert_eq!(machine(&path), None);
        let mut known = Vec::new();
        for (text, is_one) in [
            ("", false),
            ("uninitialized\n", false),
            ("0123456789abcdef0123456789abcdef\n", true),
            ("1123456789abcdef0123456789abcdef\n", true),
        ] {
            std::fs::write(&path, text).unwrap();
            let found = machine(&path);
            assert_eq!(found.is_some(), is_one, "{text:?}");
            known.extend(found);
        }
        assert_ne!(known[0], known[1]);
        assert!(!known[0].contains("0123456789abcdef"), "{}", known[0]);
    }
}
