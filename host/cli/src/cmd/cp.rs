//! `agentlab cp`: one file into a sandbox, or out of it, through the guest channel. Directories are for [`super::cp_tree`].

use std::path::{Path, PathBuf};

use agentlab_api::{CommandRequest, CommandUser};
use agentlab_client::{CommandFrame, CommandOutput};
use clap::Args;
use tokio::io::AsyncWriteExt as _;

use super::cp_tree;
use super::exec::{User, feed, gone};
use super::lease_watch;
use crate::error::CommandError;
use crate::output::size;
use crate::terminal::escape;
use crate::tree::unpack::Tally;
use crate::{CommandResult, Context, ExitStatus};

/// Puts its input beside the target first, so that nobody sees half a file.
const RECEIVE: &str = r#"set -eu; if [ -d "$1" ]; then set -- "$1/$2" "$2"; fi; t="$1.agentlab.$$"
trap 'rm -f -- "$t"' EXIT; cat > "$t"; if [ -n "${3:-}" ]; then chmod "$3" -- "$t"; fi; mv -f -- "$t" "$1""#;
const SEND: &str =
    r#"if [ -d "$1" ]; then echo "$1 is a directory, which takes cp -r" >&2; exit 1; fi; exec cat -- "$1""#;

/// `cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "A place in a sandbox is written SANDBOX:PATH; relative paths begin at the repository, or at the home \
                  directory. A directory (-r) arrives whole or not at all, under a name that nothing has yet. What comes \
                  out of a sandbox brings no device, no link that leads out, nothing that git would obey and no two \
                  names that differ in case alone: what was left out is said, and the exit code is 1."
)]
pub(crate) struct Cp {
    /// From
    source: String,
    /// To
    target: String,
    /// A directory, with everything in it
    #[arg(long, short)]
    recursive: bool,
    /// Who reads or writes it in the guest
    #[arg(long, short, value_enum, default_value_t)]
    user: User,
    /// Most that may come out of a sandbox, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 30)]
    max_bytes: u64,
}

enum Place<'a> {
    Here(&'a Path),
    Guest { sandbox: &'a str, path: &'a str },
}

impl<'a> Place<'a> {
    /// `name:path`, unless something before the colon says that it is a path.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains(['/', '.']) => Self::Guest {
                sandbox,
                path: if path.is_empty() { "." } else { path },
            },
            _ => Self::Here(Path::new(text)),
        }
    }

    fn sandbox(self) -> Option<&'a str> {
        match self {
            Self::Here(_) => None,
            Self::Guest { sandbox, .. } => Some(sandbox),
        }
    }
}

impl Cp {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let places = [self.source.clone(), self.target.clone()];
        let copy = self.copy(context);
        let mut places = places.iter().map(|place| Place::parse(place));
        match places.find_map(Place::sandbox) {
            Some(sandbox) => lease_watch::beside(context, sandbox, false, copy).await,
            None => copy.await,
        }
    }

    async fn copy(self, context: &Context) -> CommandResult {
        match (Place::parse(&self.source), Place::parse(&self.target)) {
            (Place::Here(from), Place::Guest { sandbox, path }) if self.recursive => {
                cp_tree::send(context, from, (sandbox, path), self.user).await
            }
            (Place::Guest { sandbox, path }, Place::Here(to)) if self.recursive => {
                cp_tree::receive(context, (sandbox, path), to, self.user, self.max_bytes).await
            }
            (Place::Here(from), Place::Guest { sandbox, path }) => {
                send(context, from, (sandbox, path), self.user).await
            }
            (Place::Guest { sandbox, path }, Place::Here(to)) => {
                receive(context, (sandbox, path), to, self.user, self.max_bytes).await
            }
            (Place::Here(_), Place::Here(_)) => Err(CommandError::usage("Neither place is in a sandbox")
                .with_hint("write one of them SANDBOX:PATH, such as 1000:notes.txt")),
            (Place::Guest { .. }, Place::Guest { .. }) => {
                Err(CommandError::usage("Both places are in sandboxes")
                    .with_hint("copy by way of a file here"))
            }
        }
    }
}

/// `script` with these as `$1` and on.
pub(super) fn shell(script: &str, arguments: &[&str], user: User) -> CommandRequest {
    let words = ["/bin/sh", "-c", script, "sh"];
    CommandRequest {
        words: words
            .iter()
            .chain(arguments)
            .map(|word| (*word).to_owned())
            .collect(),
        user: CommandUser::from(user),
        directory: None,
        terminal: None,
    }
}

async fn send(context: &Context, from: &Path, (sandbox, path): (&str, &str), user: User) -> CommandResult {
    let file_error = |action| {
        move |source| CommandError::File {
            action,
            path: from.display().to_string(),
            source,
        }
    };
    let file = tokio::fs::File::open(from).await.map_err(file_error("Opening"))?;
    let seen = file.metadata().await.map_err(file_error("Looking at"))?;
    if seen.is_dir() {
        return Err(CommandError::usage(format!("{} is a directory", from.display()))
            .with_hint("`agentlab cp -r` copies it"));
    }
    let name = from.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "file".to_owned());
    let mode = mode(&seen);
    let request = shell(RECEIVE, &[path, &name, &mode], user);
    let (input, mut output) = context.client.command(sandbox, &request).await?.split();
    let mut fed = std::pin::pin!(feed(&input, file));
    let mut words = Vec::new();
    let code = {
        let mut ended = std::pin::pin!(outcome(&mut output, &mut words));
        let mut done = false;
        loop {
            tokio::select! {
                code = &mut ended => break code?,
                () = &mut fed, if !done => done = true,
            }
        }
    };
    judge(code, &words)?;
    tell(context, &format!("{sandbox}:{path}"), seen.len())
}

#[cfg(unix)]
fn mode(seen: &std::fs::Metadata) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    format!("{:o}", seen.permissions().mode() & 0o777)
}

async fn receive(
    context: &Context,
    (sandbox, path): (&str, &str),
    to: &Path,
    user: User,
    limit: u64,
) -> CommandResult {
    let target: PathBuf = if to.is_dir() {
        let name = Path::new(path)
            .file_name()
            .ok_or_else(|| CommandError::usage(format!("`{path}` does not end in a file's name")))?;
        to.join(name)
    } else {
        to.to_owned()
    };
    let file_error = |action| {
        let path = target.display().to_string();
        move |source| CommandError::File { action, path, source }
    };
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let temporary = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))
        .map_err(file_error("Writing beside"))?;
    let request = shell(SEND, &[path], user);
    let (input, mut output) = context.client.command(sandbox, &request).await?.split();
    input.send(&CommandFrame::InputEnd).await;
    let copy = temporary.reopen().map_err(file_error("Writing beside"))?;
    let mut copy = Copy {
        file: tokio::fs::File::from_std(copy),
        bytes: 0,
        limit,
    };
    let mut words = Vec::new();
    let code = collect(&mut output, Some(&mut copy), &mut words).await?;
    copy.file.flush().await.map_err(file_error("Writing"))?;
    judge(code, &words)?;
    temporary
        .persist(&target)
        .map_err(|error| file_error("Writing")(error.error))?;
    tell(context, &target.display().to_string(), copy.bytes)
}

/// A file that comes out of a guest, which may never stop sending it.
struct Copy {
    file: tokio::fs::File,
    bytes: u64,
    limit: u64,
}

impl Copy {
    async fn take(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(count);
        if self.bytes > self.limit {
            let text = format!("It is larger than {} bytes; nothing was copied", self.limit);
            return Err(CommandError::refused(text).with_hint("`--max-bytes` allows more"));
        }
        self.file.write_all(bytes).await.map_err(CommandError::Output)
    }
}

/// What arrived where.
fn tell(context: &Context, place: &str, bytes: u64) -> CommandResult {
    if context.printer.json() {
        let tally = Tally {
            files: 1,
            bytes,
            ..Tally::default()
        };
        context.printer.document(&tally)?;
    } else {
        let text = format!("{place}  {}", size(bytes));
        context.printer.line(&escape(&text))?;
    }
    Ok(ExitStatus::Success)
}

/// The exit code of a copy that prints nothing but words.
pub(super) async fn outcome(output: &mut CommandOutput, words: &mut Vec<u8>) -> Result<u8, CommandError> {
    collect(output, None, words).await
}

/// Takes output and words of a copy to its end; its exit code.
async fn collect(
    output: &mut CommandOutput,
    mut into: Option<&mut Copy>,
    words: &mut Vec<u8>,
) -> Result<u8, CommandError> {
    loop {
        match output.next().await? {
            Some(CommandFrame::Output(bytes)) => {
                if let Some(copy) = into.as_mut() {
                    copy.take(&bytes).await?;
                }
            }
            Some(CommandFrame::Error(bytes)) if words.len() < 4096 => words.extend_from_slice(&bytes),
            Some(CommandFrame::Exit(code)) => return Ok(code),
            Some(CommandFrame::Failed(message)) => return Err(CommandError::Refused { message, hint: None }),
            Some(_) => {}
            None => return Err(gone()),
        }
    }
}

/// What the guest's part of a copy ended with.
pub(super) fn judge(code: u8, words: &[u8]) -> CommandResult {
    if code == 0 {
        return Ok(ExitStatus::Success);
    }
    let words = String::from_utf8_lossy(words);
    Err(CommandError::Refused {
        message: format!("The guest could not copy it: {}", words.trim()),
        hint: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_that_never_stops_sending_does_not_fill_the_disk() {
        let mut copy = Copy {
            file: tokio::fs::File::from_std(tempfile::tempfile().unwrap()),
            bytes: 0,
            limit: 10,
        };
        copy.take(b"0123456789").await.unwrap();
        let refused = copy.take(b"x").await.unwrap_err();
        assert!(refused.to_string().contains("larger than 10 bytes"), "{refused}");
        copy.file.flush().await.unwrap();
        assert_eq!(copy.file.metadata().await.unwrap().len(), 10);
    }

    #[test]
    fn a_place_in_a_sandbox_is_told_from_a_path() {
        for text in ["1000:x", "name:/etc/passwd", "name:"] {
            assert!(matches!(Place::parse(text), Place::Guest { .. }), "{text}");
        }
        for text in ["x", "./1000:x", "/a:b", "..:x", ":x"] {
            assert!(matches!(Place::parse(text), Place::Here(_)), "{text}");
        }
    }
}
