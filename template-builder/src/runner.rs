//! The guest's runner: found, looked at, never guessed. It must be static, for no guest can be trusted to have the
//! library it was linked with.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{During, Result, TemplateError};
use crate::{fingerprint, tool};

/// Where the Debian package puts it.
pub const INSTALLED: &str = "/usr/lib/agentlab/agent-runner";

/// A runner that may be baked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Where it came from.
    pub path: PathBuf,
    /// The program.
    pub bytes: Vec<u8>,
    /// Its hash.
    pub sha256: String,
}

impl Runner {
    /// Reads a runner and looks whether it can run in a guest.
    ///
    /// # Errors
    /// When it is missing, not a program for this architecture, or not static.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(refuse(format!("No runner at {}", path.display())));
        }
        let bytes = fs::read(path).during("read", path)?;
        static_program(&bytes)
            .map_err(|why| refuse(format!("{} cannot run in a guest: {why}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            sha256: fingerprint::of_bytes(&bytes),
            bytes,
        })
    }

    /// Finds the runner: the flag, else the recipe's, else one beside this program, else the packaged one. One beside
    /// this program that is not static is passed over: a build directory has the host's flavour there.
    ///
    /// # Errors
    /// When none of them will do; a runner that was named and is no good is never replaced by another.
    pub fn find(flag: Option<&Path>, recipe: Option<&Path>) -> Result<Self> {
        if let Some(named) = flag.or(recipe) {
            return Self::open(named);
        }
        let beside = std::env::current_exe()
            .ok()
            .map(|program| program.with_file_name("agent-runner"));
        let candidates: Vec<PathBuf> = beside.into_iter().chain([PathBuf::from(INSTALLED)]).collect();
        let mut problems = Vec::new();
        for candidate in &candidates {
            match Self::open(candidate) {
                Ok(runner) => return Ok(runner),
                Err(TemplateError::Runner { problem, .. }) => problems.push(problem),
                Err(other) => return Err(other),
            }
        }
        Err(refuse(problems.join("; ")))
    }

    /// What it says when asked `--version`; absent when it does not answer as a runner does.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        let line = tool::first_line(&self.path, "--version")?;
        let version = line.strip_prefix("agent-runner ")?.split_whitespace().next()?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".+-~".contains(&byte);
        (version.len() <= 64 && version.bytes().all(fits)).then(|| version.to_owned())
    }
}

fn refuse(problem: String) -> TemplateError {
    TemplateError::Runner {
        problem,
        hint: "build it with `cargo build -p agent-runner --profile runner --target x86_64-unknown-linux-musl` and \
               name it with --runner, or install the agentlab-runner package"
            .to_owned(),
    }
}

/// Checks the ELF header and that no program header asks for an interpreter.
fn static_program(bytes: &[u8]) -> std::result::Result<(), String> {
    const PT_INTERP: u32 = 3;
    const EXECUTABLE: [u16; 2] = [2, 3];
    const X86_64: u16 = 62;
    let torn = || "its ELF header is cut short".to_owned();
    if !bytes.starts_with(b"\x7fELF") {
        return Err("it is not an ELF program".to_owned());
    }
    if bytes.get(4..6) != Some(&[2, 1]) || half(bytes, 18) != Some(X86_64) {
        return Err("it is not for x86-64".to_owned());
    }
    if !half(bytes, 16).is_some_and(|kind| EXECUTABLE.contains(&kind)) || wide(bytes, 24).unwrap_or(0) == 0 {
        return Err("it is an object or a library, not a program".to_owned());
    }
    let table = wide(bytes, 32).ok_or_else(torn)?;
    let size = usize::from(half(bytes, 54).ok_or_else(torn)?);
    for number in 0..usize::from(half(bytes, 56).ok_or_else(torn)?) {
        let at = number
            .checked_mul(size)
            .and_then(|offset| offset.checked_add(table))
            .ok_or_else(torn)?;
        if word(bytes, at).ok_or_else(torn)? == PT_INTERP {
            return Err("it is linked dynamically".to_owned());
        }
    }
    Ok(())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn wide(bytes: &[u8], at: usize) -> Option<usize> {
    field(bytes, at)
        .map(u64::from_le_bytes)
        .and_then(|value| usize::try_from(value).ok())
}

/// A program with one program header, for tests of this crate.
#[cfg(test)]
pub(crate) fn smallest_program(header_type: u32) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &3_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(24, &0x1000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &header_type.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_must_be_a_static_program_of_this_architecture() {
        assert_eq!(static_program(&smallest_program(1)), Ok(()));
        assert!(
            static_program(&smallest_program(3))
                .unwrap_err()
                .contains("dynamically")
        );
        assert!(static_program(b"#!/bin/sh\n").unwrap_err().contains("not an ELF"));
        let mut arm = smallest_program(1);
        arm[18] = 183;
        assert!(static_program(&arm).unwrap_err().contains("x86-64"));
        let mut library = smallest_program(1);
        library[25] = 0;
        assert!(static_program(&library).unwrap_err().contains("library"));
    }

    #[test]
    fn no_cut_or_lying_header_is_taken_for_a_program() {
        let whole = smallest_program(1);
        for length in 0..68 {
            assert!(static_program(&whole[..length]).is_err(), "{length}");
        }
        let mut lying = whole;
        lying[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(static_program(&lying).unwrap_err().contains("cut short"));
    }

    #[test]
    fn a_missing_runner_says_how_to_get_one() {
        let error = Runner::find(Some(Path::new("/nonexistent/agent-runner")), None).unwrap_err();
        assert_eq!(error.to_string(), "No runner at /nonexistent/agent-runner");
        assert!(error.hint().unwrap().contains("--runner"));
    }

    #[test]
    fn a_dynamic_program_is_refused_by_its_path() {
        let error = Runner::open(Path::new("/usr/bin/env")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/usr/bin/env cannot run in a guest: it is linked dynamically"
        );
    }
}
