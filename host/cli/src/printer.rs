//! The only file that writes to the terminal. Data goes to standard output; warnings, hints and errors to standard
//! error. With `--json` standard output holds one document, or one per line where a command says so, and nothing else.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;

use crate::error::CommandError;
use crate::terminal;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR or TERM=dumb say otherwise.
    #[default]
    Auto,
    /// Also into pipes and files.
    Always,
    /// Not at all.
    Never,
}

/// Emphasis.
pub(crate) const BOLD: Style = Style::new().bold();
/// What is there and matters less.
pub(crate) const DIM: Style = Style::new().dimmed();
/// It went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// It did not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Look at it.
pub(crate) const CAUTION: Style = AnsiColor::Yellow.on_default().bold();

/// Where output goes and in which form.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    terminal: bool,
    stdout: RefCell<AutoStream<io::Stdout>>,
    stderr: RefCell<AutoStream<io::Stderr>>,
    transient: Cell<bool>,
}

impl Printer {
    pub(crate) fn new(json: bool, color: Color) -> Self {
        let choice = match color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            stdout: RefCell::new(AutoStream::new(io::stdout(), choice)),
            stderr: RefCell::new(AutoStream::new(io::stderr(), choice)),
            transient: Cell::new(false),
        }
    }

    /// Whether documents are wanted rather than text.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at standard output.
    pub(crate) fn on_terminal(&self) -> bool {
        self.terminal && !self.json
    }

    /// One document, two-space indented.
    pub(crate) fn document(&self, value: &impl Serialize) -> Result<(), CommandError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::Output(error.into()))?;
        self.write(&format!("{}\n", terminal::escape_document(&text)))
    }

    /// One document on one line, for streams.
    pub(crate) fn document_line(&self, value: &impl Serialize) -> Result<(), CommandError> {
        let text = serde_json::to_string(value).map_err(|error| CommandError::Output(error.into()))?;
        self.write(&format!("{}\n", terminal::escape_document(&text)))
    }

    /// Lines of text. What a guest chose must have been escaped.
    pub(crate) fn line(&self, text: &str) -> Result<(), CommandError> {
        self.write(&format!("{text}\n"))
    }

    /// Text as it is, line ends included. What a guest chose must have been escaped.
    pub(crate) fn write(&self, text: &str) -> Result<(), CommandError> {
        let clear = if self.transient.take() { "\r\u{1b}[K" } else { "" };
        let stdout = self.stdout.borrow();
        // Colours go at once, not run by run as the stream would take them out: that is a system call for each line.
        let text = if stdout.current_choice() == ColorChoice::Never {
            Cow::Owned(strip_str(text).to_string())
        } else {
            Cow::Borrowed(text)
        };
        // Straight to the terminal: the clearing sequence is ours and must not be filtered with the colours.
        let mut stdout = stdout.as_inner().lock();
        stdout
            .write_all(clear.as_bytes())
            .and_then(|()| stdout.write_all(text.as_bytes()))
            .and_then(|()| stdout.flush())
            .map_err(CommandError::Output)
    }

    /// Bytes that go to a program: as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let stdout = self.stdout.borrow();
        let mut stdout = stdout.as_inner().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(CommandError::Output)
    }

    /// The same for standard error.
    pub(crate) fn error_bytes(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let stderr = self.stderr.borrow();
        stderr
            .as_inner()
            .lock()
            .write_all(bytes)
            .map_err(CommandError::Output)
    }

    /// A line that the next output replaces; only where a person looks.
    pub(crate) fn transient(&self, text: &str) -> Result<(), CommandError> {
        // A terminal without colour may be one without cursor, too.
        if !self.on_terminal() || self.stdout.borrow().current_choice() == ColorChoice::Never {
            return Ok(());
        }
        self.write("")?;
        let mut stdout = self.stdout.borrow_mut();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(CommandError::Output)?;
        self.transient.set(true);
        Ok(())
    }

    /// Something the operator should know and that stops nothing.
    pub(crate) fn warning(&self, text: &str) {
        self.note(CAUTION, "warning", text);
    }

    /// What to do next, where nothing failed.
    pub(crate) fn hint(&self, text: &str) {
        self.note(BOLD, "hint", text);
    }

    /// What keeps a command from beginning.
    pub(crate) fn waiting(&self, text: &str) {
        self.note(BOLD, "waiting", text);
    }

    /// Ctrl-C was pressed.
    pub(crate) fn interrupted(&self, farewell: Option<&str>) {
        // Past the `^C` that the terminal shows.
        let _ = self.write("");
        let mut stderr = self.stderr.borrow_mut();
        let text = farewell.unwrap_or("interrupted");
        // Nobody is left to be told when this fails.
        let _ = writeln!(
            stderr,
            "{}{text}",
            if io::stdin().is_terminal() { "\n" } else { "" }
        );
    }

    /// What went wrong: text on standard error, or the problem document on standard output.
    pub(crate) fn error(&self, error: &CommandError) {
        if error.is_silent() {
            return;
        }
        let _ = self.write("");
        if self.json {
            let _ = self.document(&error.problem());
            return;
        }
        let problem = error.daemons_problem();
        let stage = problem.and_then(|problem| problem.stage.as_ref());
        let stage = stage.map(|stage| format!(" (at {stage})")).unwrap_or_default();
        self.note(BAD, "error", &format!("{}{stage}", error.sentence()));
        for field in problem
            .map(|problem| problem.errors.as_slice())
            .unwrap_or_default()
        {
            // What is wrong was said above; where it is was not.
            let detail = if problem.is_some_and(|problem| problem.detail == field.detail) {
                String::new()
            } else {
                format!(": {}", field.detail)
            };
            self.note(BAD, "   at", &format!("{}{detail}", field.pointer));
        }
        if let Some(hint) = error.hint() {
            self.hint(&hint);
        }
    }

    /// Paths, names and words in such lines were chosen by others, so all of them are escaped here, and none of their
    /// lines begins where ours do: it could pose as a hint.
    fn note(&self, style: Style, word: &str, text: &str) {
        let text = terminal::escape_lines(text).replace('\n', "\n  ");
        let mut stderr = self.stderr.borrow_mut();
        // Nobody is left to be told when this fails.
        let _ = writeln!(stderr, "{style}{word}{style:#}: {text}");
    }
}
