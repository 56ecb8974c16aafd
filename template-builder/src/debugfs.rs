//! Changes inside an ext4 file system that lies in a file, with e2fsprogs' `debugfs`: no mount, no loop device.
//!
//! `debugfs` ends well whatever became of its commands. What it says of one that failed is told from what it says
//! otherwise, and is our error.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{During, Result, TemplateError};
use crate::rootfs::EPOCH;
use crate::tool::{Call, Workshop};

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

    /// Executes commands in their order, one a line.
    pub(crate) fn execute(&self, commands: &str) -> Result<()> {
        let script = self.workshop.scratch.join("debugfs.commands");
        fs::write(&script, commands).during("write", &script)?;
        let name = "debugfs";
        Call {
            program: &self.workshop.tools.debugfs,
            package: "e2fsprogs",
            arguments: vec![
                "-w".to_owned(),
                "-f".to_owned(),
                script.display().to_string(),
                format!("{}?offset={}", self.file.display(), self.offset),
            ],
            // It writes the time into the superblock.
            environment: vec![("E2FSPROGS_FAKE_TIME", EPOCH.to_string())],
        }
        .run(self.workshop)?;
        let log = self.workshop.scratch.join(format!("{name}.log"));
        let said = fs::read(&log).during("read", &log)?;
        match first_failure(&String::from_utf8_lossy(&said)) {
            None => Ok(()),
            Some(words) => Err(TemplateError::ToolFailed {
                program: name.to_owned(),
                status: "a command failed".to_owned(),
                words: format!("  {words}"),
                hint: words.contains("No free").then(|| {
                    "the file system of the image is full: take a larger image, or bake less into it"
                        .to_owned()
                }),
            }),
        }
    }
}

/// The first line that is neither its greeting, nor a command's echo, nor a report of success.
fn first_failure(log: &str) -> Option<String> {
    let expected = |line: &&str| {
        ["debugfs 1.", "debugfs: ", "Allocated inode: "]
            .iter()
            .any(|start| line.starts_with(start))
            || line.trim().is_empty()
    };
    let line = log.lines().find(|line| !expected(line))?;
    Some(line.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_debugfs_says_of_a_command_that_failed_is_told_from_the_rest() {
        let well =
            "debugfs 1.47.0 (5-Feb-2023)\ndebugfs: cd /etc\ndebugfs: write /tmp/a a\nAllocated inode: 12\n\n";
        assert_eq!(first_failure(well), None);
        let ill = format!("{well}cd: File not found by ext2_lookup \ndebugfs: write b b\n");
        assert_eq!(first_failure(&ill).unwrap(), "cd: File not found by ext2_lookup ");
    }
}
