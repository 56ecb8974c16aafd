//! `agent-runner`: seed, machine, link, redemption, job. The work itself is in the library.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use agent_runner::arguments::{self, Arguments, Command};
use agent_runner::command;
use agent_runner::console::say;
use agent_runner::hold::{hold, stay};
use agent_runner::job::{self, Layout};
use agent_runner::link::Ways;
use agent_runner::machine_setup;
use agent_runner::remains::{self, Keeper, Remains};
use agent_runner::secrets;
use agent_runner::seed::{self, Found};
use agentlab_protocol::message::Order;
use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// What a killed runner leaves: root's alone, and memory.
const KEPT_AT: &str = "/run/agentlab-runner";

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(arguments)) => arguments,
        Ok(Command::Version) => return print(&format!("agent-runner {}\n", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Help) => return print(arguments::USAGE),
        Err(error) => {
            say(error);
            say("try --help");
            return ExitCode::from(2);
        }
    };
    // One thread: the runner waits for others nearly all the time, and its memory is the guest's.
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("Runtime could not be started")
        .and_then(|runtime| runtime.block_on(run(arguments)));
    forget_secrets();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Ends when it is told to; everything else that ends it is an error.
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let keeper = if arguments.machine_setup {
        Keeper::open(Path::new(KEPT_AT))
    } else {
        Keeper::nowhere()
    };
    let left = keeper.found();
    if left.is_some() {
        say("an earlier runner was killed");
        forget_secrets();
    }
    let found = match (&left, &arguments.seed_path) {
        (Some(left), _) => Found::before(left.seed()?),
        (None, Some(path)) => seed::from_file(path)?,
        (None, None) => seed::from_carriers().await?,
    };
    let seed = &found.seed;
    say(format_args!(
        "version {}, VMID {}, {}",
        env!("CARGO_PKG_VERSION"),
        seed.vmid,
        seed.hostname
    ));
    let settled = !arguments.machine_setup || machine_setup::begin(seed);
    let remains = left.map_or_else(|| Remains::first(seed), Ok)?;
    let work = work(&found, remains, &keeper, &arguments);
    let network = async {
        if !settled {
            machine_setup::finish(seed).await;
        }
        std::future::pending::<Infallible>().await
    };
    let mut told = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    tokio::select! {
        ended = work => ended.map(|never| match never {}),
        never = network => match never {},
        _ = told.recv() => Ok(()),
    }
}

async fn work(
    found: &Found,
    mut remains: Remains,
    keeper: &Keeper,
    arguments: &Arguments,
) -> anyhow::Result<Infallible> {
    let ways = Ways::new(&found.seed, arguments.line_path.clone()).context("TLS could not be set up")?;
    let (link, answer) = remains::session(&mut remains, keeper, ways).await?;
    found.forget();
    let layout = Layout::default();
    let commands = command::serve(link.clone(), layout.clone());
    let work = async {
        match answer.order.clone() {
            Order::Hold => Ok(hold(&link, &answer, &layout).await?),
            Order::Job(order) => {
                if !remains.ended {
                    let outcome = job::run(*order, &answer, link.clone(), layout, remains.deaths).await;
                    if let Err(error) = outcome.delivered {
                        say(format_args!("report was not delivered: {error}"));
                    }
                    remains.ended = true;
                    keeper.keep(&remains);
                }
                if answer.workspace.is_some() {
                    // Somebody may go on working here, and is to let go of it in the end.
                    return Ok(stay(&link, &answer, &Layout::default()).await?);
                }
                // The host ends this machine. Powering off here could overtake the upload's last acknowledgement.
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        ended = work => ended,
        never = commands => match never {},
    }
}

/// Whatever ended the runner.
fn forget_secrets() {
    if let Err(error) = secrets::wipe(&Layout::default().run) {
        say(error);
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
