//! Questions to Proxmox VE with the daemon's own token, for `agentlab doctor`: the program that has the token and TLS asks,
//! and the one that a person runs needs neither.

use agentlab_backend::proxmox::{Answered, Examiner};
use agentlab_config::{BackendKind, Config};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::StartError;
use crate::wire::proxmox_settings;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    path: String,
    probe: bool,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Said {
        status: u16,
        reason: String,
        data: Value,
    },
    Lost {
        error: String,
    },
}

#[derive(Debug, Serialize)]
struct Answers {
    token: String,
    answers: Vec<Answer>,
    clock_ahead: Option<i64>,
}

/// Asks what the text asks, a JSON list of `{"path": …, "probe": …}`, and gives the answers in its order as one JSON
/// document. A probe tells what is permitted. Nothing is ever changed by it.
///
/// # Errors
/// The configuration names no server that can be asked, or the text is no such list.
pub async fn ask_proxmox(config: &Config, questions: &str) -> Result<String, StartError> {
    let wrong = |key: &'static str| move |reason: String| StartError::Proxmox { key, reason };
    if config.backend != BackendKind::Proxmox {
        return Err(wrong("backend")(
            "is not `proxmox`, so there is no token to ask with".to_owned(),
        ));
    }
    let questions: Vec<Question> = serde_json::from_str(questions).map_err(|error| {
        wrong("backend")(format!(
            "cannot be asked: standard input is no list of questions: {error}"
        ))
    })?;
    let examiner = Examiner::new(&proxmox_settings(config)?).map_err(wrong("proxmox_api_url"))?;
    let began = Timestamp::now();
    let all = join_all(questions.iter().map(|question| async {
        if question.probe {
            examiner.probe(&question.path).await
        } else {
            examiner.get(&question.path).await
        }
    }))
    .await;
    let clock_ahead = all
        .iter()
        .flatten()
        .find_map(|answered| ahead(answered.date.as_deref()?, began, Timestamp::now()));
    let answers = Answers {
        token: examiner.token().to_owned(),
        answers: all.into_iter().map(answer).collect(),
        clock_ahead,
    };
    serde_json::to_string(&answers).map_err(|error| wrong("proxmox_api_url")(error.to_string()))
}

fn answer(answered: Result<Answered, String>) -> Answer {
    match answered {
        Ok(answered) => Answer::Said {
            status: answered.status,
            reason: answered.reason,
            data: answered.data,
        },
        Err(error) => Answer::Lost { error },
    }
}

/// By how many seconds a server's clock is ahead, when its answer came between two moments of ours.
fn ahead(date: &str, from: Timestamp, to: Timestamp) -> Option<i64> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(date)
        .ok()?
        .as_second();
    let (from, to) = (from.as_second(), to.as_second());
    Some(if date < from {
        date - from
    } else {
        (date - to).max(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_only_where_no_moment_of_ours_fits() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (from, to) = (at("2026-01-01T00:00:10Z"), at("2026-01-01T00:00:14Z"));
        for (date, ahead_by) in [
            ("Thu, 01 Jan 2026 00:00:12 GMT", 0),
            ("Thu, 01 Jan 2026 00:00:24 GMT", 10),
            ("Wed, 31 Dec 2025 23:59:10 GMT", -60),
        ] {
            assert_eq!(ahead(date, from, to), Some(ahead_by), "{date}");
        }
        assert_eq!(ahead("soon", from, to), None);
    }
}
