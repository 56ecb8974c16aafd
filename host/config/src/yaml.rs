//! The only module, with the one below it, that knows the YAML library. Gives every document twice: typed, and as a tree whose keys and values
//! know their place, so that a range check made later can still point at the line.

mod sentence;

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, Spanned};

use self::sentence::sentence;
use crate::{ConfigError, Fault};

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
        }
    }
}

/// One node of a document.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node is. Scalars keep no text: nothing that reads the tree needs it, and it could be a secret.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar,
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// What an entry is looked for by.
#[derive(Debug, Clone, Copy)]
enum Sought {
    Key(Place),
    Value(Place),
}

/// One document of a text.
#[derive(Debug)]
pub(crate) struct Document<T> {
    pub(crate) value: T,
    pub(crate) root: Node,
}

impl Node {
    /// Place of the key at a path such as `["resources", "cores"]`, or of the deepest part of it that exists.
    pub(crate) fn place_of(&self, path: &[&str]) -> Place {
        let Some((first, rest)) = path.split_first() else {
            return self.place;
        };
        let Value::Mapping(entries) = &self.value else {
            return self.place;
        };
        match entries.iter().find(|entry| entry.key == *first) {
            Some(entry) if rest.is_empty() => entry.key_place,
            Some(entry) => entry.node.place_of(rest),
            None => self.place,
        }
    }

    /// Place of the key of an entry. Where the entry is the only one of its mapping, of the entry that has the mapping:
    /// without any, it would be none.
    fn key_of(&self, sought: Sought) -> Option<Place> {
        let entries = match &self.value {
            Value::Scalar => return None,
            Value::Sequence(items) => return items.iter().find_map(|item| item.key_of(sought)),
            Value::Mapping(entries) => entries,
        };
        entries.iter().find_map(|entry| {
            // A mapping stands where its first key stands.
            let is_it = match sought {
                Sought::Key(place) => entry.key_place == place,
                Sought::Value(place) => entry.node.place == place,
            };
            if is_it {
                return Some(entry.key_place);
            }
            let found = entry.node.key_of(sought)?;
            match &entry.node.value {
                Value::Mapping(below) if below.len() == 1 => Some(entry.key_place),
                Value::Scalar | Value::Sequence(_) | Value::Mapping(_) => Some(found),
            }
        })
    }

    /// Name of the key whose value stands at a place.
    fn key_at(&self, place: Place) -> Option<&str> {
        match &self.value {
            Value::Scalar => None,
            Value::Sequence(items) => items.iter().find_map(|item| item.key_at(place)),
            Value::Mapping(entries) => entries.iter().find_map(|entry| {
                let is_it = entry.node.place == place;
                is_it
                    .then_some(entry.key.as_str())
                    .or_else(|| entry.node.key_at(place))
            }),
        }
    }

    /// Moves all of it down by so many lines.
    fn lower(&mut self, lines: u64) {
        self.place.line += lines;
        match &mut self.value {
            Value::Scalar => {}
            Value::Sequence(items) => items.iter_mut().for_each(|item| item.lower(lines)),
            Value::Mapping(entries) => {
                for entry in entries {
                    entry.key_place.line += lines;
                    entry.node.lower(lines);
                }
            }
        }
    }

    /// Calls `look` with the path and place of every key, at any depth.
    pub(crate) fn walk_keys(&self, path: &str, look: &mut dyn FnMut(&str, &str, Place)) {
        match &self.value {
            Value::Scalar => {}
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.walk_keys(&format!("{path}[{index}]"), look);
                }
            }
            Value::Mapping(entries) => {
                for entry in entries {
                    let path = if path.is_empty() {
                        entry.key.clone()
                    } else {
                        format!("{path}.{}", entry.key)
                    };
                    look(&path, &entry.key, entry.key_place);
                    entry.node.walk_keys(&path, look);
                }
            }
        }
    }
}

/// Every document's tree. Documents that hold only comments are no documents.
pub(crate) fn trees(text: &str, label: &str) -> Result<Vec<Node>, ConfigError> {
    let nodes: Vec<Spanned<RawNode>> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| invalid(&error, label))?;
    Ok(nodes.into_iter().map(RawNode::into_node).collect())
}

/// What stands in a text, and what is wrong with it nevertheless: with faults, the documents only serve to find more.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) documents: Vec<Document<T>>,
    pub(crate) faults: Vec<Fault>,
}

/// Every document, typed. `check` sees all trees first, so that what it refuses is named in its own words rather than
/// as an unknown key. What is refused, unknown or of the wrong kind is then left out and the rest read again: whoever
/// wrote the text is told everything at once.
///
/// # Errors
/// It is no YAML.
pub(crate) fn documents<T: DeserializeOwned>(
    text: &str,
    label: &str,
    check: impl Fn(&Node) -> Vec<(Place, String)>,
) -> Result<Read<T>, ConfigError> {
    trees(text, label)?;
    let mut parts = parts(text);
    if parts.len() > MOST_PARTS || parts.iter().any(|(_, part)| trees(part, label).is_err()) {
        parts = vec![(0, Cow::Borrowed(text))];
    }
    let mut read = Read {
        documents: Vec::new(),
        faults: Vec::new(),
    };
    for (lines_before, part) in parts {
        let mut more = one(&part, label, &check)?;
        for fault in more.faults.iter_mut().filter(|fault| fault.line > 0) {
            fault.line += lines_before;
        }
        for document in &mut more.documents {
            document.root.lower(lines_before);
        }
        read.faults.append(&mut more.faults);
        read.documents.append(&mut more.documents);
    }
    Ok(read)
}

/// A text cut before each `---`, which begins a document wherever it begins a line; and the lines before each part.
fn parts(text: &str) -> Vec<(u64, Cow<'_, str>)> {
    let mut parts: Vec<(u64, Cow<'_, str>)> = Vec::new();
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        match parts.last_mut() {
            Some((_, part)) if !line.starts_with("---") => part.to_mut().push_str(line),
            Some(_) | None => parts.push((number, Cow::Borrowed(line))),
        }
    }
    parts
}

/// [`documents`] of a text that has one, most probably. With faults there may be fewer than in the text.
fn one<T: DeserializeOwned>(
    text: &str,
    label: &str,
    check: impl Fn(&Node) -> Vec<(Place, String)>,
) -> Result<Read<T>, ConfigError> {
    let roots = trees(text, label)?;
    let refused: Vec<(Place, String)> = roots.iter().flat_map(&check).collect();
    let mut faults: Vec<Fault> = refused
        .iter()
        .map(|(place, message)| Fault::new(label, *place, message))
        .collect();
    let nothing = |faults| {
        Ok(Read {
            documents: Vec::new(),
            faults,
        })
    };
    let mut rest = Cow::Borrowed(text);
    // From the end, because an entry may hold others that are refused.
    for (place, _) in refused.into_iter().rev() {
        match without(&rest, Sought::Key(place)).filter(|_| faults.len() < MOST_FAULTS) {
            Some(less) => rest = Cow::Owned(less),
            None => return nothing(faults),
        }
    }
    let values: Vec<T> = loop {
        let error = match serde_saphyr::from_multiple_with_options(&rest, options()) {
            Ok(values) => break values,
            Err(error) => error,
        };
        let error = error.without_snippet();
        // The one that is missing may be the one that was left out, and was named as that.
        let missing = matches!(error, Error::SerdeMissingField { .. });
        let place = error.location().map(Place::from).unwrap_or_default();
        let unknown = matches!(error, Error::SerdeUnknownField { .. });
        let sought = if unknown {
            Sought::Key(place)
        } else {
            Sought::Value(place)
        };
        if !missing || faults.is_empty() {
            let key = roots.iter().find_map(|root| root.key_at(place));
            faults.push(Fault::new(label, place, &sentence(error, key)));
        }
        match without(&rest, sought).filter(|_| !missing && faults.len() < MOST_FAULTS) {
            Some(less) => rest = Cow::Owned(less),
            None => return nothing(faults),
        }
    };
    // A document of which nothing is left is none.
    if values.len() != roots.len() {
        return nothing(faults);
    }
    let documents = values.into_iter().zip(roots);
    Ok(Read {
        documents: documents.map(|(value, root)| Document { value, root }).collect(),
        faults,
    })
}

/// In the order of the text.
pub(crate) fn sorted(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults
}

/// Looking for more ends here.
const MOST_FAULTS: usize = 50;
/// A text of more documents is read in one go: each reading has its price.
const MOST_PARTS: usize = 1_000;

/// The text with blank lines for the entry that is sought, so that all else stays where it is.
/// `None` where there is no such entry, where it shares its lines with others, or where something refers to it.
fn without(text: &str, sought: Sought) -> Option<String> {
    let roots = trees(text, "").ok()?;
    let key = roots.iter().find_map(|root| root.key_of(sought))?;
    let first = usize::try_from(key.line).ok()?.checked_sub(1)?;
    let indent = usize::try_from(key.column).ok()?.checked_sub(1)?;
    let depth = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let mut lines: Vec<&str> = text.lines().collect();
    // A carriage return alone ends a line for YAML, and not for us.
    if depth(lines.get(first)?) != indent || lines.iter().any(|line| line.contains('\r')) {
        return None;
    }
    let belongs = |line: &&&str| {
        let words = line.trim_start_matches(' ');
        // An item of a sequence may stand no deeper than the key of the sequence.
        let item = words == "-" || words.starts_with("- ");
        words.is_empty() || depth(line) > indent || (depth(line) == indent && item)
    };
    let below = lines.get(first + 1..)?.iter().take_while(belongs).count();
    lines.get_mut(first..=first + below)?.fill("");
    let less = lines.join("\n");
    trees(&less, "").is_ok().then_some(less)
}

/// Nodes that aliases may stand for, all together: more than any file of ours has, and few enough that a short text
/// of nested aliases cannot fill the memory.
const MAX_ALIASED: usize = 5_000;
/// Sequences and mappings inside each other. Ours go three deep; the reader takes stack for each.
const MAX_DEPTH: usize = 32;

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIASED },
    }
}

fn invalid(error: &Error, label: &str) -> ConfigError {
    let error = error.without_snippet();
    let place = error.location().map(Place::from).unwrap_or_default();
    ConfigError::Invalid(vec![Fault::new(label, place, &sentence(error, None))])
}

/// [`Node`] as serde reads it.
#[derive(Debug)]
enum RawNode {
    Scalar,
    Sequence(Vec<Spanned<RawNode>>),
    Mapping(Vec<(Spanned<String>, Spanned<RawNode>)>),
}

impl RawNode {
    fn into_node(spanned: Spanned<Self>) -> Node {
        let place = Place::from(spanned.referenced);
        let value = match spanned.value {
            Self::Scalar => Value::Scalar,
            Self::Sequence(items) => Value::Sequence(items.into_iter().map(Self::into_node).collect()),
            Self::Mapping(entries) => Value::Mapping(
                entries
                    .into_iter()
                    .map(|(key, node)| Entry {
                        key_place: Place::from(key.referenced),
                        key: key.value,
                        node: Self::into_node(node),
                    })
                    .collect(),
            ),
        };
        Node { place, value }
    }
}

impl<'de> Deserialize<'de> for RawNode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_unit<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_none<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Scalar)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<RawNode, D::Error> {
        RawNode::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<RawNode, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(RawNode::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawNode, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(RawNode::Mapping(entries))
    }
}
