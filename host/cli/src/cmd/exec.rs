//! `agentlab exec`: one command in a sandbox, through the guest channel.

use std::io::IsTerminal as _;

use agentlab_api::{CommandRequest, CommandUser};
use agentlab_client::{CommandFrame, CommandInput, CommandOutput};
use clap::{Args, ValueEnum};
use tokio::io::AsyncReadExt as _;

use super::lease_watch;
use crate::error::CommandError;
use crate::printer::Printer;
use crate::terminal::Flowing;
use crate::{CommandResult, Context, ExitStatus};

/// Who a command runs as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum User {
    /// The agent's user, with the agent's environment
    #[default]
    Agent,
    /// The guest's root
    Root,
}

impl From<User> for CommandUser {
    fn from(user: User) -> Self {
        match user {
            User::Agent => Self::Agent,
            User::Root => Self::Root,
        }
    }
}

/// `exec`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exits with the command's own code. What it prints is shown on a terminal with control characters \
                  escaped, and passed on as it is into a pipe or file. Ctrl-C ends it."
)]
pub(crate) struct Exec {
    /// VMID, name or UUID
    sandbox: String,
    /// Hand standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Who runs it
    #[arg(long, short, value_enum, default_value_t)]
    user: User,
    /// Where [default: the repository, or the home directory]
    #[arg(long, short = 'C', value_name = "DIR")]
    directory: Option<String>,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

impl Exec {
    /// A command of our own making.
    pub(super) fn of(sandbox: String, user: User, words: &[&str]) -> Self {
        Self {
            sandbox,
            stdin: false,
            user,
            directory: Some("/".to_owned()),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let sandbox = self.sandbox.clone();
        lease_watch::beside(context, &sandbox, false, self.execute(context)).await
    }

    async fn execute(self, context: &Context) -> CommandResult {
        let request = CommandRequest {
            words: self.words,
            user: self.user.into(),
            directory: self.directory,
            terminal: None,
        };
        let (input, mut output) = context.client.command(&self.sandbox, &request).await?.split();
        let mut stdin = std::pin::pin!(async {
            if self.stdin {
                feed(&input, tokio::io::stdin()).await;
            } else {
                input.send(&CommandFrame::InputEnd).await;
            }
        });
        let mut printed = Printed::new(&context.printer);
        let mut shown = std::pin::pin!(show(&mut output, &mut printed));
        let mut fed = false;
        loop {
            tokio::select! {
                ended = &mut shown => return ended,
                () = &mut stdin, if !fed => fed = true,
            }
        }
    }
}

/// Sends everything that can be read, and its end.
pub(super) async fn feed(input: &CommandInput, mut from: impl tokio::io::AsyncRead + Unpin) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            input.send(&CommandFrame::InputEnd).await;
            return;
        }
        let bytes = buffer.get(..read).unwrap_or_default().to_vec();
        if !input.send(&CommandFrame::Input(bytes)).await {
            return;
        }
    }
}

/// Where output goes: escaped on a terminal, as it is elsewhere.
pub(super) struct Printed<'a> {
    printer: &'a Printer,
    stdout: Flowing,
    stderr: Flowing,
    escape: bool,
    escape_errors: bool,
}

impl<'a> Printed<'a> {
    pub(super) fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            stdout: Flowing::default(),
            stderr: Flowing::default(),
            escape: std::io::stdout().is_terminal(),
            escape_errors: std::io::stderr().is_terminal(),
        }
    }

    fn output(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        if self.escape {
            let text = self.stdout.push(bytes);
            self.printer.write(&text)
        } else {
            self.printer.bytes(bytes)
        }
    }

    fn error(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        if self.escape_errors {
            let text = self.stderr.push(bytes);
            self.printer.error_bytes(text.as_bytes())
        } else {
            self.printer.error_bytes(bytes)
        }
    }
}

/// Prints what comes until the command has ended.
pub(super) async fn show(output: &mut CommandOutput, printed: &mut Printed<'_>) -> CommandResult {
    loop {
        match output.next().await? {
            Some(CommandFrame::Output(bytes)) => printed.output(&bytes)?,
            Some(CommandFrame::Error(bytes)) => printed.error(&bytes)?,
            Some(last) => return ended(last),
            None => return Err(gone()),
        }
    }
}

/// What the last frame means for the exit code.
pub(super) fn ended(last: CommandFrame) -> CommandResult {
    match last {
        CommandFrame::Exit(0) => Ok(ExitStatus::Success),
        CommandFrame::Exit(code) => Ok(ExitStatus::External(code)),
        CommandFrame::Failed(words) => Err(CommandError::Refused {
            message: words,
            hint: None,
        }),
        CommandFrame::Input(_)
        | CommandFrame::InputEnd
        | CommandFrame::Resize { .. }
        | CommandFrame::Output(_)
        | CommandFrame::Error(_) => Err(gone()),
    }
}

/// Nobody says any more how it ended.
pub(super) fn gone() -> CommandError {
    CommandError::Refused {
        message: "The guest went away before the command ended".to_owned(),
        hint: Some("`agentlab sandbox list --all` shows what became of it".to_owned()),
    }
}
