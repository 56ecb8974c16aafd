//! A step as a value: what it does in words, and the exact command that does it.

use std::collections::BTreeMap;

use super::plan::UNSTORED;
use super::privilege::Role;

/// A token of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenName {
    /// `agentlab@pve`.
    pub(crate) user: String,
    /// Its part after the `!`.
    pub(crate) id: String,
}

impl TokenName {
    /// `user@realm!id`.
    pub(crate) fn full(&self) -> String {
        format!("{}!{}", self.user, self.id)
    }

    /// `None` for what is no full name.
    pub(crate) fn parse(full: &str) -> Option<Self> {
        let (user, id) = full.split_once('!')?;
        (user.contains('@') && !id.is_empty()).then(|| Self {
            user: user.to_owned(),
            id: id.to_owned(),
        })
    }

    fn path(&self) -> String {
        format!("/access/users/{}/token/{}", self.user, self.id)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    AddPool(String),
    AddRole(Role),
    /// The role is ours and holds too little or too much.
    SetRole(Role),
    AddUser(String),
    DropToken(TokenName),
    /// Makes it and writes its secret into config.yaml, which nothing else ever sees.
    MakeToken(TokenName),
    /// Its secret is stored.
    MarkToken(TokenName),
    /// It had all that its user may; now only what it is granted itself.
    SeparateToken(TokenName),
    /// To user and token.
    Grant {
        path: String,
        role: &'static str,
        token: TokenName,
        purpose: &'static str,
    },
    /// In config.yaml.
    SetKeys(BTreeMap<&'static str, String>),
}

impl Step {
    /// The program and its arguments; `None` for what is done to config.yaml alone.
    pub(crate) fn argv(&self) -> Option<Vec<String>> {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        match self {
            Self::AddPool(pool) => words(&["pveum", "pool", "add", pool, "--comment", "AgentLab sandboxes"]),
            Self::AddRole(role) => words(&["pveum", "role", "add", role.name, "--privs", &role.list()]),
            Self::SetRole(role) => words(&["pveum", "role", "modify", role.name, "--privs", &role.list()]),
            Self::AddUser(user) => words(&["pveum", "user", "add", user, "--comment", "AgentLab daemon"]),
            Self::DropToken(token) => words(&["pvesh", "delete", &token.path()]),
            Self::MakeToken(token) => words(&[
                "pvesh",
                "create",
                &token.path(),
                "--privsep",
                "1",
                "--comment",
                UNSTORED,
                "--output-format",
                "json",
            ]),
            Self::MarkToken(token) => words(&["pvesh", "set", &token.path(), "--comment", "AgentLab daemon"]),
            Self::SeparateToken(token) => words(&["pvesh", "set", &token.path(), "--privsep", "1"]),
            Self::Grant {
                path, role, token, ..
            } => words(&[
                "pveum",
                "acl",
                "modify",
                path,
                "--roles",
                role,
                "--users",
                &token.user,
                "--tokens",
                &token.full(),
            ]),
            Self::SetKeys(_) => None,
        }
    }

    /// What it is for.
    pub(crate) fn says(&self) -> String {
        match self {
            Self::AddPool(pool) => format!("make pool {pool}, for sandboxes and nothing else"),
            Self::AddRole(role) => format!("make role {}", role.name),
            Self::SetRole(role) => format!("give role {} exactly what it needs", role.name),
            Self::AddUser(user) => format!("make user {user}, who has no password"),
            Self::DropToken(token) => format!(
                "delete token {}, whose secret is lost or to be replaced",
                token.full()
            ),
            Self::MakeToken(token) => format!(
                "make token {} and write its secret into config.yaml",
                token.full()
            ),
            Self::MarkToken(token) => format!("note at token {} that its secret is stored", token.full()),
            Self::SeparateToken(token) => {
                format!("take from token {} what only its user was granted", token.full())
            }
            Self::Grant {
                path, role, purpose, ..
            } => format!("grant {role} on {path} to user and token: {purpose}"),
            Self::SetKeys(keys) => {
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(key, value)| format!("{key}: {value}"))
                    .collect();
                format!("write into config.yaml: {}", keys.join(", "))
            }
        }
    }

    /// The command as it can be typed into a shell.
    pub(crate) fn command(&self) -> Option<String> {
        Some(typed(&self.argv()?))
    }
}

/// Arguments as a shell takes them, quoted where it would see more than letters.
pub(crate) fn typed(argv: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./,:=@+%".contains(&byte);
    argv.iter()
        .map(|word| {
            if !word.is_empty() && word.bytes().all(plain) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}
