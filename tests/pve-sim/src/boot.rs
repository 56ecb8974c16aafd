//! What happens outside when a machine of the stand-in is powered: nothing, or a real VM.

use std::fmt;

/// A machine as it is powered on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Powered {
    /// Its VMID.
    pub vmid: u32,
    /// The template it was cloned from, where the volume of its root disk tells.
    pub template: Option<u32>,
    /// Its whole configuration.
    pub config: Vec<(String, String)>,
}

impl Powered {
    /// A value of its configuration.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.config
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The serial number of its SMBIOS record, decoded: where a seed stands.
    #[must_use]
    pub fn serial(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let record = self.value("smbios1")?;
        let serial = record.split(',').find_map(|part| part.strip_prefix("serial="))?;
        if record.split(',').any(|part| part == "base64=1") {
            return base64::engine::general_purpose::STANDARD.decode(serial).ok();
        }
        Some(serial.as_bytes().to_vec())
    }

    /// Address of its first NIC.
    #[must_use]
    pub fn mac(&self) -> Option<&str> {
        let net = self.value("net0")?;
        net.split(',').next()?.split_once('=').map(|(_, mac)| mac)
    }
}

/// Follows the power of the stand-in's machines. Calls come in order, are short, and must not wait: what takes time is
/// put into a queue.
pub trait Boot: Send + Sync + fmt::Debug {
    /// A machine was started.
    fn power_on(&self, machine: Powered);
    /// A machine no longer runs.
    fn power_off(&self, vmid: u32);
    /// A machine is frozen, or goes on.
    fn paused(&self, vmid: u32, paused: bool);
    /// A machine no longer exists.
    fn destroyed(&self, vmid: u32);
}

/// Machines exist in the stand-in alone.
#[derive(Debug, Default)]
pub struct NoBoot;

impl Boot for NoBoot {
    fn power_on(&self, _machine: Powered) {}
    fn power_off(&self, _vmid: u32) {}
    fn paused(&self, _vmid: u32, _paused: bool) {}
    fn destroyed(&self, _vmid: u32) {}
}
