//! Tables, field lists, durations and sizes, as people read them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use agentlab_api::{BackendTrouble, BackendTroubleKind, JobState, SandboxState};
use anstyle::Style;
use jiff::{Timestamp, Unit};

use crate::printer::{BAD, BOLD, CAUTION, DIM, GOOD};
use crate::terminal::escape;

/// Columns under headings. Cells are escaped here, so that nothing a guest chose slips through.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|heading| ((*heading).to_owned(), BOLD))
                    .collect(),
            ],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let escaped = |cell: Cell| match escape(&cell.text) {
            Cow::Borrowed(_) => (cell.text, cell.style),
            Cow::Owned(text) => (text, cell.style),
        };
        self.rows.push(cells.into_iter().map(escaped).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|(text, _)| text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, ((cell, style), width)) in row.iter().zip(&widths).enumerate() {
                let last = column + 1 == row.len();
                let padding = if last { 0 } else { width - cell.chars().count() + 2 };
                // Writing to a String cannot fail.
                let _ = write!(text, "{style}{cell}{style:#}{:padding$}", "");
            }
            text.push('\n');
        }
        text
    }
}

/// One cell.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(text: impl ToString, style: Style) -> Self {
        Self {
            text: text.to_string(),
            style,
        }
    }
}

/// A plain cell.
pub(crate) fn cell(text: impl ToString) -> Cell {
    Cell {
        text: text.to_string(),
        style: Style::new(),
    }
}

/// `name  value` lines, for one thing. Values are escaped.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    fields: Vec<(&'static str, String)>,
}

impl Fields {
    pub(crate) fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.fields.push((name, value.to_string()));
        self
    }

    pub(crate) fn add_some(&mut self, name: &'static str, value: Option<impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.add(name, value);
        }
        self
    }

    /// A moment, and how long ago it was.
    pub(crate) fn add_time(&mut self, name: &'static str, moment: Timestamp) -> &mut Self {
        self.add(name, format!("{} ({})", time(moment), ago(moment)))
    }

    pub(crate) fn render(&self) -> String {
        let width = self.fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.fields {
            for (index, line) in value.lines().enumerate() {
                let name = if index == 0 { *name } else { "" };
                text.push_str(&format!("{DIM}{name:width$}{DIM:#}  {}\n", escape(line)));
            }
        }
        text
    }
}

/// How a job's state looks.
pub(crate) fn job_style(state: JobState) -> Style {
    match state {
        JobState::Completed => GOOD,
        JobState::Failed | JobState::Timeout => BAD,
        JobState::Cancelled => CAUTION,
        JobState::Queued | JobState::Running => BOLD,
    }
}

/// How a sandbox's state looks.
pub(crate) fn sandbox_style(state: SandboxState) -> Style {
    match state {
        SandboxState::Ready | SandboxState::Running => GOOD,
        SandboxState::Failed => BAD,
        SandboxState::Timeout => CAUTION,
        SandboxState::Requested
        | SandboxState::Provisioning
        | SandboxState::Booting
        | SandboxState::Suspended => BOLD,
        SandboxState::Stopped | SandboxState::Destroyed => DIM,
    }
}

/// `0.08 s`, `3.2 s`, `2 min 5 s`, `3 h 2 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match seconds {
        0 => format!("0.{:02} s", millis / 10),
        1..60 => format!("{seconds}.{} s", millis / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A time that somebody wrote down: `45 s`, `5 min`, `1 h 30 min`, `2 h`.
pub(crate) fn span(seconds: u32) -> String {
    let parts = [
        (seconds / 3600, "h"),
        (seconds % 3600 / 60, "min"),
        (seconds % 60, "s"),
    ];
    let said = parts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = said.map(|(count, unit)| format!("{count} {unit}")).collect();
    if words.is_empty() {
        "0 s".to_owned()
    } else {
        words.join(" ")
    }
}

/// The same of whole minutes.
pub(crate) fn minutes(minutes: u32) -> String {
    span(minutes.saturating_mul(60))
}

/// Time from one moment to a later one; nothing when the clock went back.
pub(crate) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// `3 min ago`: the larger unit only.
pub(crate) fn ago(moment: Timestamp) -> String {
    let seconds = between(moment, Timestamp::now()).as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// What the hypervisor's trouble means for what is shown beside it.
pub(crate) fn in_trouble(trouble: &BackendTrouble) -> String {
    let (what, so) = match trouble.kind {
        BackendTroubleKind::Unreachable => (
            "cannot be reached",
            "what is shown of sandboxes is what was known then",
        ),
        BackendTroubleKind::TakesNoChanges => {
            ("takes no changes", "what runs goes on, what is asked for waits")
        }
    };
    let since = time(trouble.since);
    format!(
        "the back end {what} since {since} ({}): {so}; {}",
        ago(trouble.since),
        trouble.reason
    )
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn time(moment: Timestamp) -> String {
    moment.round(Unit::Second).unwrap_or(moment).to_string()
}

/// `17 B`, `1.4 KiB`, `3.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_people_say_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (90, "1 min 30 s"),
            (300, "5 min"),
            (7200, "2 h"),
            (5405, "1 h 30 min 5 s"),
        ] {
            assert_eq!(span(seconds), text);
        }
        for (millis, text) in [
            (80, "0.08 s"),
            (3200, "3.2 s"),
            (125_000, "2 min 5 s"),
            (10_920_000, "3 h 2 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn a_cell_cannot_break_out_of_its_table() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row([cell("a\nb\u{1b}[2J"), cell("UP")]);
        let text = table.render();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("a\\x0ab\\x1b[2J"), "{text}");
    }
}
