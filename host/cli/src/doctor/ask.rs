//! The API asked with the daemon's own token. `agentlabd --ask-proxmox` does that: it has TLS and reads the token from
//! config.yaml itself, so that neither is needed here.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::init::programs::Programs;

/// One call. It never changes anything: a probe carries a parameter that no method knows, so that one which is allowed
/// is refused for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Question {
    pub(crate) path: String,
    /// POST with the unknown parameter rather than GET.
    pub(crate) probe: bool,
}

impl Question {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            probe: false,
        }
    }

    pub(crate) fn probe(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            probe: true,
        }
    }
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// The server's own words.
    Said {
        status: u16,
        reason: String,
        #[serde(default)]
        data: Value,
    },
    /// There was none.
    Lost { error: String },
}

/// Everything that came back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Answers {
    /// Full name of the token, without its secret.
    pub(crate) token: String,
    pub(crate) answers: Vec<Answer>,
    /// How far the server's clock is ahead of ours in seconds, by the `Date` of an answer.
    #[serde(default)]
    pub(crate) clock_ahead: Option<i64>,
}

/// Asks all of it in one go.
///
/// # Errors
/// In words: what did not work, of the program or of config.yaml.
pub(crate) async fn ask(
    programs: &Programs,
    config: &Path,
    questions: &[Question],
) -> Result<Answers, String> {
    let argv = [
        "agentlabd".to_owned(),
        "--config".to_owned(),
        config.display().to_string(),
        "--ask-proxmox".to_owned(),
    ];
    let input = serde_json::to_vec(questions).map_err(|error| error.to_string())?;
    let output = programs
        .run(&argv, &input)
        .await
        .map_err(|error| error.to_string())?;
    if output.code != Some(0) {
        return Err(output.words());
    }
    let answers: Answers = serde_json::from_str(&output.stdout)
        .map_err(|error| format!("agentlabd gave an answer that is not understood: {error}"))?;
    if answers.answers.len() != questions.len() {
        return Err("agentlabd did not answer every question; is it of the same version?".to_owned());
    }
    Ok(answers)
}

/// Who asks a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way<'a> {
    /// Root, by the node's own programs: sees everything.
    Root(&'a Programs),
    /// The daemon's token, over the API: sees what it may.
    Token {
        programs: &'a Programs,
        config: &'a Path,
    },
}

impl Way<'_> {
    /// `data` of GET on a path, or in words why there is none.
    pub(crate) async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        match self {
            Self::Root(programs) => {
                let options: Vec<String> = query
                    .iter()
                    .flat_map(|(key, value)| [format!("--{key}"), (*value).to_owned()])
                    .collect();
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                programs
                    .ask(path, &options)
                    .await
                    .map_err(|error| error.to_string())
            }
            Self::Token { programs, config } => {
                let query: Vec<String> = query
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let mark = if query.is_empty() { "" } else { "?" };
                let question = Question::get(format!("{path}{mark}{}", query.join("&")));
                match ask(programs, config, &[question]).await?.answers.pop() {
                    Some(Answer::Said {
                        status: 200, data, ..
                    }) => Ok(data),
                    Some(Answer::Said { status, reason, .. }) => Err(format!("{status} {reason}")),
                    Some(Answer::Lost { error }) => Err(error),
                    None => Err("nothing was answered".to_owned()),
                }
            }
        }
    }

    pub(crate) fn sees_all(&self) -> bool {
        matches!(self, Self::Root(_))
    }
}
