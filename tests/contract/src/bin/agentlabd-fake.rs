//! `agentlabd` with a hypervisor in memory: everything a user meets is the real thing, and a VM costs nothing.
//!
//! With `backend: proxmox` it asks a node, or a stand-in for one, about volumes; its guests are in memory all the same.
//!
//! It reads a `config.yaml` like the real one, listens for guests on loopback, and touches neither network nor disk
//! outside of its directories. USR1 stops the daemon and starts it anew in this process, because machines in
//! memory could not outlive the process as real ones do.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use agentlab_api::Vmid;
use agentlab_backend::fake::Fake;
use agentlab_backend::{Backend, Template};
use agentlab_config::{BackendKind, Config, load_config};
use agentlab_engine::SystemClock;
use agentlab_tests_contract::{Guests, Played};
use agentlabd::World;
use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(&config, flags.template, flags.guests))
}

async fn serve(config: &Config, templates: Vec<Template>, guests: Option<PathBuf>) -> Result<()> {
    let fake = Fake::new();
    for template in templates {
        fake.add_template(template);
    }
    let played = guests.map_or(Played::ByTask, Played::Elsewhere);
    let backend: Arc<dyn Backend> = match config.backend {
        BackendKind::Qemu => Arc::new(fake.clone()),
        BackendKind::Proxmox | BackendKind::Shell => agentlabd::backend(config).await?,
    };
    let world = World {
        backend,
        network: Guests::new(fake, played),
        clock: Arc::new(SystemClock),
    };
    let mut signals = Signals::register()?;
    loop {
        let mut again = false;
        let stop = async { again = signals.restart().await };
        agentlabd::run(config, Some(world.clone()), stop).await?;
        if !again {
            return Ok(());
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    begin_anew: Signal,
}

impl Signals {
    fn register() -> Result<Self> {
        let register = |kind| signal(kind).context("signal");
        Ok(Self {
            terminate: register(SignalKind::terminate())?,
            interrupt: register(SignalKind::interrupt())?,
            begin_anew: register(SignalKind::user_defined1())?,
        })
    }

    /// Waits for one; whether it asks for a new start.
    async fn restart(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.begin_anew.recv() => true,
        }
    }
}
