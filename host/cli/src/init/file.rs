//! config.yaml, changed at some keys and otherwise kept to the byte.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Why a key cannot be set by us.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    #[error("line {line} sets `{key}` a second time")]
    Twice { key: String, line: usize },
    #[error("line {line}: the value of `{key}` goes over more than one line, or is no plain text")]
    Complicated { key: String, line: usize },
}

/// The value of a key of the outermost level, as it is written there but for quotes.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| after_key(line, key))?;
    let (value, _) = split_comment(line);
    Some(value.trim().trim_matches(['"', '\'']))
}

/// The text with a key set: its line replaced, or a line added at the end. `value` is written in double quotes, unless it
/// is a number.
pub(crate) fn set(text: &str, key: &str, value: &str) -> Result<String, EditError> {
    let written = if value.bytes().all(|byte| byte.is_ascii_digit()) && key.ends_with("_vmid") {
        value.to_owned()
    } else {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut places = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| after_key(line, key).is_some())
        .map(|(index, _)| index);
    let Some(place) = places.next() else {
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        return Ok(format!("{text}{end}{key}: {written}\n"));
    };
    if let Some(second) = places.next() {
        return Err(EditError::Twice {
            key: key.to_owned(),
            line: second + 1,
        });
    }
    let line = lines.get(place).copied().unwrap_or_default();
    let (old, comment) = split_comment(after_key(line, key).unwrap_or_default());
    let goes_on = lines
        .iter()
        .skip(place + 1)
        .find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .is_some_and(|line| line.starts_with([' ', '\t']) || line.starts_with("- "));
    if goes_on || old.trim_start().starts_with(['|', '>', '&', '*', '!', '{', '[']) {
        return Err(EditError::Complicated {
            key: key.to_owned(),
            line: place + 1,
        });
    }
    let comment = comment.trim_end();
    let space = if comment.is_empty() { "" } else { " " };
    let new = format!("{key}: {written}{space}{comment}\n");
    Ok(lines
        .iter()
        .enumerate()
        .map(|(index, line)| if index == place { new.as_str() } else { *line })
        .collect())
}

/// What follows `key:` at the start of a line.
fn after_key<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(key)?.trim_start_matches(' ');
    let rest = rest.strip_prefix(':')?;
    (rest.trim_end().is_empty() || rest.starts_with([' ', '\t'])).then_some(rest)
}

/// A value, and the comment behind it.
fn split_comment(rest: &str) -> (&str, &str) {
    let trimmed = rest.trim_start();
    let skipped = rest.len() - trimmed.len();
    let quote = trimmed.chars().next().filter(|first| matches!(first, '"' | '\''));
    let from = match quote {
        // The second one ends it; what we write has none inside, and what is otherwise so is refused by the parser.
        Some(quote) => trimmed
            .char_indices()
            .skip(1)
            .find(|(_, letter)| *letter == quote)
            .map_or(rest.len(), |(index, _)| skipped + index + 1),
        None => 0,
    };
    let tail = rest.get(from..).unwrap_or_default();
    let comment = if quote.is_none() && trimmed.starts_with('#') {
        Some(skipped)
    } else {
        tail.find(" #").map(|index| from + index + 1)
    };
    match comment {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    }
}

/// Reads the text; empty where there is no file yet.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// Replaces the file as a whole, with mode 0600 and its owner, or not at all. A link stays one.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    let path: PathBuf = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        other => other?,
    };
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    // Made with mode 0600, whatever the umask.
    let mut file = tempfile::Builder::new().prefix(".config.").tempfile_in(dir)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o600))?;
    if let Ok(old) = fs::metadata(&path) {
        fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_and_every_other_byte_stays() {
        for (before, after) in [
            ("", "node: \"a\"\n"),
            ("# x\nbridge: b", "# x\nbridge: b\nnode: \"a\"\n"),
            (
                "#node: c\nq:\n  node: d\n",
                "#node: c\nq:\n  node: d\nnode: \"a\"\n",
            ),
            ("node: c # why\nx: 1\n", "node: \"a\" # why\nx: 1\n"),
            ("node:\nx: 1\n", "node: \"a\"\nx: 1\n"),
            (
                "x: 1\nnode: \"c # d\" # e\n# end\n",
                "x: 1\nnode: \"a\" # e\n# end\n",
            ),
            ("nodes: c\n", "nodes: c\nnode: \"a\"\n"),
        ] {
            let set = set(before, "node", "a").unwrap();
            assert_eq!(set, after, "{before:?}");
            assert_eq!(super::set(&set, "node", "a").unwrap(), after, "again");
            assert_eq!(value(&set, "node"), Some("a"), "{before:?}");
        }
        assert_eq!(set("", "x_vmid", "77").unwrap(), "x_vmid: 77\n");
    }

    #[test]
    fn what_could_be_misread_is_left_to_its_owner() {
        for text in [
            "node: |\n  a\n",
            "node:\n  b\n",
            "node: {}\n",
            "node: a\nnode: b\n",
            "node: a\n  b\n",
        ] {
            assert!(set(text, "node", "a").is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_file_is_replaced_whole_with_mode_0600_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing is left over"
        );
    }
}
