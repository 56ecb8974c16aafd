//! Values that hold several properties, `value,key=value,…`: what each may hold, and how a wrong one is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use crate::Version;
use crate::schema::{self, Parameter};
use crate::wire::{Given, Refusal};

const TABLE: &str = include_str!("properties.table");

/// A format of such values.
#[derive(Debug, Clone)]
pub struct Properties {
    /// What the other tables call it.
    pub name: String,
    /// The property whose name may be left out.
    pub default_key: Option<String>,
    /// What a value may hold.
    pub parameters: Vec<Parameter>,
}

/// All formats of the table.
pub fn formats() -> &'static [Properties] {
    static FORMATS: OnceLock<Vec<Properties>> = OnceLock::new();
    FORMATS.get_or_init(|| schema::rows(TABLE).map(format).collect())
}

fn format(row: &str) -> Properties {
    let mut words = row.split_whitespace();
    let name = words.next().unwrap_or_default().to_owned();
    let mut default_key = None;
    let parameters = words
        .map(|word| {
            let parameter = schema::parameter(word.trim_start_matches('*'));
            if word.starts_with('*') {
                default_key = Some(parameter.name.clone());
            }
            parameter
        })
        .collect();
    Properties {
        name,
        default_key,
        parameters,
    }
}

/// The format of this name, if it is one of such values.
pub(crate) fn named(name: &str) -> Option<&'static Properties> {
    formats().iter().find(|format| format.name == name)
}

impl Properties {
    /// Refuses everything wrong with a value, in the genuine words.
    pub(crate) fn check(&self, path: &str, value: &str, version: Version) -> Result<(), String> {
        let mut errors: BTreeMap<&str, String> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for part in value.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some(both) => both,
                None => match self.default_key.as_deref().filter(|key| !seen.contains(key)) {
                    Some(key) => (key, part),
                    None => {
                        return Err(format!(
                            "invalid format - value without key, but schema does not define a default key: {part}\n"
                        ));
                    }
                },
            };
            if !seen.insert(key) {
                return Err(format!(
                    "invalid format - duplicate key in comma-separated list property: {key}\n"
                ));
            }
            let known = self.known(version).find(|parameter| parameter.name == key);
            let wrong = match known {
                None => Some(Refusal::unknown_text()),
                Some(parameter) => {
                    schema::check(key, &parameter.kind, &Given::One(value.to_owned()), version).err()
                }
            };
            if let Some(text) = wrong {
                errors.insert(key, text);
            }
        }
        let missing = self.known(version).filter(|parameter| !parameter.optional);
        for parameter in missing.filter(|parameter| !seen.contains(parameter.name.as_str())) {
            errors.insert(
                &parameter.name,
                "property is missing and it is not optional".into(),
            );
        }
        if errors.is_empty() {
            return Ok(());
        }
        let lines: String = errors
            .iter()
            .map(|(key, text)| format!("{path}.{key}: {text}\n"))
            .collect();
        Err(format!("invalid format - format error\n{lines}\n"))
    }

    fn known(&self, version: Version) -> impl Iterator<Item = &Parameter> {
        let is_there = move |parameter: &&Parameter| parameter.only.is_none_or(|only| only == version);
        self.parameters.iter().filter(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(format: &str, value: &str, version: Version) -> String {
        match named(format).unwrap().check(format, value, version) {
            Ok(()) => String::new(),
            Err(text) => text,
        }
    }

    #[test]
    fn what_a_value_may_hold_is_known_and_all_that_is_wrong_is_said() {
        let net = "virtio=02:A1:00:00:03:E8,bridge=vmbr1,firewall=0";
        assert_eq!(said("net", net, Version::V8), "");
        let wrong = said(
            "net",
            "virtio=03:A1:00:00:03:E8,bridge=vmbr1,colour=red",
            Version::V8,
        );
        assert!(
            wrong.contains("net.colour: property is not defined") && wrong.contains("unicast MAC"),
            "{wrong}"
        );
        assert!(said("net", "virtio,virtio", Version::V8).contains("value without key"));
        assert!(said("net", "virtio,tag=1,tag=2", Version::V9).contains("duplicate key"));
        assert_eq!(
            said("memory", "8", Version::V9),
            "invalid format - format error\nmemory.current: value must have a minimum value of 16\n\n"
        );
    }

    #[test]
    fn releases_differ_in_what_they_know() {
        let frozen = "enabled=1,freeze-fs=0";
        assert_eq!(said("agent", frozen, Version::V9), "");
        assert!(said("agent", frozen, Version::V8).contains("freeze-fs: property is not defined"));
    }

    #[test]
    fn addresses_and_snippets_are_looked_at() {
        for (format, value, is_right) in [
            ("ipconfig", "ip=10.77.0.9/16,gw=10.77.0.1", true),
            ("ipconfig", "ip=dhcp,ip6=auto", true),
            ("ipconfig", "ip=10.77.0.9", false),
            ("ipconfig", "ip=10.77.0.9/16,gw=10.77.0.300", false),
            ("cicustom", "user=local:snippets/a.yaml", true),
            ("cicustom", "user=a.yaml", false),
            (
                "smbios",
                "uuid=7044d74f-1b98-4cfc-9c6c-f23016492a02,base64=1,serial=YQ==",
                true,
            ),
            ("smbios", "uuid=7044", false),
            ("drive", "local:8,iothread=1,format=qcow2", true),
            ("drive", "local:8,iothread=2", false),
        ] {
            let text = said(format, value, Version::V9);
            assert_eq!(text.is_empty(), is_right, "{format} {value}: {text}");
        }
    }
}
