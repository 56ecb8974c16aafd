//! YAML and JSON as a tree whose scalars are secrets: in the order of the text, with places, duplicates kept.
//!
//! Typed readers put what they refuse into their messages. This one is told nothing about what it reads, and so has
//! nothing to say about it.

use std::fmt;
use std::marker::PhantomData;

use agentlab_protocol::secret::SecretText;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Spanned};

use crate::SecretsError;

/// A place in a text; line 0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
        }
    }
}

/// What a scalar was written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Float,
    Bool,
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// Its place alone: where keys are free, a slip of the pen makes a key of a value.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.place)
    }
}

#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Scalar(Kind, SecretText),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn of(value: Value) -> Self {
        Self {
            place: Place::default(),
            value,
        }
    }

    /// The node of a key of a mapping.
    pub(crate) fn at(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            Value::Null | Value::Scalar(..) | Value::List(_) => None,
        }
    }

    /// A key of this node, or of one below, that is too long to be written.
    pub(crate) fn overlong_key(&self) -> Option<Place> {
        match &self.value {
            Value::Map(entries) => entries.iter().find_map(|entry| {
                let overlong = (entry.key.len() > LONGEST_KEY).then_some(entry.place);
                overlong.or_else(|| entry.node.overlong_key())
            }),
            Value::List(items) => items.iter().find_map(Self::overlong_key),
            Value::Null | Value::Scalar(..) => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&SecretText> {
        match &self.value {
            Value::Scalar(_, text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// YAML wants a key and its colon within 1024 characters of a line, and escaped a byte may take six.
pub(crate) const LONGEST_KEY: usize = 160;
/// Sequences and mappings inside each other; a bundle goes four deep, settings of an agent a little deeper.
const MAX_DEPTH: usize = 32;
/// Nobody writes a bundle with aliases; a text of nested ones must not fill the memory.
const MAX_ALIASED: usize = 100;

/// Reads one document. What begins with `{` is JSON.
pub(crate) fn read(bytes: &[u8], label: &str) -> Result<Node, SecretsError> {
    let syntax = |form, place| SecretsError::Syntax {
        label: label.to_owned(),
        form,
        place,
    };
    let text = std::str::from_utf8(bytes).map_err(|_| syntax("text", Place::default()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(Bare(raw)) = serde_json::from_str::<Bare>(text)
    {
        return Ok(Node::of(raw.into_value()));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIASED },
    };
    let mut documents: Vec<Placed> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            syntax(
                "YAML or JSON",
                error.location().map(Place::from).unwrap_or_default(),
            )
        })?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document.into_node()),
        (Some(_), false) => Err(SecretsError::Damaged {
            label: label.to_owned(),
            reason: "holds several documents, and a bundle is one".to_owned(),
        }),
        (None, _) => Ok(Node::of(Value::Null)),
    }
}

/// A node as serde reads it, below a way of knowing places or of not knowing them.
enum Raw<I: Item> {
    Null,
    Scalar(Kind, SecretText),
    List(Vec<I>),
    Map(Vec<(I::Key, I)>),
}

trait Item: DeserializeOwned {
    type Key: DeserializeOwned;
    fn into_node(self) -> Node;
    fn key(key: Self::Key) -> (String, Place);
}

/// Out of YAML.
struct Placed(Spanned<Raw<Placed>>);

/// Out of JSON.
struct Bare(Raw<Bare>);

impl Item for Placed {
    type Key = Spanned<String>;

    fn into_node(self) -> Node {
        let place = Place::from(self.0.referenced);
        Node {
            place,
            value: self.0.value.into_value(),
        }
    }

    fn key(key: Spanned<String>) -> (String, Place) {
        (key.value, Place::from(key.referenced))
    }
}

impl Item for Bare {
    type Key = String;

    fn into_node(self) -> Node {
        Node::of(self.0.into_value())
    }

    fn key(key: String) -> (String, Place) {
        (key, Place::default())
    }
}

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self)
    }
}

impl<I: Item> Raw<I> {
    fn into_value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Scalar(kind, text) => Value::Scalar(kind, text),
            Self::List(items) => Value::List(items.into_iter().map(I::into_node).collect()),
            Self::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, item)| {
                        let (key, place) = I::key(key);
                        Entry {
                            key,
                            place,
                            node: item.into_node(),
                        }
                    })
                    .collect(),
            ),
        }
    }

    fn scalar(kind: Kind, text: String) -> Self {
        Self::Scalar(kind, SecretText::new(text))
    }
}

impl<'de, I: Item> Deserialize<'de> for Raw<I> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor(PhantomData))
    }
}

struct RawVisitor<I>(PhantomData<I>);

impl<'de, I: Item> Visitor<'de> for RawVisitor<I> {
    type Value = Raw<I>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Bool, value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Integer, value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Integer, value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Integer, value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Integer, value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Float, value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Text, value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw<I>, E> {
        Ok(Raw::scalar(Kind::Text, value))
    }

    fn visit_unit<E>(self) -> Result<Raw<I>, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw<I>, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw<I>, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw<I>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw<I>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
