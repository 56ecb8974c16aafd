//! QEMU's guest agent, which is late, slow and forgetful: never asked on the way to a sandbox.

use std::net::IpAddr;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::change::Read;
use super::view::Found;
use super::{Fields, Kind, Pve, Record, Refusal, Trouble, Wire, refused};
use crate::{Agents, BackendError, Executed, Result, Stamp};

impl<W: Wire> Pve<W> {
    async fn machine(&self, action: &'static str, vmid: Vmid) -> Result<Record> {
        match self.find(action, vmid).await? {
            Found::Nothing | Found::Container => Err(BackendError::NoSuchMachine { vmid }),
            Found::Hidden(refusal) => Err(refusal.into_error(self.wire.kind(), action, vmid)),
            Found::Here(record) => Ok(*record),
        }
    }
}

/// Bytes of an output. PVE shows each as the character of its number.
fn bytes(text: &str) -> Vec<u8> {
    let narrow: Option<Vec<u8>> = text
        .chars()
        .map(|letter| u8::try_from(u32::from(letter)).ok())
        .collect();
    narrow.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// Addresses of the interface with this Ethernet address, but for those that only its own link knows.
fn addresses(interfaces: &[Fields], mac: &str) -> Vec<IpAddr> {
    let own = interfaces.iter().filter(|interface| {
        interface
            .text("hardware-address")
            .is_some_and(|found| found.eq_ignore_ascii_case(mac))
    });
    own.flat_map(|interface| interface.objects("ip-addresses"))
        .filter_map(|address| address.text("ip-address")?.parse().ok())
        .filter(|address: &IpAddr| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
        .collect()
}

#[async_trait]
impl<W: Wire> Agents for Pve<W> {
    async fn agent_answers(&self, of: Vmid) -> Result<bool> {
        const ACTION: &str = "ask agent";
        let record = self.machine(ACTION, of).await?;
        match self.wire.ping(&record.node, of).await {
            Ok(()) => Ok(true),
            Err(refusal)
                if matches!(
                    refusal.kind,
                    Kind::AgentDown | Kind::AgentAbsent | Kind::NotRunning
                ) =>
            {
                Ok(false)
            }
            Err(refusal) => Err(refusal.into_error(self.wire.kind(), ACTION, of)),
        }
    }

    async fn agent_addresses(&self, of: Vmid) -> Result<Vec<IpAddr>> {
        const ACTION: &str = "ask agent for addresses";
        let failed = |refusal: Refusal| refusal.into_error(self.wire.kind(), ACTION, of);
        let record = self.machine(ACTION, of).await?;
        let nic = record.nics().into_iter().find(|(slot, _)| slot == "net0");
        let mac = nic.and_then(|(_, net)| net.mac);
        let mac = mac.ok_or_else(|| refused(ACTION, of, "it has no NIC"))?;
        let answer = self
            .wire
            .read(&Read::interfaces(&record.node, of))
            .await
            .map_err(failed)?;
        // The shell leaves the wrapping away.
        let list = answer.get("result").cloned().unwrap_or(answer);
        let interfaces =
            Fields::list(list).ok_or_else(|| failed(Refusal::unknown("the agent names no interfaces")))?;
        Ok(addresses(&interfaces, &mac))
    }

    async fn agent_execute(
        &self,
        in_guest: Vmid,
        stamp: &Stamp,
        program: &[String],
        patience: Duration,
    ) -> Result<Executed> {
        const ACTION: &str = "execute in guest";
        // What is not ASCII can make the agent unreachable for a while.
        if program.is_empty() || !program.iter().all(|word| word.is_ascii()) {
            let reason = "a program and its arguments must be given, in ASCII; pass the rest as base64";
            return Err(refused(ACTION, in_guest, reason));
        }
        let record = match self.ours(ACTION, in_guest, stamp).await {
            Ok(record) => record,
            Err(Trouble::Ours(error)) => return Err(error),
            Err(Trouble::Refused(refusal)) => {
                return Err(refusal.into_error(self.wire.kind(), ACTION, in_guest));
            }
        };
        let answer = self
            .wire
            .execute(&record.node, in_guest, program, patience)
            .await
            .map_err(|refusal| refusal.into_error(self.wire.kind(), ACTION, in_guest))?;
        let end = Fields::of(answer).unwrap_or_default();
        let output = |key: &str| bytes(&end.text(key).unwrap_or_default());
        Ok(Executed {
            code: end.number("exitcode").and_then(|code| i64::try_from(code).ok()),
            stdout: output("out-data"),
            stderr: output("err-data"),
            truncated: end.flag("out-truncated") || end.flag("err-truncated"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        assert_eq!(bytes("\u{c3}\u{a9}"), "\u{e9}".as_bytes());
        assert_eq!(bytes("plain"), b"plain");
        assert_eq!(bytes("\u{20ac}"), "\u{20ac}".as_bytes());
    }

    #[test]
    fn only_the_machines_own_interface_counts() {
        let interfaces = json!([
            {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
            {"name": "eth0", "hardware-address": "bc:24:11:be:60:c6", "ip-addresses": [
                {"ip-address": "169.254.1.1"}, {"ip-address": "10.77.0.9"}, {"ip-address": "fe80::1"}, {"ip-address": "junk"}]},
            {"name": "docker0", "hardware-address": "02:42:8c:5d:1a:7e", "ip-addresses": [{"ip-address": "172.17.0.1"}]},
            {"name": "odd"},
        ]);
        let found = addresses(&Fields::list(interfaces).unwrap(), "BC:24:11:BE:60:C6");
        assert_eq!(found, ["10.77.0.9".parse::<IpAddr>().unwrap()]);
    }
}
