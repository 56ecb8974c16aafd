//! `agentlab attach`: a shell in a sandbox, on this terminal. The one place where a guest's bytes reach the terminal as
//! they are: whoever attaches asks for just that.

use std::io::{IsTerminal as _, Write as _};

use agentlab_api::{CommandRequest, CommandTerminal};
use agentlab_client::{CommandFrame, CommandInput, CommandOutput};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::exec::{User, ended, gone};
use super::lease_watch;
use crate::error::CommandError;
use crate::{CommandResult, Context};

/// Ctrl-] ends the session from here, whatever the guest does.
const LEAVE: u8 = 0x1d;

/// `attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-] ends the session and what runs in it. The guest's output reaches this terminal as it is: do \
                  not attach to a guest that you would not let write to your screen."
)]
pub(crate) struct Attach {
    /// VMID, name or UUID
    sandbox: String,
    /// Who is logged in
    #[arg(long, short, value_enum, default_value_t)]
    user: User,
    /// Where [default: the repository, or the home directory]
    #[arg(long, short = 'C', value_name = "DIR")]
    directory: Option<String>,
    /// Program and arguments [default: a login shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// The terminal, given back as it was.
struct Raw(Termios);

impl Raw {
    fn begin() -> Result<Self, CommandError> {
        let failed = |errno: rustix::io::Errno| CommandError::Runtime(errno.into());
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

impl Attach {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            return Err(CommandError::usage("`attach` needs a terminal")
                .with_hint("`agentlab exec` runs a command without one"));
        }
        let (rows, columns) = size();
        let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        let request = CommandRequest {
            words: self.words,
            user: self.user.into(),
            directory: self.directory,
            terminal: Some(CommandTerminal { rows, columns, kind }),
        };
        let (input, mut output) = context.client.command(&self.sandbox, &request).await?.split();
        let raw = Raw::begin()?;
        let session = async {
            let last = tokio::select! {
                last = pour(&mut output) => last,
                () = type_in(&input) => Ok(None),
                () = follow_size(&input) => Ok(None),
            };
            drop(raw);
            context.printer.line("")?;
            match last? {
                Some(frame) => ended(frame),
                None => Ok(crate::ExitStatus::Success),
            }
        };
        lease_watch::beside(context, &self.sandbox, true, session).await
    }
}

fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Everything that comes, to the terminal; the frame that ended it.
async fn pour(output: &mut CommandOutput) -> Result<Option<CommandFrame>, CommandError> {
    loop {
        match output.next().await? {
            Some(CommandFrame::Output(bytes) | CommandFrame::Error(bytes)) => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(&bytes)
                    .and_then(|()| stdout.flush())
                    .map_err(CommandError::Output)?;
            }
            Some(last) => return Ok(Some(last)),
            None => return Err(gone()),
        }
    }
}

/// Every key, until the one that leaves.
async fn type_in(input: &CommandInput) {
    let mut stdin = tokio::io::stdin();
    let mut keys = [0; 1024];
    loop {
        let Ok(count) = stdin.read(&mut keys).await else {
            return;
        };
        let keys = keys.get(..count).unwrap_or_default();
        if keys.is_empty() || keys.contains(&LEAVE) {
            return;
        }
        if !input.send(&CommandFrame::Input(keys.to_vec())).await {
            // The end comes by the other direction.
            return std::future::pending().await;
        }
    }
}

async fn follow_size(input: &CommandInput) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return std::future::pending().await;
    };
    while changes.recv().await.is_some() {
        let (rows, columns) = size();
        input.send(&CommandFrame::Resize { rows, columns }).await;
    }
}
