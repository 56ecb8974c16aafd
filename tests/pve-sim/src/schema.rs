//! Which methods there are, what each takes, and how a wrong parameter is refused.
//!
//! The tables beside this file are written by hand; the test `tables` holds them against the schema of genuine
//! releases where that is at hand.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::Version;
use crate::formats;
use crate::wire::{Given, Parameters, Refusal};

const METHODS: &str = include_str!("methods.table");
const CONFIG: &str = include_str!("config.table");
/// Parameters of a change of configuration that are no keys of it.
const CHANGE: &str =
    "delete?=configids digest?=text(..40) force?=bool->delete revert?=configids skiplock?=bool";
/// What the variables of a path must look like.
const PATH: &[(&str, &str)] = &[
    ("node", "nodeid"),
    ("vmid", "vmid"),
    ("pos", "int(0..)"),
    ("storage", "storageid"),
    ("snapname", "configid"),
    ("poolid", "poolid"),
    ("roleid", "roleid"),
    ("userid", "userid"),
];

/// What a value must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Text within lengths.
    Text(usize, usize),
    /// A whole number within bounds.
    Integer(i64, i64),
    /// A number within bounds.
    Number(f64, f64),
    /// 0 or 1 in any spelling.
    Boolean,
    /// One of these words.
    Enumeration(Vec<String>),
    /// Several texts.
    List,
    /// Text of a named format.
    Format(String),
}

/// One parameter of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name; `net[n]` stands for `net0` to `net31`.
    pub name: String,
    /// What it must be.
    pub kind: Kind,
    /// Whether it may be left out.
    pub optional: bool,
    /// Another parameter it makes no sense without.
    pub requires: Option<String>,
    /// The only release that has it; `None` for both.
    pub only: Option<Version>,
}

/// One method.
#[derive(Debug, Clone)]
pub struct Method {
    /// `METHOD /path/{variable}`.
    pub name: String,
    /// Whether the privileged daemon serves it: answers later than 30 s are lost.
    pub protected: bool,
    /// Who may call it, in the words of the table.
    pub permission: String,
    /// What it takes, the variables of its path included.
    pub parameters: Vec<Parameter>,
}

/// A key of a VM's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) parameter: Parameter,
    pub(crate) privilege: String,
    pub(crate) at_once: bool,
}

/// All methods of the table.
pub fn methods() -> &'static [Method] {
    static TABLE: OnceLock<Vec<Method>> = OnceLock::new();
    TABLE.get_or_init(|| rows(METHODS).map(method).collect())
}

pub(crate) fn keys() -> &'static [Key] {
    static TABLE: OnceLock<Vec<Key>> = OnceLock::new();
    TABLE.get_or_init(|| rows(CONFIG).map(key).collect())
}

/// The configuration key that a name such as `scsi1` belongs to.
pub(crate) fn key_of(name: &str) -> Option<&'static Key> {
    keys().iter().find(|key| stands_for(&key.parameter.name, name))
}

pub(crate) fn rows(table: &'static str) -> impl Iterator<Item = &'static str> {
    table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn method(row: &str) -> Method {
    let mut parts = row.split(';').map(str::trim);
    let call = parts.next().unwrap_or_default();
    let permission = parts.next().unwrap_or_default().to_owned();
    let takes = parts.next().unwrap_or_default();
    let (verb, path) = call.split_once(' ').unwrap_or_default();
    let protected = path.starts_with('*');
    let path = path.trim_start_matches(['*', '/']);
    let mut parameters: Vec<Parameter> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(variable)
        .collect();
    for word in takes.split_whitespace() {
        match word {
            "@config" => parameters.extend(keys().iter().map(|key| key.parameter.clone())),
            "@change" => parameters.extend(CHANGE.split_whitespace().map(parameter)),
            _ => parameters.push(parameter(word)),
        }
    }
    Method {
        name: format!("{verb} /{path}"),
        protected,
        permission,
        parameters,
    }
}

fn variable(name: &str) -> Parameter {
    let kind = PATH
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("text", |(_, kind)| kind);
    Parameter {
        name: name.to_owned(),
        kind: kind_of(kind),
        optional: false,
        requires: None,
        only: None,
    }
}

fn key(row: &str) -> Key {
    let mut words = row.split_whitespace();
    let (name, kind) = words
        .next()
        .and_then(|word| word.split_once('='))
        .unwrap_or_default();
    Key {
        parameter: Parameter {
            optional: true,
            ..parameter(&format!("{name}?={kind}"))
        },
        privilege: words.next().unwrap_or_default().to_owned(),
        at_once: words.next() == Some("now"),
    }
}

pub(crate) fn parameter(word: &str) -> Parameter {
    let (word, requires) = match word.split_once("->") {
        Some((word, requires)) => (word, Some(requires.to_owned())),
        None => (word, None),
    };
    let (only, word) = match word.split_at_checked(2) {
        Some(("8:", rest)) => (Some(Version::V8), rest),
        Some(("9:", rest)) => (Some(Version::V9), rest),
        _ => (None, word),
    };
    let (name, kind) = word.split_once('=').unwrap_or((word, "text"));
    Parameter {
        name: name.trim_end_matches('?').to_owned(),
        kind: kind_of(kind),
        optional: name.ends_with('?'),
        requires,
        only,
    }
}

fn kind_of(text: &str) -> Kind {
    let (name, inside) = text
        .strip_suffix(')')
        .and_then(|text| text.split_once('('))
        .unwrap_or((text, ""));
    let (low, high) = inside.split_once("..").unwrap_or_default();
    match name {
        "text" => Kind::Text(low.parse().unwrap_or(0), high.parse().unwrap_or(usize::MAX)),
        "int" => Kind::Integer(low.parse().unwrap_or(i64::MIN), high.parse().unwrap_or(i64::MAX)),
        "num" => Kind::Number(low.parse().unwrap_or(f64::MIN), high.parse().unwrap_or(f64::MAX)),
        "bool" => Kind::Boolean,
        "list" => Kind::List,
        "enum" => Kind::Enumeration(inside.split('|').map(str::to_owned).collect()),
        format => Kind::Format(format.to_owned()),
    }
}

/// Whether a parameter of the table stands for this name.
fn stands_for(table: &str, name: &str) -> bool {
    match table.strip_suffix("[n]") {
        Some(stem) => name.strip_prefix(stem).is_some_and(|number| {
            !number.is_empty() && number.len() < 4 && number.bytes().all(|b| b.is_ascii_digit())
        }),
        None => table == name,
    }
}

/// The method a call reaches, with the variables of its path.
pub(crate) fn find(verb: &str, path: &[String]) -> Option<(&'static Method, BTreeMap<String, String>)> {
    methods().iter().find_map(|method| {
        let (of, template) = method.name.split_once(" /")?;
        let template: Vec<&str> = template.split('/').collect();
        if of != verb || template.len() != path.len() {
            return None;
        }
        let mut variables = BTreeMap::new();
        for (wanted, part) in template.iter().zip(path) {
            match wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => {
                    variables.insert(name.to_owned(), part.clone());
                }
                None if wanted == part => {}
                None => return None,
            }
        }
        Some((method, variables))
    })
}

/// Refuses everything wrong with what was given, at once.
pub(crate) fn verify(method: &Method, version: Version, given: &Parameters) -> Result<(), Refusal> {
    let mut errors = BTreeMap::new();
    let known = |parameter: &&Parameter| parameter.only.is_none_or(|only| only == version);
    for (name, value) in given {
        let of = method
            .parameters
            .iter()
            .filter(known)
            .find(|parameter| stands_for(&parameter.name, name));
        match of {
            None => {
                errors.insert(name.clone(), Refusal::unknown_text());
            }
            Some(parameter) => {
                if let Some(needed) = parameter
                    .requires
                    .as_ref()
                    .filter(|needed| !given.contains_key(*needed))
                {
                    errors.insert(
                        needed.clone(),
                        format!("missing property - '{name}' requires this property"),
                    );
                }
                if let Err(text) = check(name, &parameter.kind, value, version) {
                    errors.insert(name.clone(), text);
                }
            }
        }
    }
    for parameter in method
        .parameters
        .iter()
        .filter(known)
        .filter(|parameter| !parameter.optional)
    {
        if !given.contains_key(&parameter.name) {
            errors.insert(
                parameter.name.clone(),
                "property is missing and it is not optional".into(),
            );
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Parameters(errors))
    }
}

/// What is wrong with one value, in the genuine words. `path` is the name of what it was given for.
pub(crate) fn check(path: &str, kind: &Kind, given: &Given, version: Version) -> Result<(), String> {
    let value = match (kind, given) {
        (Kind::List, _) => return Ok(()),
        (_, Given::One(value)) => value,
        (_, Given::Many(_)) => {
            return Err(format!("type check ('{}') failed - got ARRAY", type_of(kind)));
        }
    };
    match kind {
        Kind::List => Ok(()),
        Kind::Text(least, most) => length(value, *least, *most),
        Kind::Integer(least, most) => {
            let number: i64 = value.parse().map_err(|_| wrong_type(kind, value))?;
            bounds(number < *least, number > *most, least, most)
        }
        Kind::Number(least, most) => {
            let number: f64 = value.parse().map_err(|_| wrong_type(kind, value))?;
            bounds(number < *least, number > *most, least, most)
        }
        Kind::Boolean => flag(value).map(drop).ok_or_else(|| wrong_type(kind, value)),
        Kind::Enumeration(words) if words.contains(value) => Ok(()),
        Kind::Enumeration(words) => Err(format!(
            "value '{value}' does not have a value in the enumeration '{}'",
            words.join(", ")
        )),
        Kind::Format(name) => formats::check(path, name, value, version),
    }
}

fn type_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Integer(..) => "integer",
        Kind::Number(..) => "number",
        Kind::Boolean => "boolean",
        Kind::List => "array",
        Kind::Text(..) | Kind::Enumeration(_) | Kind::Format(_) => "string",
    }
}

fn wrong_type(kind: &Kind, value: &str) -> String {
    format!("type check ('{}') failed - got '{value}'", type_of(kind))
}

fn length(value: &str, least: usize, most: usize) -> Result<(), String> {
    let length = value.chars().count();
    if length > most {
        return Err(format!("value may only be {most} characters long"));
    }
    if length < least {
        return Err(format!("value must be at least {least} characters long"));
    }
    Ok(())
}

fn bounds(
    low: bool,
    high: bool,
    least: &dyn std::fmt::Display,
    most: &dyn std::fmt::Display,
) -> Result<(), String> {
    if high {
        return Err(format!("value must have a maximum value of {most}"));
    }
    if low {
        return Err(format!("value must have a minimum value of {least}"));
    }
    Ok(())
}

/// A boolean in any of its spellings.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}
