//! `pve-sim`: a Proxmox VE stand-in on a port, to point a daemon at.

use anyhow::Result;
use clap::Parser;
use pve_sim::{PveSim, Rates, Scale, Setup, Version};

/// A Proxmox VE stand-in over TLS.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8006")]
    listen: String,
    /// Major release to stand in for: 8 or 9.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u8).range(8..=9))]
    release: u8,
    /// How long things take, compared with a genuine node.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Let calls fail as this seed says.
    #[arg(long)]
    faults: Option<u64>,
    /// Boot what is started, from the templates in this directory.
    #[cfg(feature = "qemu")]
    #[arg(long, requires = "run_dir")]
    templates: Option<std::path::PathBuf>,
    /// Where the VMs' state is kept.
    #[cfg(feature = "qemu")]
    #[arg(long)]
    run_dir: Option<std::path::PathBuf>,
    /// First of the user ids that VMs run under.
    #[cfg(feature = "qemu")]
    #[arg(long, default_value_t = 2_000_000)]
    uid_first: u32,
    /// Bridge the VMs are plugged into.
    #[cfg(feature = "qemu")]
    #[arg(long, default_value = "vmbr1")]
    bridge: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let version = if arguments.release == 8 {
        Version::V8
    } else {
        Version::V9
    };
    let setup = Setup::lab(version, Scale(arguments.scale));
    #[cfg(feature = "qemu")]
    let (sim, _booters) = booting(setup, &arguments).await?;
    #[cfg(not(feature = "qemu"))]
    let sim = setup.in_process();
    let sim = sim.listen(&arguments.listen).await?;
    if let Some(seed) = arguments.faults {
        // What a clone leaves that died half way only an administrator may clear away, and there is none.
        let rates = Rates {
            half_done_clone: 0,
            ..Rates::bad_day()
        };
        sim.plan_faults(seed, rates);
    }
    announce(&sim);
    tokio::signal::ctrl_c().await?;
    account(&sim);
    Ok(())
}

/// What it saw, for whoever judges a client by it.
#[expect(
    clippy::print_stdout,
    reason = "a command line tool whose output is its interface"
)]
fn account(sim: &PveSim) {
    let or_nothing = |lines: Vec<String>| match lines.is_empty() {
        true => "nothing".to_owned(),
        false => lines.join("; "),
    };
    let audit = sim.audit();
    println!("at its end");
    println!("left: {}", or_nothing(sim.left()));
    println!("foreign touched: {}", or_nothing(audit.foreign_touched));
    println!("faults: {:?}", audit.struck);
}

/// The stand-in, and whoever boots its machines.
#[cfg(feature = "qemu")]
async fn booting(setup: Setup, arguments: &Arguments) -> Result<(PveSim, tokio::task::JoinSet<()>)> {
    let mut booters = tokio::task::JoinSet::new();
    let (Some(templates), Some(run_dir)) = (&arguments.templates, &arguments.run_dir) else {
        return Ok((setup.in_process(), booters));
    };
    let options = pve_sim::BootOptions {
        templates: templates.clone(),
        run_dir: run_dir.clone(),
        bridge: arguments.bridge.clone(),
        uid_first: arguments.uid_first,
    };
    let (boot, booter) = pve_sim::boot_with_qemu(options).await?;
    let sim = setup.boot_with(boot);
    booters.spawn(booter.run(sim.operator()));
    Ok((sim, booters))
}

#[expect(
    clippy::print_stdout,
    reason = "a command line tool whose output is its interface"
)]
fn announce(sim: &PveSim) {
    println!("url: {}", sim.url());
    println!("fingerprint: {}", sim.fingerprint());
    println!("token: {}", sim.token());
    println!("node: {}", sim.node());
}
