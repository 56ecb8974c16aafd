//! Tasks: work that PVE goes on with after it has answered.
//!
//! An answer of 200 with a UPID says that a worker was begun. Most of what can be refused is refused inside it.

use std::str::FromStr;
use std::time::Duration;

use crate::pve::{Fields, Read, Refusal, without_seed};

use super::request::encoded;

/// Shortest and longest wait between two looks at what is under way.
const FIRST_LOOK: Duration = Duration::from_millis(30);
const SLOWEST_LOOK: Duration = Duration::from_secs(1);
/// Lines of a log that are shown, which are its last.
const LOG_LINES: usize = 20;
/// Lines that are asked for at once.
const LOG_PAGE: usize = 500;
/// Longest log that is read to its end: a copy says every second how far it is.
const MOST_PAGES: usize = 40;

/// How long to wait before the next look at what has been under way for so long: a part of that, so that its end is never
/// noticed late by much of what it took, and one that takes long is asked after seldom.
pub(crate) fn pause(under_way: Duration) -> Duration {
    (under_way / 10).clamp(FIRST_LOOK, SLOWEST_LOOK)
}

/// `UPID:node:pid:pstart:start:type:id:user:`, as PVE gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upid {
    text: String,
    node: String,
}

impl FromStr for Upid {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["UPID", node, pid, pstart, start, kind, _, user, ""] = parts.as_slice() else {
            return Err(());
        };
        let hexadecimal = |part: &&str, most: usize| {
            (8..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let fits = hexadecimal(pid, 8)
            && hexadecimal(pstart, 9)
            && hexadecimal(start, 8)
            && !node.is_empty()
            && node
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
            && !kind.is_empty()
            && !user.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits {
            return Err(());
        }
        Ok(Self {
            text: text.to_owned(),
            node: (*node).to_owned(),
        })
    }
}

impl Upid {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn status(&self) -> Read {
        Read::new(format!(
            "/nodes/{}/tasks/{}/status",
            self.node,
            encoded(&self.text)
        ))
    }

    fn log(&self, from: usize) -> Read {
        Read::new(format!("/nodes/{}/tasks/{}/log", self.node, encoded(&self.text)))
            .with("start", from)
            .with("limit", LOG_PAGE)
    }

    /// The questions after which its log has been read to its end: PVE answers from the beginning, and why a task failed
    /// is said last.
    pub(crate) fn log_pages(&self) -> impl Iterator<Item = Read> {
        (0..MOST_PAGES).map(|page| self.log(page * LOG_PAGE))
    }
}

/// The last lines of a log that is read page by page.
#[derive(Debug, Default)]
pub(crate) struct LogTail(Vec<String>);

impl LogTail {
    /// Takes a page in; whether another one may follow.
    pub(crate) fn take(&mut self, page: serde_json::Value) -> bool {
        let lines = Fields::list(page).unwrap_or_default();
        self.0.extend(
            lines
                .iter()
                .filter_map(|line| Some(without_seed(&line.text("t")?))),
        );
        let surplus = self.0.len().saturating_sub(LOG_LINES);
        self.0.drain(..surplus);
        lines.len() == LOG_PAGE
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0
    }
}

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    Done,
    /// It is done, and something in its log should be looked at.
    DoneWithWarnings,
    /// It ended with this.
    Failed(String),
}

impl Standing {
    pub(crate) fn of(answer: serde_json::Value) -> Result<Self, Refusal> {
        let fields = Fields::of(answer).unwrap_or_default();
        match (
            fields.text("status").as_deref(),
            fields.text("exitstatus").as_deref(),
        ) {
            (Some("running"), _) => Ok(Self::Running),
            (Some("stopped"), Some("OK")) => Ok(Self::Done),
            (Some("stopped"), Some(end)) if is_warnings(end) => Ok(Self::DoneWithWarnings),
            (Some("stopped"), Some(end)) => Ok(Self::Failed(end.to_owned())),
            (Some("stopped"), None) => Err(Refusal::unknown("its task ended, and PVE does not say how")),
            _ => Err(Refusal::unknown("PVE does not say how its task stands")),
        }
    }
}

/// `WARNINGS: 2`.
fn is_warnings(end: &str) -> bool {
    end.strip_prefix("WARNINGS: ")
        .is_some_and(|count| !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_upid_that_was_seen_is_read() {
        for text in [
            "UPID:pve8:00001433:000A5657:6B008793:qmclone:9000:agentlab@pve!lp:",
            "UPID:pve8:000014A2:000A5DD9:6B0087A7:imgdel:777@local:root@pam!root:",
            "UPID:pve-9:00001433:1000A5657:6B008793:qmmove:130-scsi0>101-scsi3:root@pam:",
            "UPID:pve8:00001433:000A5657:6B008793:aptupdate::root@pam:",
        ] {
            let upid: Upid = text.parse().unwrap();
            assert_eq!(upid.as_str(), text);
            assert!(!upid.status().path.contains('>'), "{}", upid.status().path);
        }
        for text in [
            "",
            "UPID:nope:",
            "UPID:../x:00001433:000A5657:6B008793:t:1:root@pam:",
            "null",
        ] {
            assert_eq!(text.parse::<Upid>(), Err(()), "{text}");
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_shown_whatever_letters_are_in_it() {
        let upid: Upid = "UPID:pve8:00001433:000A5657:6B008793:qmclone:9000:agentlab@pve!lp:"
            .parse()
            .unwrap();
        let log: Vec<String> = (0..1234).map(|n| format!("{n} % übertragen")).collect();
        let mut tail = LogTail::default();
        let mut asked = 0;
        for page in upid.log_pages() {
            let value = |key: &str| {
                let mut query = page.query.iter();
                let found = query.find(|(found, _)| *found == key);
                found.and_then(|(_, value)| value.parse::<usize>().ok()).unwrap()
            };
            let lines = log.iter().enumerate().skip(value("start")).take(value("limit"));
            let lines: Vec<_> = lines.map(|(n, text)| json!({ "n": n + 1, "t": text })).collect();
            asked += 1;
            if !tail.take(json!(lines)) {
                break;
            }
        }
        assert_eq!(asked, 3);
        assert_eq!(tail.into_lines(), log[1234 - LOG_LINES..]);
    }

    #[test]
    fn a_log_that_quotes_a_command_is_kept_without_the_seed_in_it() {
        let seed = "QUxzZA".repeat(40);
        let mut tail = LogTail::default();
        tail.take(json!([{ "n": 1, "t": format!("kvm -smbios 'type=1,serial={seed}' -no-shutdown") }]));
        assert_eq!(
            tail.into_lines(),
            ["kvm -smbios 'type=1,serial=[redacted]' -no-shutdown"]
        );
    }

    #[test]
    fn warnings_are_success_and_an_end_without_a_word_is_not() {
        let standing = |answer| Standing::of(answer);
        assert_eq!(standing(json!({"status": "running"})), Ok(Standing::Running));
        assert_eq!(
            standing(json!({"status": "stopped", "exitstatus": "OK"})),
            Ok(Standing::Done)
        );
        let warned = json!({"status": "stopped", "exitstatus": "WARNINGS: 1"});
        assert_eq!(standing(warned), Ok(Standing::DoneWithWarnings));
        let failed = json!({"status": "stopped", "exitstatus": "WARNINGS: none"});
        assert!(matches!(standing(failed), Ok(Standing::Failed(_))));
        assert!(standing(json!({"status": "stopped"})).is_err());
        assert!(standing(json!(null)).is_err());
    }
}
