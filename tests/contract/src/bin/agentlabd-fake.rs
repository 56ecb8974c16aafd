//! `agentlabd` with a hypervisor in memory: everything a user meets is the real thing, and a VM costs nothing.
//!
//! With `backend: proxmox` it asks a node, or a stand-in for one, about volumes; its guests are in memory all the same.
//!
//! It reads a `config.yaml` like the real one, listens for guests on loopback, and touches neither network nor disk
//! outside of its directories. USR1 stops the daemon and starts it anew in this process, because machines in
//! memory could not outlive the process as real ones do. USR2 drops it in the midst of everything, as a SIGKILL would
//! end it, and starts it anew.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use agentlab_api::Vmid;
use agentlab_backend::fake::Fake;
use agentlab_backend::{Backend, Template};
use agentlab_config::{BackendKind, BridgeAddress, Config, load_config};
use agentlab_engine::SystemClock;
use agentlab_tests_contract::{Guests, Played};
use agentlabd::World;
use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// No configuration may say this: an agent subnet is private.
const LOOPBACK_BRIDGE: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);

/// agentlabd with a hypervisor in memory, for tests.
#[derive(Debug, Parser)]
struct Flags {
    /// Configuration file
    #[arg(long, value_name = "PATH")]
    config: PathBuf,

    /// Templates there are, each with its runner's version
    #[arg(long, value_name = "VMID=VERSION", value_parser = template,
          default_value = concat!("9000=", env!("CARGO_PKG_VERSION")))]
    template: Vec<Template>,

    /// Who plays the guests instead of us: connected to once for each machine
    #[arg(long, value_name = "SOCKET")]
    guests: Option<PathBuf>,

    /// Sandboxes have addresses of loopback, which a test can connect from
    #[arg(long)]
    loopback: bool,
}

fn template(text: &str) -> Result<Template, String> {
    let (vmid, version) = text.split_once('=').ok_or("expected VMID=VERSION")?;
    let vmid: Vmid = vmid.parse().map_err(|error| format!("{error}"))?;
    Ok(Template {
        name: "demo".to_owned(),
        vmid,
        id: "0123456789abcdef".to_owned(),
        runner_version: Some(version.to_owned()),
    })
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .compact()
        .init();
    let mut config = load_config(&flags.config)?.value;
    for listen in [&mut config.bootstrap_listen, &mut config.artifact_listen] {
        listen.set_ip(Ipv4Addr::LOCALHOST);
        listen.set_port(0);
    }
    if flags.loopback {
        config.bridge_address = BridgeAddress {
            address: LOOPBACK_BRIDGE,
            prefix: 16,
        };
    }
    runtime()?.block_on(serve(config, flags.template, flags.guests))
}

fn runtime() -> Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    Ok(runtime.worker_threads(2).enable_all().build()?)
}

async fn serve(config: Config, templates: Vec<Template>, guests: Option<PathBuf>) -> Result<()> {
    let fake = Fake::new();
    for template in templates {
        fake.add_template(template);
    }
    let played = guests.map_or(Played::ByTask, Played::Elsewhere);
    let backend: Arc<dyn Backend> = match config.backend {
        BackendKind::Qemu => Arc::new(fake.clone()),
        BackendKind::Proxmox | BackendKind::Shell => agentlabd::backend(&config).await?,
    };
    let world = World {
        backend,
        network: Guests::new(fake, played),
        clock: Arc::new(SystemClock),
    };
    let mut signals = Signals::register()?;
    while live(config.clone(), world.clone(), &mut signals).await? {}
    Ok(())
}

/// One daemon, from its start to its end, in a runtime that ends with it; whether another one is to follow.
async fn live(config: Config, world: World, signals: &mut Signals) -> Result<bool> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (kill, killed) = oneshot::channel::<()>();
    let mut daemon = tokio::task::spawn_blocking(move || {
        let runtime = runtime()?;
        runtime.block_on(async {
            let stop = async { drop(stopped.await) };
            tokio::select! {
                ended = agentlabd::run(&config, Some(world), stop) => ended,
                _ = killed => Ok(()),
            }
        })?;
        anyhow::Ok(())
    });
    let asked = tokio::select! {
        ended = &mut daemon => return ended?.map(|()| false),
        asked = signals.next() => asked,
    };
    // Who has ended by itself meanwhile hears nothing.
    let _ = match asked {
        Asked::End | Asked::BeginAnew => stop.send(()),
        Asked::Die => kill.send(()),
    };
    daemon.await??;
    Ok(asked != Asked::End)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    End,
    BeginAnew,
    Die,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    begin_anew: Signal,
    die: Signal,
}

impl Signals {
    fn register() -> Result<Self> {
        let register = |kind| signal(kind).context("signal");
        Ok(Self {
            terminate: register(SignalKind::terminate())?,
            interrupt: register(SignalKind::interrupt())?,
            begin_anew: register(SignalKind::user_defined1())?,
            die: register(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.begin_anew.recv() => Asked::BeginAnew,
            _ = self.die.recv() => Asked::Die,
        }
    }
}
