//! From a tree to typed fields, collecting everything that is wrong. What is said of a fault never holds a value, and
//! a key only where it cannot be one.

use std::collections::BTreeMap;

use agentlab_protocol::secret::SecretText;

use crate::Fault;
use crate::tree::{Entry, Kind, Node, Place, Value};

/// A key that a malformed text puts where a value belongs may be a secret: only plain words are repeated.
const LONGEST_KEY: usize = 24;

#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) faults: Vec<Fault>,
}

pub(crate) fn below(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A key as it may be shown.
fn plain(key: &str) -> String {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    if key.len() <= LONGEST_KEY && key.bytes().all(word) {
        format!("key `{key}`")
    } else {
        format!("a key of {} characters", key.chars().count())
    }
}

impl Reader {
    pub(crate) fn fault(&mut self, path: &str, place: Place, reason: impl Into<String>) {
        self.faults.push(Fault {
            path: path.to_owned(),
            place,
            reason: reason.into(),
        });
    }

    /// Entries of a mapping, each key once. Nothing is an empty mapping.
    pub(crate) fn entries(&mut self, node: Node, path: &str) -> Vec<Entry> {
        let place = node.place;
        let entries = match node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries,
            Value::Scalar(..) | Value::List(_) => {
                self.fault(path, place, "must hold keys and values");
                Vec::new()
            }
        };
        let mut seen: Vec<Entry> = Vec::new();
        for entry in entries {
            if seen.iter().any(|earlier| earlier.key == entry.key) {
                let what = plain(&entry.key);
                self.fault(path, entry.place, format!("holds {what} twice"));
            } else {
                seen.push(entry);
            }
        }
        seen
    }

    /// The same where only these keys may stand.
    pub(crate) fn known(
        &mut self,
        node: Node,
        path: &str,
        known: &[&'static str],
    ) -> BTreeMap<&'static str, Node> {
        let mut fields = BTreeMap::new();
        for entry in self.entries(node, path) {
            let found = known.iter().find(|key| **key == entry.key);
            if let Some(key) = found {
                fields.insert(*key, entry.node);
                continue;
            }
            let near = known
                .iter()
                .map(|key| (strsim::jaro_winkler(key, &entry.key), key))
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|(left, _), (right, _)| left.total_cmp(right));
            let what = plain(&entry.key);
            let reason = match near {
                Some((_, key)) => format!("holds unknown {what}; did you mean `{key}`?"),
                None => format!("holds unknown {what}; known here: {}", known.join(", ")),
            };
            self.fault(path, entry.place, reason);
        }
        fields
    }

    /// Text, or nothing. A number is refused: YAML may read it as another one than was meant.
    pub(crate) fn text(&mut self, node: Option<Node>, path: &str) -> Option<SecretText> {
        let node = node?;
        match node.value {
            Value::Null => None,
            Value::Scalar(Kind::Text, text) if text.expose().is_empty() => None,
            Value::Scalar(Kind::Text, text) => Some(text),
            Value::Scalar(..) => {
                self.fault(path, node.place, "is not text; put it into quotes");
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.fault(path, node.place, "must be text");
                None
            }
        }
    }

    /// Text of one line, without what a receiver would stumble over.
    pub(crate) fn line(&mut self, node: Option<Node>, path: &str) -> Option<SecretText> {
        let place = node.as_ref().map(|node| node.place).unwrap_or_default();
        let text = self.text(node, path)?;
        let text = match text.expose().trim() {
            trimmed if trimmed.len() == text.expose().len() => text,
            trimmed => SecretText::new(trimmed.to_owned()),
        };
        if text.expose().chars().any(char::is_control) {
            self.fault(path, place, "holds a line end or another control character");
            return None;
        }
        Some(text)
    }

    /// A list of lines.
    pub(crate) fn lines(&mut self, node: Option<Node>, path: &str) -> Vec<String> {
        let Some(node) = node else { return Vec::new() };
        match node.value {
            Value::Null => Vec::new(),
            Value::List(items) => items
                .into_iter()
                .filter_map(|item| self.line(Some(item), path))
                .map(|text| text.expose().to_owned())
                .collect(),
            Value::Scalar(..) | Value::Map(_) => {
                self.fault(path, node.place, "must be a list");
                Vec::new()
            }
        }
    }
}
