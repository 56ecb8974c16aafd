//! What a machine is made into, in one call: its size, its bounds, its only NIC, and all that a clone inherits and must
//! not keep.

use agentlab_api::Vmid;
use tokio::time::Instant;

use super::change::{Change, Values, pair};
use super::firewall::label_of;
use super::machines::{Attempt, GIB};
use super::record::{Disk, Label, Record, net0};
use super::{Kind, Pve, Refusal, Wire, refused};
use crate::{BackendError, NetworkPlace, Power, Shape, Stamp};

/// On every machine of ours, for people who look at PVE's interface. It proves nothing.
const TAG: &str = "agentlab";
const ACTION: &str = "configure";

impl<W: Wire> Pve<W> {
    pub(super) async fn configure_once(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Attempt<()> {
        let (record, power) = self.ours_with_power(ACTION, vmid, stamp).await?;
        let read = Instant::now();
        let root = record
            .root_disk()
            .ok_or_else(|| refused(ACTION, vmid, "it has no disk that it boots from"))?;
        let grows = grows(vmid, &root, shape)?;
        let has_shape = has_shape(&record, shape, &self.options.bridge);
        if has_shape && !grows {
            return Ok(());
        }
        if power != Power::Stopped {
            return Err(refused(ACTION, vmid, "it is running").into());
        }
        if let Some(firewall) = &shape.limits.firewall {
            self.set_firewall(ACTION, &record, firewall).await?;
        }
        if !has_shape {
            self.shape(&record, stamp, shape).await?;
        }
        if let (true, Some(gb)) = (grows, shape.root_size_gb) {
            let record = self.still_ours(ACTION, stamp, record, read).await?;
            let change = Change::Resize {
                vmid,
                disk: root.slot,
                size: format!("{gb}G"),
            };
            self.change(&record.node, change).await?;
        }
        Ok(())
    }

    async fn shape(&self, record: &Record, stamp: &Stamp, shape: &Shape) -> Attempt<()> {
        let mut values = shape_values(record, shape, &self.options.bridge);
        let snippet = self.reserve_snippet(ACTION, record, stamp).await?;
        values.extend(snippet.map(|snippet| pair("cicustom", snippet)));
        // Two tenants' memory is never merged. Versions before 9 have no word for it.
        if self.version().await?.major >= 9 {
            values.push(pair("allow-ksm", 0));
        }
        loop {
            let refusal = match self.set(record, values.clone()).await {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            let Some(key) = dispensable(&refusal, &values) else {
                return Err(refusal.into());
            };
            tracing::warn!(vmid = %record.vmid, key, %refusal, "machine goes without");
            values.retain(|(found, _)| found != key);
        }
    }
}

/// Whether its disk grows; that it shrinks is refused.
fn grows(vmid: Vmid, root: &Disk, shape: &Shape) -> Result<bool, BackendError> {
    let Some(wanted) = shape.root_size_gb.map(|gb| u64::from(gb) * GIB) else {
        return Ok(false);
    };
    let Some(has) = root.bytes else { return Ok(true) };
    if wanted >= has {
        return Ok(wanted > has);
    }
    Err(BackendError::Refused {
        action: ACTION,
        vmid,
        reason: format!(
            "its disk has {} MiB and cannot shrink to {} MiB",
            has.div_ceil(1 << 20),
            wanted >> 20
        ),
        hint: Some(format!("ask for {} GiB or more", has.div_ceil(GIB))),
    })
}

/// A key that this refusal is about and without which a machine is as good: an administrator may have reserved all tags,
/// and a node may be older than it says.
fn dispensable(refusal: &Refusal, values: &Values) -> Option<&'static str> {
    let is_about = |key: &str| {
        if let Kind::Invalid(errors) = &refusal.kind {
            errors.iter().all(|(found, _)| found == key)
        } else {
            matches!(&refusal.kind, Kind::Permission(Some((_, needs))) if key == "tags" && needs.contains("tag"))
        }
    };
    let is_given = |key: &str| values.iter().any(|(found, _)| found == key);
    ["tags", "allow-ksm"]
        .into_iter()
        .find(|key| is_about(key) && is_given(key))
}

/// Whether a configuration is what a shape asks for already, the disk aside.
fn has_shape(record: &Record, shape: &Shape, bridge: &str) -> bool {
    let mac = shape.mac.to_string();
    let limits = &shape.limits;
    let is_labelled = record.label().is_some_and(|label| {
        let has_mac = label.mac.is_some_and(|noted| noted.eq_ignore_ascii_case(&mac));
        has_mac && label.firewall == limits.firewall.as_ref().map(label_of)
    });
    let is_limited = limits.cpu_percent.is_none_or(|percent| {
        let found = record.fraction("cpulimit").unwrap_or(0.0) * 100.0;
        (found - f64::from(percent)).abs() < 0.5
    });
    let is_pinned = limits.processors.is_none() || record.text("affinity") == limits.processors;
    let is_placed = cloud_init_place(record, shape).is_none_or(|place| stands_at(record, &place));
    is_labelled
        && record.number("cores").unwrap_or(1) == u64::from(shape.cores)
        && record.number("sockets").unwrap_or(1) == 1
        && record.number("memory") == Some(u64::from(shape.memory_mb))
        && record.number("balloon") == Some(limits.balloon_mb.unwrap_or(0).into())
        && is_limited
        && is_pinned
        && is_placed
        && stands_where_it_should(record, bridge).is_ok()
}

fn shape_values(record: &Record, shape: &Shape, bridge: &str) -> Values {
    let limits = &shape.limits;
    let mut values = vec![
        pair("cores", shape.cores),
        pair("memory", shape.memory_mb),
        pair("balloon", limits.balloon_mb.unwrap_or(0)),
        pair("net0", net0(&shape.mac, bridge, limits.firewall.is_some())),
        // A clone has them from its template, and a machine of ours neither begins by itself nor outlives its sandbox.
        pair("protection", 0),
        pair("onboot", 0),
        pair("tags", TAG),
    ];
    if record.number("sockets").unwrap_or(1) != 1 {
        values.push(pair("sockets", 1));
    }
    // What a profile says nothing of is left as its template has it.
    values.extend(
        limits
            .cpu_percent
            .map(|percent| pair("cpulimit", hundredths(percent))),
    );
    values.extend(limits.processors.as_ref().map(|list| pair("affinity", list)));
    if record.has_cloud_init() {
        // PVE's own default lets the first boot upgrade every package.
        values.push(pair("ciupgrade", 0));
    }
    if let (None, Some(root)) = (record.boot_order(), record.root_disk()) {
        // PVE would take its first disk, which a workspace may become.
        values.push(pair("boot", format!("order={}", root.slot)));
    }
    if let Some(place) = cloud_init_place(record, shape) {
        values.push(pair("ipconfig0", ipconfig(&place)));
        // Without one, PVE hands its node's own resolver on, whom no sandbox reaches.
        values.push(pair("nameserver", place.gateway));
    }
    if let Some(label) = record.label() {
        let label = Label {
            uuid: record.smbios().uuid().map(str::to_owned),
            mac: Some(shape.mac.to_string().to_uppercase()),
            firewall: limits.firewall.as_ref().map(label_of),
            ..label
        };
        values.push(pair("description", label.replace_in(&record.description())));
    }
    let others: Vec<String> = record
        .nics()
        .into_iter()
        .map(|(slot, _)| slot)
        .filter(|slot| slot != "net0")
        .collect();
    if !others.is_empty() {
        values.push(pair("delete", others.join(",")));
    }
    values
}

/// 150 as `1.5`.
fn hundredths(percent: u32) -> String {
    let text = format!("{}.{:02}", percent / 100, percent % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The address that cloud-init is to set, where the template has a drive for it.
fn cloud_init_place(record: &Record, shape: &Shape) -> Option<NetworkPlace> {
    shape.place.filter(|_| record.has_cloud_init())
}

fn ipconfig(place: &NetworkPlace) -> String {
    format!("ip={}/{},gw={}", place.address, place.prefix, place.gateway)
}

/// In whatever order PVE keeps it.
fn stands_at(record: &Record, place: &NetworkPlace) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        parts.sort();
        parts
    };
    let found = record.text("ipconfig0").unwrap_or_default();
    sorted(&found) == sorted(&ipconfig(place))
        && record
            .text("nameserver")
            .is_some_and(|found| found == place.gateway.to_string())
}

/// One NIC, on our bridge, with the address that the policy pins.
pub(super) fn stands_where_it_should(record: &Record, bridge: &str) -> Result<(), String> {
    let label = record.label().ok_or("it was never configured")?;
    let mac = label.mac.ok_or("it was never configured")?;
    let nics = record.nics();
    let [(slot, net)] = nics.as_slice() else {
        return Err(format!("it has {} NICs, and must have one", nics.len()));
    };
    let is_pinned = net
        .mac
        .as_ref()
        .is_some_and(|found| found.eq_ignore_ascii_case(&mac));
    if slot != "net0" || !is_pinned {
        return Err(format!("its NIC is not the one it was configured with, {mac}"));
    }
    if net.vlan {
        return Err("its NIC is in a VLAN, and must be in none".to_owned());
    }
    match &net.bridge {
        Some(found) if found == bridge && net.firewall == label.firewall.is_some() => Ok(()),
        Some(found) if found == bridge && net.firewall => Err(
            "its NIC is behind a bridge of PVE's own firewall, which its profile does not ask for".to_owned(),
        ),
        Some(found) if found == bridge => {
            Err("its NIC is not behind PVE's own firewall, which its profile asks for".to_owned())
        }
        Some(found) => Err(format!("its NIC is on bridge {found}, and must be on {bridge}")),
        None => Err(format!("its NIC is on no bridge, and must be on {bridge}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::{Value, json};

    use super::*;
    use crate::pve::Fields;
    use crate::{Limits, MacAddress};

    const LABEL: &str = "agentlab:0190c0de-0000-7000-8000-000000000001:0123456789abcdef0123456789abcdef vmid=1000 \
                         template=9000";

    fn record(more: Value) -> Record {
        let mut config = json!({
            "name": "sandbox-1000", "description": LABEL, "smbios1": "uuid=7d2ab580-26da-44b3-8f0d-0395a2723def",
            "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1", "scsi0": "local:1000/vm-1000-disk-0.qcow2,size=2G",
            "boot": "order=scsi0", "cores": 1, "memory": "512", "digest": "0".repeat(40),
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        Record::new("pve8", 1000.try_into().unwrap(), Fields::of(config).unwrap())
    }

    fn shape() -> Shape {
        Shape {
            cores: 4,
            memory_mb: 2048,
            root_size_gb: None,
            mac: MacAddress([2, 0xa1, 0, 0, 3, 0xe8]),
            limits: Limits::default(),
            place: Some(NetworkPlace {
                address: Ipv4Addr::new(10, 77, 0, 9),
                prefix: 16,
                gateway: Ipv4Addr::new(10, 77, 0, 1),
            }),
        }
    }

    /// The configuration that PVE has after such a call.
    fn applied(record: &Record, values: &Values, more: Value) -> Record {
        let mut config = more;
        for (key, value) in values.iter().filter(|(key, _)| key != "delete") {
            config[key] = json!(value);
        }
        config["smbios1"] = json!(record.text("smbios1"));
        Record::new("pve8", record.vmid, Fields::of(config).unwrap())
    }

    #[test]
    fn one_call_says_everything_and_the_result_asks_for_no_second() {
        let drive = json!({ "ide2": "local:1000/vm-1000-cloudinit.qcow2,media=cdrom", "net1": "virtio=x,bridge=vmbr0" });
        let before = record(drive);
        let mut shape = shape();
        shape.limits = Limits {
            cpu_percent: Some(150),
            processors: Some("0-3,8".into()),
            balloon_mb: Some(1024),
            firewall: None,
        };
        assert!(!has_shape(&before, &shape, "vmbr1"));
        let values = shape_values(&before, &shape, "vmbr1");
        let said = |key: &str| {
            let found: Vec<&str> = values
                .iter()
                .filter(|(found, _)| found == key)
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!(found.len(), 1, "{key}: {found:?}");
            found[0]
        };
        for (key, value) in [
            ("cpulimit", "1.5"),
            ("affinity", "0-3,8"),
            ("balloon", "1024"),
            ("ipconfig0", "ip=10.77.0.9/16,gw=10.77.0.1"),
            ("nameserver", "10.77.0.1"),
            ("ciupgrade", "0"),
            ("protection", "0"),
            ("onboot", "0"),
            ("delete", "net1"),
        ] {
            assert_eq!(said(key), value);
        }
        assert!(
            said("description").ends_with(" uuid=7d2ab580-26da-44b3-8f0d-0395a2723def mac=02:A1:00:00:03:E8")
        );
        let drive = json!({ "ide2": "local:1000/vm-1000-cloudinit.qcow2,media=cdrom" });
        let mut after = applied(&before, &values, drive);
        assert!(has_shape(&after, &shape, "vmbr1"));
        after = applied(
            &after,
            &vec![pair("ipconfig0", "gw=10.77.0.1,ip=10.77.0.8/16")],
            json!({}),
        );
        assert!(!has_shape(&after, &shape, "vmbr1"));
    }

    #[test]
    fn a_template_without_cloud_init_is_told_nothing_of_it_and_unsaid_bounds_stay_its_own() {
        let values = shape_values(&record(json!({ "cpulimit": 2 })), &shape(), "vmbr1");
        for key in [
            "ciupgrade",
            "ipconfig0",
            "nameserver",
            "cpulimit",
            "affinity",
            "delete",
        ] {
            assert!(values.iter().all(|(found, _)| found != key), "{key}");
        }
        for (percent, text) in [
            (5, "0.05"),
            (100, "1"),
            (150, "1.5"),
            (1000, "10"),
            (12_800, "128"),
        ] {
            assert_eq!(hundredths(percent), text);
        }
    }

    #[test]
    fn a_machine_goes_without_what_only_looks_nice_and_without_nothing_else() {
        let values = shape_values(&record(json!({})), &shape(), "vmbr1");
        let tags = Kind::Permission(Some((
            "/".into(),
            "Sys.Modify for modifying tag 'agentlab'".into(),
        )));
        let invalid = |keys: &[&str]| {
            Kind::Invalid(
                keys.iter()
                    .map(|key| ((*key).to_owned(), String::new()))
                    .collect(),
            )
        };
        let table = [
            (tags, Some("tags")),
            (invalid(&["tags"]), Some("tags")),
            (invalid(&["allow-ksm"]), None),
            (invalid(&["tags", "net0"]), None),
            (
                Kind::Permission(Some(("/vms/1000".into(), "VM.Config.Options".into()))),
                None,
            ),
        ];
        for (kind, key) in table {
            assert_eq!(
                dispensable(&Refusal::new(kind.clone(), "no"), &values),
                key,
                "{kind:?}"
            );
        }
    }
}
