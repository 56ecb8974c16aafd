//! A machine's configuration as PVE keeps it, and what of it is ours.
//!
//! What we know of a machine stands in the first of its description's lines that begins like a stamp:
//!
//! ```text
//!   agentlab:<sandbox>:<nonce> vmid=1000 template=9000 uuid=<smbios uuid> mac=<net0> firewall=on
//!   └ in the clone call itself ──────────────────────┘ └ after it ────┘ └ configured ──────────┘
//! ```
//! A copy of the machine that somebody else makes carries the same description, and another VMID or another uuid: PVE
//! makes a new one for every clone. Then the line is not believed, and the copy is not ours.

use agentlab_api::Vmid;

use super::answer::Fields;
use super::smbios::Smbios;
use crate::{MacAddress, Stamp};

/// The line of a description that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) stamp: Stamp,
    pub(crate) vmid: Vmid,
    pub(crate) template: Vmid,
    /// Of its SMBIOS, once it was seen.
    pub(crate) uuid: Option<String>,
    /// Of its NIC, once it was configured.
    pub(crate) mac: Option<String>,
    /// PVE's own firewall, if it was configured with that.
    pub(crate) firewall: Option<String>,
}

impl Label {
    pub(crate) fn to_line(&self) -> String {
        let mut line = format!("{} vmid={} template={}", self.stamp, self.vmid, self.template);
        for (key, value) in [
            ("uuid", &self.uuid),
            ("mac", &self.mac),
            ("firewall", &self.firewall),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        line
    }

    /// From a description. One that has two such lines, or a damaged one, has none.
    pub(crate) fn find(description: &str) -> Option<Self> {
        let mut lines = description.lines().map(str::trim).filter(|line| is_ours(line));
        let (line, None) = (lines.next()?, lines.next()) else {
            return None;
        };
        let mut words = line.split_whitespace();
        let stamp = words.next()?.parse().ok()?;
        let value = |key: &str| {
            let mut found = words
                .clone()
                .filter_map(|word| word.split_once('='))
                .filter(|(found, _)| *found == key);
            match (found.next(), found.next()) {
                (Some((_, value)), None) => Some(value.to_owned()),
                _ => None,
            }
        };
        Some(Self {
            stamp,
            vmid: value("vmid")?.parse().ok()?,
            template: value("template")?.parse().ok()?,
            uuid: value("uuid"),
            mac: value("mac"),
            firewall: value("firewall"),
        })
    }

    /// The description with this label in the place of the old one; what an operator wrote around it stays.
    pub(crate) fn replace_in(&self, description: &str) -> String {
        let lines = description.lines().map(|line| {
            if is_ours(line.trim()) {
                self.to_line()
            } else {
                line.to_owned()
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn is_ours(line: &str) -> bool {
    line.starts_with("agentlab:")
}

/// A NIC, as `model=MAC,bridge=...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) mac: Option<String>,
    pub(crate) bridge: Option<String>,
    /// Behind a bridge of PVE's own firewall, where its port has another name.
    pub(crate) firewall: bool,
    /// In a VLAN, for which PVE may make a bridge of its own beside the one that is named.
    pub(crate) vlan: bool,
}

const MODELS: &[&str] = &[
    "virtio",
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "vmxnet3",
];

impl Net {
    fn parse(text: &str) -> Self {
        let mut net = Self {
            mac: None,
            bridge: None,
            firewall: false,
            vlan: false,
        };
        for (key, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            match key {
                "macaddr" => net.mac = Some(value.to_owned()),
                "bridge" => net.bridge = Some(value.to_owned()),
                "firewall" => net.firewall = value != "0",
                "tag" | "trunks" => net.vlan = true,
                model if MODELS.contains(&model) => net.mac = Some(value.to_owned()),
                _ => {}
            }
        }
        net
    }
}

/// A disk, as `storage:volume,size=...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) slot: String,
    pub(crate) volume: String,
    pub(crate) bytes: Option<u64>,
}

impl Disk {
    fn parse(slot: &str, text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let first = parts.next()?;
        let volume = first.strip_prefix("file=").unwrap_or(first);
        let is_cdrom = text.split(',').any(|part| part == "media=cdrom") || is_cloud_init(volume);
        if is_cdrom || volume == "none" {
            return None;
        }
        let size = parts.find_map(|part| part.strip_prefix("size="));
        Some(Self {
            slot: slot.to_owned(),
            volume: volume.to_owned(),
            bytes: size.and_then(bytes),
        })
    }

    pub(crate) fn storage(&self) -> &str {
        self.volume.split_once(':').map_or("", |(storage, _)| storage)
    }

    /// The VMID in the volume's name.
    pub(crate) fn owner(&self) -> Option<Vmid> {
        volume_owner(&self.volume)
    }
}

/// Whether it is what PVE writes a machine's cloud-init data on: `local:410/vm-410-cloudinit.qcow2`, `zfs:vm-410-cloudinit`.
/// A storage may have that word in its name too.
fn is_cloud_init(volume: &str) -> bool {
    let name = volume.rsplit(['/', ':']).next().unwrap_or_default();
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let before = name.strip_suffix("cloudinit");
    before.is_some_and(|before| {
        let number = before.strip_prefix("vm-").and_then(|rest| rest.strip_suffix('-'));
        before.is_empty() || number.is_some_and(|number| number.parse::<Vmid>().is_ok())
    })
}

/// `local:410/vm-410-disk-0.qcow2`, `zfs:base-9000-disk-0/vm-410-disk-0`: the last part names the owner.
pub(crate) fn volume_owner(volume: &str) -> Option<Vmid> {
    let name = volume.rsplit(['/', ':']).next()?;
    let rest = name.strip_prefix("vm-").or_else(|| name.strip_prefix("base-"))?;
    rest.split('-').next()?.parse().ok()
}

/// `200M`, `32G`, `1.5T`, `528K` or plain bytes.
pub(crate) fn bytes(size: &str) -> Option<u64> {
    let (digits, unit) = match size.find(|letter: char| letter.is_ascii_alphabetic()) {
        Some(end) => size.split_at_checked(end)?,
        None => (size, ""),
    };
    let shift = match unit {
        "" => 0u32,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().ok()?;
    let unit = 1u64.checked_shl(shift)?;
    let mut total = whole.checked_mul(unit)?;
    if !part.is_empty() {
        let tenths = 10u64.checked_pow(u32::try_from(part.len()).ok()?)?;
        total = total.checked_add(part.parse::<u64>().ok()?.checked_mul(unit)? / tenths)?;
    }
    Some(total)
}

/// A machine as read from a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) node: String,
    pub(crate) vmid: Vmid,
    fields: Fields,
}

impl Record {
    pub(crate) fn new(node: &str, vmid: Vmid, fields: Fields) -> Self {
        Self {
            node: node.to_owned(),
            vmid,
            fields,
        }
    }

    pub(crate) fn name(&self) -> String {
        self.fields
            .text("name")
            .unwrap_or_else(|| format!("VM {}", self.vmid))
    }

    pub(crate) fn description(&self) -> String {
        self.fields.text("description").unwrap_or_default()
    }

    /// What proves that it is ours; `None` when anything about it does not fit.
    pub(crate) fn label(&self) -> Option<Label> {
        let label = Label::find(&self.description())?;
        let is_this = label.vmid == self.vmid;
        let has_its_uuid = match (&label.uuid, self.smbios().uuid()) {
            (None, _) => true,
            (Some(noted), Some(found)) => noted.eq_ignore_ascii_case(found),
            (Some(_), None) => false,
        };
        (is_this && has_its_uuid).then_some(label)
    }

    pub(crate) fn digest(&self) -> Option<String> {
        self.fields.text("digest")
    }

    pub(crate) fn lock(&self) -> Option<String> {
        self.fields.text("lock")
    }

    /// Whether PVE is still making it: then its configuration is not complete, and may show nothing but that.
    pub(crate) fn is_being_made(&self) -> bool {
        self.lock()
            .is_some_and(|lock| lock == "clone" || lock == "create")
    }

    pub(crate) fn is_template(&self) -> bool {
        self.fields.flag("template")
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.fields.flag("protection")
    }

    pub(crate) fn smbios(&self) -> Smbios {
        Smbios::parse(&self.fields.text("smbios1").unwrap_or_default())
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.fields.text(key)
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.fields.number(key)
    }

    pub(crate) fn fraction(&self, key: &str) -> Option<f64> {
        self.fields.fraction(key)
    }

    /// Whether it has a cloud-init drive.
    pub(crate) fn has_cloud_init(&self) -> bool {
        let mut drives = self.devices(&["ide", "sata", "scsi", "virtio"]);
        drives.any(|(_, value)| {
            let first = value.split(',').next().unwrap_or_default();
            is_cloud_init(first.strip_prefix("file=").unwrap_or(first))
        })
    }

    /// Every key with its value.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, String)> {
        let keys = self.fields.keys();
        keys.filter_map(|key| Some((key.to_owned(), self.fields.text(key)?)))
    }

    /// Numbered keys of some kinds, such as `net0`, with their values.
    pub(crate) fn devices(&self, kinds: &'static [&str]) -> impl Iterator<Item = (String, String)> {
        let slots = self
            .fields
            .keys()
            .filter(|key| kinds.iter().any(|kind| is_slot(key, kind)));
        slots.filter_map(|slot| Some((slot.to_owned(), self.fields.text(slot)?)))
    }

    /// Slots of all NICs.
    pub(crate) fn nics(&self) -> Vec<(String, Net)> {
        self.devices(&["net"])
            .map(|(slot, value)| (slot, Net::parse(&value)))
            .collect()
    }

    /// All disks, without CD-ROMs; also the ones that hang on nothing.
    pub(crate) fn disks(&self) -> Vec<Disk> {
        self.devices(&["scsi", "virtio", "sata", "ide", "unused", "efidisk", "tpmstate"])
            .filter_map(|(slot, value)| Disk::parse(&slot, &value))
            .collect()
    }

    /// The slots it boots from, where its configuration names them.
    pub(crate) fn boot_order(&self) -> Option<String> {
        let boot = self.fields.text("boot")?;
        let mut parts = boot.split(',');
        parts
            .find_map(|part| part.strip_prefix("order="))
            .map(str::to_owned)
    }

    /// The disk it boots from. Without a word about that PVE takes its first one, as it counts them.
    pub(crate) fn root_disk(&self) -> Option<Disk> {
        let disks = self.disks();
        let order = self.boot_order().unwrap_or_default();
        let said = order
            .split(';')
            .map(str::to_owned)
            .chain(self.fields.text("bootdisk"));
        let mut said = said.filter_map(|slot| disks.iter().find(|disk| disk.slot == slot).cloned());
        said.next().or_else(|| {
            let counted = disks.iter().filter_map(|disk| Some((place(&disk.slot)?, disk)));
            counted
                .min_by_key(|(place, _)| *place)
                .map(|(_, disk)| disk.clone())
        })
    }
}

/// Where a slot stands among those that can be booted from, as PVE counts them.
fn place(slot: &str) -> Option<(usize, u32)> {
    let buses = ["ide", "scsi", "virtio", "sata"];
    let mut found = buses.iter().enumerate().filter(|(_, bus)| is_slot(slot, bus));
    found
        .next()
        .and_then(|(at, bus)| Some((at, slot.strip_prefix(*bus)?.parse().ok()?)))
}

/// `net0`, and not `nets` or `net0x`.
fn is_slot(key: &str, bus: &str) -> bool {
    key.strip_prefix(bus)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `net0` as we write it. With PVE's own firewall the port on our bridge is not the machine's tap but one end of a pair
/// to a bridge of its own; without need it is left out, because our policy filters each port anyway.
pub(crate) fn net0(mac: &MacAddress, bridge: &str, firewall: bool) -> String {
    format!(
        "virtio={},bridge={bridge},firewall={}",
        mac.to_string().to_uppercase(),
        u8::from(firewall)
    )
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
