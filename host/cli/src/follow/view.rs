//! How a job looks while it runs and when it is over.

use std::time::Instant;

use agentlab_api::{ArtifactKind, ArtifactView, Event, EventKind, JobState, JobView, LogRecord, LogStream};
use anstyle::Style;
use jiff::Timestamp;

use super::lines::Lines;
use super::{Show, commits, push, secrets_in_it};
use crate::error::CommandError;
use crate::output::{Fields, between, duration, job_style, size};
use crate::printer::{BAD, BOLD, CAUTION, DIM, GOOD, Printer};
use crate::terminal::escape;

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Writes one job's view.
pub(super) struct View<'a> {
    printer: &'a Printer,
    show: Show,
    began: Timestamp,
    lines: Lines,
    /// Last event's words, shown beside the spinner.
    doing: String,
    frame: usize,
    quiet_since: Instant,
}

impl<'a> View<'a> {
    pub(super) fn new(printer: &'a Printer, job: &JobView, show: Show) -> Self {
        Self {
            printer,
            show,
            began: job.created_at,
            lines: Lines::default(),
            doing: String::new(),
            frame: 0,
            quiet_since: Instant::now(),
        }
    }

    pub(super) fn begin(&mut self, job: &JobView) -> Result<(), CommandError> {
        if self.show != Show::All {
            return Ok(());
        }
        let repository = job.repository.to_string();
        let text = format!(
            "{BOLD}{}{BOLD:#}  {} on profile {}",
            job.id,
            escape(&repository),
            escape(&job.profile)
        );
        self.printer.line(&text)
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), CommandError> {
        if self.show != Show::All {
            return Ok(());
        }
        let words = if event.message.is_empty() {
            event.kind.as_str()
        } else {
            &event.message
        };
        let words = escape(words);
        let offset = between(self.began, event.time).as_millis();
        let style = style(event);
        // Several lines only where somebody's own words are quoted; they hang under the first.
        self.printer.line(&format!(
            "{DIM}+{:>3}.{}s{DIM:#}  {style}{words}{style:#}",
            offset / 1000,
            offset % 1000 / 100
        ))?;
        self.doing = words.chars().take(60).collect();
        self.quiet_since = Instant::now();
        Ok(())
    }

    pub(super) fn log(&mut self, record: &LogRecord) -> Result<(), CommandError> {
        for line in self.lines.push(record.stream, &record.text) {
            self.output_line(record.stream, &line)?;
        }
        Ok(())
    }

    /// Shows what did not end in a line end.
    pub(super) fn end_of_output(&mut self) -> Result<(), CommandError> {
        for (stream, line) in self.lines.rest() {
            self.output_line(stream, &line)?;
        }
        Ok(())
    }

    fn output_line(&mut self, stream: LogStream, line: &str) -> Result<(), CommandError> {
        self.quiet_since = Instant::now();
        let line = escape(line);
        match (self.show, stream) {
            (Show::Nothing, _) | (Show::Output, LogStream::Runner) => Ok(()),
            (Show::Output, LogStream::Stdout | LogStream::Stderr) => self.printer.line(&line),
            (Show::All, LogStream::Stdout) => self.printer.line(&format!("{DIM}│{DIM:#} {line}")),
            (Show::All, LogStream::Stderr) => self.printer.line(&format!("{CAUTION}│{CAUTION:#} {line}")),
            (Show::All, LogStream::Runner) => self.printer.line(&format!("{DIM}┊ {line}{DIM:#}")),
        }
    }

    /// Shows a person that waiting is all there is to do.
    pub(super) fn tick(&mut self) -> Result<(), CommandError> {
        if self.show != Show::All
            || !self.printer.on_terminal()
            || self.quiet_since.elapsed().as_millis() < 500
        {
            return Ok(());
        }
        self.frame += 1;
        let spinner = SPINNER[self.frame % SPINNER.len()];
        let waited = between(self.began, Timestamp::now()).as_secs();
        self.printer
            .transient(&format!("{DIM}{spinner} {waited} s  {}{DIM:#}", self.doing))
    }

    pub(super) fn summary(&self, job: &JobView, artifacts: &[ArtifactView]) -> Result<(), CommandError> {
        let printer = self.printer;
        let style = job_style(job.state);
        let took = job
            .finished_at
            .map(|end| format!(" after {}", duration(between(job.created_at, end))));
        printer.line(&format!(
            "\n{style}{}{style:#}  {}{}",
            job.state,
            job.id,
            took.unwrap_or_default()
        ))?;
        printer.write(&fields(job, artifacts).render())?;
        let bundle = artifacts.iter().any(|one| one.kind == ArtifactKind::Bundle);
        if bundle && job.state == JobState::Completed {
            printer.line(&format!(
                "{DIM}fetch the commits{DIM:#}   agentlab job apply {}",
                job.id
            ))?;
        }
        if !artifacts.is_empty() {
            printer.line(&format!(
                "{DIM}fetch the files{DIM:#}     agentlab job artifacts download {}",
                job.id
            ))?;
        }
        Ok(())
    }
}

fn fields(job: &JobView, artifacts: &[ArtifactView]) -> Fields {
    let mut fields = Fields::default();
    if let Some(outcome) = &job.outcome {
        fields
            .add_some("exit code", outcome.exit_code)
            .add(
                "agent ran",
                duration(std::time::Duration::from_millis(outcome.agent_milliseconds)),
            )
            .add("commits", commits(outcome))
            .add_some("SECRETS IN IT", secrets_in_it(outcome))
            .add_some("push", push(job));
    }
    if let Some(failure) = &job.failure {
        fields
            .add("failure", failure)
            .add_some("hint", failure.hint.as_ref());
    }
    let width = artifacts
        .iter()
        .map(|one| one.name.chars().count())
        .max()
        .unwrap_or(0);
    let list = artifacts.iter().map(|one| {
        format!(
            "{:width$}  {}",
            one.name.replace('\n', "\\n"),
            size(one.size_bytes)
        )
    });
    let list = list.collect::<Vec<_>>().join("\n");
    fields.add_some("artifacts", (!list.is_empty()).then_some(list));
    fields
}

fn style(event: &Event) -> Style {
    match &event.kind {
        EventKind::Alarm
        | EventKind::LeaseExpiring
        | EventKind::NetworkDenied
        | EventKind::SandboxTrouble => CAUTION,
        EventKind::JobFinished => match event.data.get("state").and_then(serde_json::Value::as_str) {
            Some("COMPLETED") => GOOD,
            Some(_) => BAD,
            None => BOLD,
        },
        EventKind::JobStarted => BOLD,
        EventKind::JobQueued
        | EventKind::JobProgress
        | EventKind::SandboxState
        | EventKind::Workspace
        | EventKind::SandboxStep
        | EventKind::SandboxRedeemed
        | EventKind::SecretsDelivered
        | EventKind::ArtifactStored
        | EventKind::LeaseRenewed
        | EventKind::SandboxIdle
        | EventKind::Other(_) => Style::new(),
    }
}
