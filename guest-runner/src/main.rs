//! `agent-runner`: seed, machine, link, redemption, job. The work itself is in the library.

use std::convert::Infallible;
use std::io::Write as _;
use std::process::ExitCode;

use agent_runner::arguments::{self, Arguments, Command};
use agent_runner::command;
use agent_runner::console::say;
use agent_runner::hold::{hold, stay};
use agent_runner::job::{self, Layout};
use agent_runner::link::{Link, Ways};
use agent_runner::machine_setup;
use agent_runner::seed::{self, Found};
use agentlab_protocol::message::Order;
use anyhow::Context as _;

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
    match ended {
        Ok(never) => match never {},
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<Infallible> {
    let found = match &arguments.seed_path {
        Some(path) => seed::from_file(path)?,
        None => seed::from_carriers().await?,
    };
    let seed = &found.seed;
    say(format_args!(
        "version {}, VMID {}, {}",
        env!("CARGO_PKG_VERSION"),
        seed.vmid,
        seed.hostname
    ));
    let settled = !arguments.machine_setup || machine_setup::begin(seed);
    let work = work(&found, &arguments);
    let network = async {
        if !settled {
            machine_setup::finish(seed).await;
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        ended = work => ended,
        never = network => match never {},
    }
}

async fn work(found: &Found, arguments: &Arguments) -> anyhow::Result<Infallible> {
    let ways = Ways::new(&found.seed, arguments.line_path.clone()).context("TLS could not be set up")?;
    let (link, answer) = Link::redeem(&found.seed, ways).await?;
    found.forget();
    let layout = Layout::default();
    let commands = command::serve(link.clone(), layout.clone());
    let work = async {
        match answer.order.clone() {
            Order::Hold => Ok(hold(&link, &answer, &layout).await?),
            Order::Job(order) => {
                let outcome = job::run(*order, &answer, link.clone(), layout).await;
                if let Err(error) = outcome.delivered {
                    say(format_args!("report was not delivered: {error}"));
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

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
