//! Changes inside an ext4 file system that lies in a file, with e2fsprogs' `debugfs`: no mount, no loop device.
//!
//! `debugfs` ends well whatever became of its commands. What it says of one that failed is told from what it says
//! otherwise, and is our error.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{During, Result, TemplateError};
use crate::rootfs::EPOCH;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;

/// A file system in a file.
#[derive(Debug)]
pub(crate) struct FileSystem<'a> {
    workshop: &'a Workshop<'a>,
    file: PathBuf,
    offset: u64,
}

impl<'a> FileSystem<'a> {
    /// The one that begins at an offset of a file.
    pub(crate) fn at(workshop: &'a Workshop<'a>, file: &Path, offset: u64) -> Self {
        Self {
            workshop,
            file: file.to_owned(),
            offset,
        }
    }

    /// As e2fsprogs' programs are told of it.
    pub(crate) fn place(&self) -> String {
        format!("{}?offset={}", self.file.display(), self.offset)
    }

    /// Copies a file to the same path of a tree, with owner and mode.
    pub(crate) fn copy_out(&self, path: &str, tree: &Tree) -> Result<()> {
        let bytes = self.read(path)?;
        let bytes = bytes.ok_or_else(|| TemplateError::Tree {
            problem: format!("lacks {path}"),
        })?;
        tree.write(path, &bytes, 0o600)?;
        let (mode, owner) = self.attributes(path)?;
        tree.give(path, owner)?;
        tree.protect(path, mode)
    }

    /// Copies everything below the root into a directory, with owners, modes and times.
    pub(crate) fn copy_all(&self, into: &Path) -> Result<()> {
        self.execute(&format!("rdump / \"{}\"\n", into.display()))
    }

    /// Puts a value where a command finds it, for as long as the build takes.
    pub(crate) fn keep(&self, name: &str, value: &[u8]) -> Result<PathBuf> {
        let path = self.workshop.scratch.join(name);
        fs::write(&path, value).during("write", &path)?;
        Ok(path)
    }

    /// Removes files and, where the second says so, directories that are empty by then, in their order.
    pub(crate) fn remove_all(&self, paths: &[(String, bool)]) -> Result<()> {
        let mut commands = String::new();
        for (path, is_dir) in paths {
            let command = if *is_dir { "rmdir" } else { "rm" };
            let _infallible = writeln!(commands, "{command} {}", quoted(path)?);
        }
        self.execute(&commands)
    }

    /// Mode bits and owner of a file that is there.
    fn attributes(&self, path: &str) -> Result<(u32, (u32, u32))> {
        let said = self.run(&format!("stat \"{path}\"\n"))?;
        let after = |word: &str| {
            said.split(word)
                .nth(1)
                .unwrap_or_default()
                .split_whitespace()
                .next()
        };
        let octal = after("Mode: ").and_then(|mode| u32::from_str_radix(mode, 8).ok());
        let number = |word: &str| after(word).and_then(|number| number.parse().ok());
        match (octal, number("User: "), number("Group: ")) {
            (Some(mode), Some(user), Some(group)) => Ok((mode, (user, group))),
            _ => Err(failed(&said)),
        }
    }

    /// Executes commands in their order, one a line. That a file was not there to be removed is no failure.
    pub(crate) fn execute(&self, commands: &str) -> Result<()> {
        let said = self.run(commands)?;
        let expected = |command: &str, words: &str| command.starts_with("rm ") && words.contains(ABSENT);
        match answers(&said).find(|(command, words)| !words.is_empty() && !expected(command, words)) {
            None => Ok(()),
            Some((_, words)) => Err(failed(&words)),
        }
    }

    /// Makes those of the directories that are not there, in their order, and says which those were.
    pub(crate) fn make_missing_directories(&self, paths: &[&str]) -> Result<HashSet<String>> {
        let commands: String = paths.iter().map(|path| format!("mkdir \"{path}\"\n")).collect();
        let said = self.run(&commands)?;
        let mut made = HashSet::new();
        for (command, words) in answers(&said) {
            if words.is_empty() {
                let path = command
                    .strip_prefix("mkdir \"")
                    .map(|rest| rest.trim_end_matches('"'));
                made.extend(path.map(str::to_owned));
            } else if !words.contains("directory already exists") {
                return Err(failed(&words));
            }
        }
        Ok(made)
    }

    /// Content of a file; `None` when there is none.
    pub(crate) fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let into = self.workshop.scratch.join("debugfs.file");
        let said = self.run(&format!("dump \"{path}\" \"{}\"\n", into.display()))?;
        let words = answers(&said).find(|(_, words)| !words.is_empty());
        match words {
            Some((_, words)) if words.contains(ABSENT) => return Ok(None),
            Some((_, words)) => return Err(failed(&words)),
            None => {}
        }
        let bytes = fs::read(&into).during("read", &into)?;
        fs::remove_file(&into).during("remove", &into)?;
        Ok(Some(bytes))
    }

    /// Names in a directory; none when there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>> {
        let said = self.run(&format!("ls -p \"{path}\"\n"))?;
        // /inode/mode/uid/gid/name/size/
        let names = said
            .lines()
            .filter_map(|line| line.strip_prefix('/')?.split('/').nth(4));
        Ok(names.map(str::to_owned).collect())
    }

    fn run(&self, commands: &str) -> Result<String> {
        let script = self.workshop.scratch.join("debugfs.commands");
        fs::write(&script, commands).during("write", &script)?;
        Call {
            program: &self.workshop.tools.debugfs,
            package: "e2fsprogs",
            arguments: vec![
                "-w".to_owned(),
                "-f".to_owned(),
                script.display().to_string(),
                self.place(),
            ],
            // It writes the time into the superblock.
            environment: vec![("E2FSPROGS_FAKE_TIME", EPOCH.to_string())],
        }
        .run(self.workshop)?;
        let log = self.workshop.scratch.join("debugfs.log");
        let said = fs::read(&log).during("read", &log)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// For debugfs, which knows quotes and no way to write one.
pub(crate) fn quoted(text: &str) -> Result<String> {
    if text.contains(|letter: char| letter == '"' || letter.is_control()) {
        return Err(TemplateError::Tree {
            problem: format!("cannot hold a file named `{}`", text.escape_debug()),
        });
    }
    Ok(format!("\"{text}\""))
}

fn failed(words: &str) -> TemplateError {
    let full = words.contains("No free") || words.contains("Could not allocate");
    TemplateError::ToolFailed {
        program: "debugfs".to_owned(),
        status: "a command failed".to_owned(),
        words: format!("  {}", words.escape_debug()),
        hint: full.then(|| {
            "the file system of the image is full: take a larger image, or bake less into it".to_owned()
        }),
    }
}

/// debugfs's words for a path that is not there.
const ABSENT: &str = "File not found by ext2_lookup";

/// Each command with what was said of it; nothing when it went well.
fn answers(said: &str) -> impl Iterator<Item = (&str, String)> {
    const ECHO: &str = "debugfs: ";
    let first = said.find(ECHO).unwrap_or(said.len());
    let all = said.get(first..).unwrap_or_default();
    all.split(ECHO).filter(|part| !part.is_empty()).map(|part| {
        let (command, rest) = part.split_once('\n').unwrap_or((part, ""));
        let lines = rest
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with("Allocated inode: "));
        (command, lines.collect::<Vec<_>>().join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_debugfs_says_of_a_command_that_failed_is_told_from_the_rest() {
        let said = "debugfs 1.47.0 (5-Feb-2023)\ndebugfs: rm \"/etc/x\"\nrm: File not found by ext2_lookup while trying \
                    to resolve filename\ndebugfs: write \"/tmp/a\" \"a\"\nAllocated inode: 12\n\ndebugfs: cd /nope\n\
                    cd: File not found by ext2_lookup \n";
        let all: Vec<(&str, String)> = answers(said).collect();
        assert_eq!(all.len(), 3);
        assert!(all[0].0 == "rm \"/etc/x\"" && all[0].1.contains(ABSENT));
        assert_eq!(all[1], ("write \"/tmp/a\" \"a\"", String::new()));
        assert_eq!(all[2].1, "cd: File not found by ext2_lookup ");
    }
}
