//! `agentlab cp -r`: a directory into a sandbox, or out of it. Either it is there whole, under a name that nobody had,
//! or it is not there.

use std::path::{Path, PathBuf};

use agentlab_client::{CommandFrame, CommandInput, CommandOutput};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Duration, Instant};

use super::cp::{judge, outcome, shell};
use super::exec::{User, gone};
use crate::error::CommandError;
use crate::output::size;
use crate::terminal::escape;
use crate::tree::pack::{self, Item};
use crate::tree::unpack::{Tally, Unpack, UnpackError};
use crate::tree::{END, Kind, Reader};
use crate::{CommandResult, Context, ExitStatus};

/// Unpacks beside the target, which must not be there, and names it when it is whole.
const RECEIVE: &str = r#"set -eu; if [ -d "$1" ]; then set -- "$1/$2"; fi
if [ -e "$1" ] || [ -L "$1" ]; then echo "$1 is there already" >&2; exit 1; fi
t="$1.agentlab.$$"; trap 'rm -rf -- "$t"' EXIT; mkdir -- "$t"; tar -C "$t" -xof -; mv -- "$t" "$1""#;
const SEND: &str =
    r#"if [ ! -d "$1" ]; then echo "$1 is not a directory" >&2; exit 1; fi; exec tar -C "$1" -cf - ."#;
/// Bytes of one frame.
const PIECE: usize = 16 * 1024;
/// How often a person is told how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Into a sandbox.
pub(super) async fn send(
    context: &Context,
    from: &Path,
    (sandbox, path): (&str, &str),
    user: User,
) -> CommandResult {
    let file_error = |source| CommandError::File {
        action: "Reading the directory",
        path: from.display().to_string(),
        source,
    };
    let root = from.canonicalize().map_err(file_error)?;
    let name = root
        .file_name()
        .map_or("root".into(), |name| name.to_string_lossy());
    let (items, tally) = pack::walk(&root).map_err(file_error)?;
    let request = shell(RECEIVE, &[path, &name], user);
    let (input, mut output) = context.client.command(sandbox, &request).await?.split();
    let mut words = Vec::new();
    let mut broken = None;
    let code = {
        let mut sent = std::pin::pin!(feed(context, &input, &items));
        let mut ended = std::pin::pin!(outcome(&mut output, &mut words));
        let mut done = false;
        loop {
            tokio::select! {
                code = &mut ended => break code?,
                fed = &mut sent, if !done => {
                    done = true;
                    // Without its end the archive is cut: the guest removes what it has of it.
                    broken = fed.err();
                    input.send(&CommandFrame::InputEnd).await;
                }
            }
        }
    };
    match broken {
        Some(error) => Err(error),
        None => {
            judge(code, &words)?;
            tell(context, &format!("{sandbox}:{path}"), &tally)
        }
    }
}

async fn feed(context: &Context, input: &CommandInput, items: &[Item]) -> Result<(), CommandError> {
    let mut progress = Progress::new(context);
    let (mut files, mut bytes) = (0, 0);
    let mut pending = Vec::with_capacity(2 * PIECE);
    for item in items {
        pending.extend(item.entry.header());
        if item.entry.kind == Kind::File {
            read(item, input, &mut pending).await?;
            files += 1;
            bytes += item.entry.size;
            progress.show(files, bytes)?;
        }
        pending.resize(pending.len() + item.entry.padding(), 0);
        flush(input, &mut pending, PIECE).await;
    }
    pending.extend(END);
    flush(input, &mut pending, 1).await;
    Ok(())
}

/// Exactly as many bytes as the header says.
async fn read(item: &Item, input: &CommandInput, pending: &mut Vec<u8>) -> Result<(), CommandError> {
    let failed = |source| CommandError::File {
        action: "Reading",
        path: item.path.display().to_string(),
        source,
    };
    let file = tokio::fs::File::open(&item.path).await.map_err(failed)?;
    let mut file = file.take(item.entry.size);
    let mut left = item.entry.size;
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let count = file.read(&mut buffer).await.map_err(failed)?;
        if count == 0 {
            let message = format!(
                "{} became shorter while it was read; nothing was copied",
                item.path.display()
            );
            return Err(CommandError::refused(message));
        }
        left -= u64::try_from(count).unwrap_or(left);
        pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
        flush(input, pending, PIECE).await;
    }
    Ok(())
}

/// Sends what is pending once it is worth a frame. A guest that takes no more says so by its end.
async fn flush(input: &CommandInput, pending: &mut Vec<u8>, worth: usize) {
    while pending.len() >= worth {
        let rest = pending.split_off(pending.len().min(PIECE));
        let piece = std::mem::replace(pending, rest);
        if !input.send(&CommandFrame::Input(piece)).await {
            pending.clear();
            return;
        }
    }
}

/// Out of a sandbox.
pub(super) async fn receive(
    context: &Context,
    (sandbox, path): (&str, &str),
    to: &Path,
    user: User,
    limit: u64,
) -> CommandResult {
    let target = target(path, to)?;
    let beside = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file_error = |action: &'static str| {
        let path = target.display().to_string();
        move |source| CommandError::File { action, path, source }
    };
    // Removed when this ends in any way, with whatever came.
    let staging = tempfile::Builder::new()
        .prefix(".agentlab-")
        .tempdir_in(beside.unwrap_or(Path::new(".")))
        .map_err(file_error("Writing beside"))?;
    let tree = staging.path().join("tree");
    std::fs::create_dir(&tree).map_err(file_error("Writing beside"))?;
    let request = shell(SEND, &[path], user);
    let (input, mut output) = context.client.command(sandbox, &request).await?.split();
    input.send(&CommandFrame::InputEnd).await;
    let mut unpack = Unpack::into(&tree, limit);
    let (code, words, whole) = collect(context, &mut output, &mut unpack).await?;
    judge(code, &words)?;
    whole.finish().map_err(|error| refused(&error.into()))?;
    let tally = unpack.finish().map_err(|error| refused(&error))?;
    // An empty directory may have come to be there meanwhile; anything else is left as it is, and this fails.
    std::fs::rename(&tree, &target).map_err(file_error("Writing"))?;
    tell(context, &target.display().to_string(), &tally)
}

/// Where it goes: below a directory that is there, or under a name that is free.
fn target(path: &str, to: &Path) -> Result<PathBuf, CommandError> {
    let name = Path::new(path).file_name();
    let target = match name {
        Some(name) if to.is_dir() => to.join(name),
        None if to.is_dir() => {
            return Err(
                CommandError::usage(format!("`{path}` does not end in a directory's name"))
                    .with_hint("give the copy a name of its own"),
            );
        }
        Some(_) | None => to.to_owned(),
    };
    if target.symlink_metadata().is_ok() {
        return Err(CommandError::refused(format!(
            "{} is there already; nothing was copied",
            target.display()
        ))
        .with_hint("remove it, or give the copy another name"));
    }
    Ok(target)
}

async fn collect(
    context: &Context,
    output: &mut CommandOutput,
    unpack: &mut Unpack,
) -> Result<(u8, Vec<u8>, Reader), CommandError> {
    let mut reader = Reader::default();
    let mut words = Vec::new();
    let mut progress = Progress::new(context);
    loop {
        match output.next().await? {
            Some(CommandFrame::Output(bytes)) => {
                reader.push(&bytes, unpack).map_err(|error| refused(&error))?;
                let (files, bytes) = unpack.so_far();
                progress.show(files, bytes)?;
            }
            Some(CommandFrame::Error(bytes)) if words.len() < 4096 => words.extend_from_slice(&bytes),
            Some(CommandFrame::Exit(code)) => return Ok((code, words, reader)),
            Some(CommandFrame::Failed(message)) => return Err(CommandError::refused(message)),
            Some(_) => {}
            None => return Err(gone()),
        }
    }
}

fn refused(error: &UnpackError) -> CommandError {
    let refused = CommandError::refused(format!("{error}; nothing was copied"));
    match error {
        UnpackError::TooLarge(_) => refused.with_hint("`--max-bytes` allows more"),
        UnpackError::Tar(_) | UnpackError::TooMany | UnpackError::Write { .. } => refused,
    }
}

/// What was copied, and what was not.
fn tell(context: &Context, place: &str, tally: &Tally) -> CommandResult {
    let printer = &context.printer;
    if printer.json() {
        printer.document(tally)?;
    } else {
        let text = format!("{place}  {} files, {}", tally.files, size(tally.bytes));
        printer.line(&escape(&text))?;
        for one in &tally.left_out {
            printer.warning(&format!("not as it was: {one}"));
        }
        let told = u64::try_from(tally.left_out.len()).unwrap_or(u64::MAX);
        if tally.left_out_count > told {
            printer.warning(&format!("and {} more", tally.left_out_count - told));
        }
    }
    Ok(if tally.left_out_count == 0 {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

/// Shown to a person, over and over on one line.
struct Progress<'a> {
    context: &'a Context,
    next: Instant,
}

impl<'a> Progress<'a> {
    fn new(context: &'a Context) -> Self {
        Self {
            context,
            next: Instant::now() + TICK,
        }
    }

    fn show(&mut self, files: u64, bytes: u64) -> Result<(), CommandError> {
        if !self.context.printer.on_terminal() || Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + TICK;
        let text = format!("{files} files, {}", size(bytes));
        self.context.printer.transient(&text)
    }
}
