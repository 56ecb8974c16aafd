//! Commands that write: done here under the lock, or by the daemon that has it.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{HostArguments, mac_text, words};
use crate::{
    Destination, Done, Enforcer, GuestPort, IfName, NotTheWriter, ORDER_PATH, Observer, Order, StoredPorts,
    Trust, WriterLock,
};

/// A daemon answers an order at once, or after a repair.
const ANSWER: Duration = Duration::from_secs(30);
/// How long another `agentlab-net` is waited for.
const TURNS: u32 = 50;
const TURN: Duration = Duration::from_millis(100);

/// Where lock and bindings are.
#[derive(Debug, Args)]
pub(super) struct Places {
    /// Directory of the writer's lock
    #[arg(long, global = true, hide = true, value_name = "PATH", default_value = crate::LOCK_DIRECTORY)]
    pub(super) lock_dir: PathBuf,
    /// Directory of operators' bindings
    #[arg(long, global = true, hide = true, value_name = "PATH", default_value = crate::STATE_DIRECTORY)]
    pub(super) state_dir: PathBuf,
}

/// How far a port is trusted, as people type it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Level {
    /// Nothing passes, in either direction
    Sealed,
    /// The published ports of the bridge address
    Bootstrap,
    /// The same, for a machine that runs
    Off,
    /// The Internet; no private network
    Nat,
    /// What --allow names
    Allowlist,
}

#[derive(Debug, Args)]
pub(super) struct TrustArguments {
    /// How far it is trusted
    #[arg(value_enum)]
    trust: Level,
    /// Network that an allowlist opens, as in 1.1.1.0/24, 1.1.1.1:tcp:443 or 1.1.1.1:udp:9000-9999
    #[arg(long, value_name = "NETWORK[:PROTOCOL:PORTS]", value_parser = destination)]
    allow: Vec<Destination>,
}

impl TrustArguments {
    fn trust(&self) -> Result<Trust> {
        if self.trust != Level::Allowlist && !self.allow.is_empty() {
            bail!("--allow belongs to the trust `allowlist`");
        }
        Ok(match self.trust {
            Level::Sealed => Trust::Sealed,
            Level::Bootstrap => Trust::BootstrapOnly,
            Level::Off => Trust::Off,
            Level::Nat => Trust::Nat,
            Level::Allowlist => Trust::Allowlist(self.allow.clone()),
        })
    }
}

fn destination(text: &str) -> Result<Destination, String> {
    text.parse()
        .map_err(|error: crate::DestinationError| error.to_string())
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| "expected six bytes, as in bc:24:11:00:00:01".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct BindArguments {
    /// Port of the bridge: tap<vmid>i<n>, or fwpr<vmid>p<n> with the Proxmox firewall; it may appear later
    port: IfName,
    /// The only Ethernet address it may send from
    #[arg(long, value_parser = mac)]
    mac: [u8; 6],
    /// The only address it may send from
    #[arg(long)]
    ip: Ipv4Addr,
    #[command(flatten)]
    trust: TrustArguments,
}

impl BindArguments {
    pub(super) fn order(&self) -> Result<Order> {
        Ok(Order::Bind {
            port: GuestPort {
                name: self.port.clone(),
                mac: self.mac,
                address: self.ip,
                trust: self.trust.trust()?,
            },
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct ChangeArguments {
    /// Bound port
    port: IfName,
    #[command(flatten)]
    trust: TrustArguments,
}

impl ChangeArguments {
    pub(super) fn order(&self) -> Result<Order> {
        Ok(Order::Trust {
            name: self.port.clone(),
            trust: self.trust.trust()?,
        })
    }
}

/// Has an order done by whoever is the one writer, and says so.
pub(super) fn perform(
    order: &Order,
    given: &HostArguments,
    places: &Places,
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<()> {
    let (done, by_daemon) = match writer(&places.lock_dir)? {
        Writer::Me(mut lock) => {
            let host = given.policy(Observer::open()?.host()?.as_ref())?;
            let mut enforcer = Enforcer::start(host)?;
            lock.note_bridge(enforcer.bridge_link()?)?;
            (enforcer.obey(order, &StoredPorts::new(&places.state_dir))?, false)
        }
        Writer::Daemon(socket) => (ask(&socket, order)?, true),
    };
    if as_json {
        let mut document = serde_json::to_value(&done)?;
        document["by_daemon"] = json!(by_daemon);
        writeln!(output, "{document}")?;
        return Ok(());
    }
    let what = match order {
        Order::Bind { port } => format!(
            "`{}` is bound to {} and {} with trust {}",
            port.name,
            mac_text(port.mac),
            port.address,
            port.trust.word()
        ),
        Order::Unbind { name } => format!("`{name}` is bound no more, and passes nothing"),
        Order::Trust { name, trust } => format!("`{name}` has trust {}", trust.word()),
        Order::Verify => format!("{} differences were repaired", done.drift.len()),
        Order::Seal => "Every port is sealed".to_owned(),
    };
    let by = if by_daemon { " (by the daemon)" } else { "" };
    Ok(writeln!(output, "{what}{by}: {}", words(&done.policy))?)
}

/// Who writes.
pub(super) enum Writer {
    /// This process, for as long as it keeps the lock.
    Me(WriterLock),
    /// The daemon behind this socket.
    Daemon(PathBuf),
}

/// Takes the lock, waiting for another `agentlab-net`, or finds the daemon that has it.
pub(super) fn writer(directory: &Path) -> Result<Writer> {
    let mut turn = 0;
    loop {
        match WriterLock::take(directory, None) {
            Ok(lock) => return Ok(Writer::Me(lock)),
            Err(NotTheWriter::Taken {
                socket: Some(socket), ..
            }) => return Ok(Writer::Daemon(socket)),
            Err(error @ NotTheWriter::Taken { .. }) if turn >= TURNS => return Err(error.into()),
            Err(NotTheWriter::Taken { .. }) => {
                turn += 1;
                wait();
            }
            Err(NotTheWriter::File { path, source }) => {
                let error = anyhow!(source).context(format!("the lock {} cannot be taken", path.display()));
                return Err(error.context("this needs root"));
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this program has one thread, and nothing else to do than to wait for its turn"
)]
fn wait() {
    std::thread::sleep(TURN);
}

/// One order to the daemon: HTTP over its control socket, by hand, since this program knows no other protocol.
fn ask(socket: &Path, order: &Order) -> Result<Done> {
    let asked = || format!("asking the daemon at {}", socket.display());
    let body = serde_json::to_string(order)?;
    let mut stream = UnixStream::connect(socket).with_context(asked)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    write!(
        stream,
        "POST {ORDER_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .with_context(asked)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).with_context(asked)?;
    let answer = String::from_utf8(answer).with_context(asked)?;
    read_answer(&answer).with_context(asked)
}

/// The longest answer that is believed.
const MOST: u64 = 4 << 20;

fn read_answer(answer: &str) -> Result<Done> {
    let (head, body) = answer.split_once("\r\n\r\n").context("it broke off")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "200" {
        return serde_json::from_str(body).context("its answer is not understood");
    }
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let said = |key| problem.get(key).and_then(Value::as_str);
    let mut why = said("detail")
        .or_else(|| said("title"))
        .unwrap_or("it gave no reason")
        .to_owned();
    if let Some(hint) = said("hint") {
        why = format!("{why}. {hint}");
    }
    bail!("it refused with {status}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_daemon_is_told_in_its_own_words() {
        let answer = "HTTP/1.1 409 Conflict\r\ncontent-type: application/problem+json\r\n\r\n\
                      {\"title\":\"x\",\"detail\":\"No port `tap9i0` is bound\",\"hint\":\"Bind it.\"}";
        let error = read_answer(answer).unwrap_err().to_string();
        assert_eq!(error, "it refused with 409: No port `tap9i0` is bound. Bind it.");
        for broken in ["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 500 x\r\n\r\n<html>"] {
            assert!(read_answer(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        assert_eq!(mac("bc:24:11:00:00:0F"), Ok([0xbc, 0x24, 0x11, 0, 0, 0x0f]));
        for bad in [
            "",
            "bc:24:11:00:00",
            "bc:24:11:00:00:01:02",
            "bc-24-11-00-00-01",
            "+1:2:3:4:5:6",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }
}
