//! Where secrets come from: a file, standard input, or a prompt that shows nothing.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};

use agentlab_protocol::secret::SecretText;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::CommandError;

/// Longer values are no secrets but mistakes.
const LARGEST: u64 = 1 << 20;
/// What keys send where the terminal does not see to them itself.
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const BACKSPACE: u8 = 8;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    StandardInput,
    /// A person at the terminal.
    Prompt,
}

impl Source {
    /// `-` is standard input, and nothing is a prompt.
    pub(crate) fn of(path: Option<&Path>) -> Self {
        match path {
            None => Self::Prompt,
            Some(path) if path == Path::new("-") => Self::StandardInput,
            Some(path) => Self::File(path.to_owned()),
        }
    }
}

/// Reads a value. `what` names it in a prompt and in errors.
pub(crate) fn read(source: &Source, what: &str) -> Result<SecretText, CommandError> {
    match source {
        Source::File(path) => {
            let file = File::open(path).map_err(failed(&path.display().to_string()))?;
            whole(file, &path.display().to_string(), what)
        }
        Source::StandardInput => whole(io::stdin().lock(), "standard input", what),
        Source::Prompt => prompt(what),
    }
}

fn failed(path: &str) -> impl FnOnce(io::Error) -> CommandError {
    let path = path.to_owned();
    move |source| CommandError::File {
        action: "Reading",
        path,
        source,
    }
}

fn whole(reader: impl Read, path: &str, what: &str) -> Result<SecretText, CommandError> {
    let mut bytes = Vec::new();
    reader
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed(path))?;
    if bytes.len() > usize::try_from(LARGEST).unwrap_or(usize::MAX) {
        return Err(CommandError::usage(format!(
            "{path} is larger than 1 MiB, and no value of {what} is"
        )));
    }
    // The bytes of what is no text are in no message.
    let text = String::from_utf8(bytes).map_err(|_| CommandError::usage(format!("{path} is not text")))?;
    Ok(SecretText::new(text))
}

/// `NAME=VALUE` lines. Empty lines and those that begin with `#` are left out; quotes are part of a value.
pub(crate) fn pairs(text: &SecretText) -> Result<Vec<(String, SecretText)>, CommandError> {
    let mut pairs = Vec::new();
    for (number, line) in text.expose().lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            let message = format!("line {} of the file is not NAME=VALUE", number + 1);
            return Err(CommandError::usage(message));
        };
        let name = name.trim().strip_prefix("export ").unwrap_or(name.trim());
        pairs.push((name.to_owned(), SecretText::new(value.to_owned())));
    }
    Ok(pairs)
}

/// The terminal with nothing shown. Puts everything back when it is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // A program that Ctrl-C ended here would leave the terminal silent; so its key is read like the others, and at
        // once.
        silent.local_modes.remove(LocalModes::ISIG | LocalModes::ICANON);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn prompt(what: &str) -> Result<SecretText, CommandError> {
    if !io::stdin().is_terminal() {
        let message = format!("{what} is not given, and standard input is no terminal to ask at");
        return Err(CommandError::usage(message).with_hint("name a file with it, or `-` for standard input"));
    }
    let terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(failed("/dev/tty"))?;
    let typed = {
        let _silent = Silent::new(&terminal).map_err(failed("/dev/tty"))?;
        let asked = write!(&terminal, "{what} (not shown): ").and_then(|()| (&terminal).flush());
        asked.map_err(failed("/dev/tty"))?;
        let typed = line(&terminal).map_err(failed("/dev/tty"));
        // The line end was not shown either.
        writeln!(&terminal).map_err(failed("/dev/tty"))?;
        typed?
    };
    let Some(bytes) = typed else {
        return Err(CommandError::Interrupted);
    };
    let text = String::from_utf8(bytes).map_err(|_| CommandError::usage("What was typed is not text"))?;
    Ok(SecretText::new(text))
}

/// One line as a person types it, corrections included; `None` when they gave up.
fn line(mut keys: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut typed = Vec::with_capacity(4096);
    let mut key = [0];
    loop {
        if keys.read(&mut key)? == 0 {
            return Ok(Some(typed));
        }
        match key[0] {
            CTRL_C => return Ok(None),
            b'\r' | b'\n' | CTRL_D => return Ok(Some(typed)),
            CTRL_U => typed.clear(),
            BACKSPACE | DELETE => {
                // A character may have several bytes, of which only the first begins one.
                while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            byte => typed.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_line_by_line_and_a_wrong_line_is_only_counted() {
        let text = |text: &str| SecretText::new(text.to_owned());
        let read = pairs(&text("# x\n\nA=1=2\nexport B= \"q\" \n")).unwrap();
        let read: Vec<_> = read
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(read, [("A", "1=2"), ("B", " \"q\" ")]);
        let error = pairs(&text("A=1\nc4n4ry\n")).unwrap_err().to_string();
        assert_eq!(error, "line 2 of the file is not NAME=VALUE");
    }

    #[test]
    fn a_typed_line_is_what_its_writer_meant_and_ctrl_c_gives_it_up() {
        let typed = |keys: &[u8]| line(keys).unwrap();
        assert_eq!(typed(b"abc\rmore"), Some(b"abc".to_vec()));
        assert_eq!(typed("a\u{e9}\u{7f}b\u{8}c\n".as_bytes()), Some(b"ac".to_vec()));
        assert_eq!(typed(b"\x7fwrong\x15right\x04"), Some(b"right".to_vec()));
        assert_eq!(typed(b"abc\x03"), None);
    }

    #[test]
    fn what_is_too_long_or_no_text_is_refused_without_being_shown() {
        let long = vec![b'x'; 2 << 20];
        assert!(
            whole(long.as_slice(), "f", "it")
                .unwrap_err()
                .to_string()
                .contains("larger than 1 MiB")
        );
        let error = whole(b"c4n4ry\xff".as_slice(), "f", "it").unwrap_err();
        assert_eq!(error.to_string(), "f is not text");
        assert_eq!(Source::of(Some(Path::new("-"))), Source::StandardInput);
        assert_eq!(Source::of(None), Source::Prompt);
    }
}
