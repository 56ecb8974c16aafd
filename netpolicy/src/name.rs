//! Names of network interfaces: parsed once, then safe in rules, in paths under `/proc/sys` and in nft text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kernel interface name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName([u8; IfName::SIZE]);

/// Why a text is not an interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not an interface name: expected 1 to 15 printable ASCII characters without blank, `/`, `:`, `*`, `\"` or `\\`",
    .0.escape_debug()
)]
pub struct IfNameError(String);

impl IfName {
    /// `IFNAMSIZ`: what the kernel reserves for a name, with its terminating zero.
    pub const SIZE: usize = 16;

    /// What the agents' bridge is called where nobody says otherwise.
    #[cfg(feature = "kernel")]
    pub(crate) fn usual_bridge() -> Self {
        Self::fixed("vmbr1")
    }

    /// What Tailscale calls its interface.
    #[cfg(feature = "kernel")]
    pub(crate) fn usual_tailnet() -> Self {
        Self::fixed("tailscale0")
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::SIZE);
        let text = self.0.get(..end).map(std::str::from_utf8);
        text.and_then(Result::ok).unwrap_or_default()
    }

    /// A name that is known to be one.
    fn fixed(text: &str) -> Self {
        let mut bytes = [0; Self::SIZE];
        for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Self(bytes)
    }

    /// The other link that the same NIC of a VM may hang on the bridge by: `tap<vmid>i<n>` is the machine's own, and
    /// `fwpr<vmid>p<n>` stands for it where Proxmox puts its firewall between.
    #[must_use]
    pub fn twin(&self) -> Option<Self> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (word, rest) = [("tap", 'i', "fwpr", 'p'), ("fwpr", 'p', "tap", 'i')]
            .into_iter()
            .find_map(|(mine, between, theirs, other)| {
                let (vmid, nic) = self.as_str().strip_prefix(mine)?.split_once(between)?;
                (digits(vmid) && digits(nic)).then(|| (theirs, format!("{vmid}{other}{nic}")))
            })?;
        format!("{word}{rest}").parse().ok()
    }

    /// The name as the kernel compares it: padded with zeros to [`Self::SIZE`].
    #[must_use]
    pub fn padded(&self) -> [u8; Self::SIZE] {
        self.0
    }
}

impl FromStr for IfName {
    type Err = IfNameError;

    /// The kernel's own rules (`dev_valid_name`), and no character that nft text or a wildcard would read otherwise.
    fn from_str(text: &str) -> Result<Self, IfNameError> {
        let fits = (1..Self::SIZE).contains(&text.len())
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"/:*\"\\".contains(&byte));
        if fits {
            Ok(Self::fixed(text))
        } else {
            Err(IfNameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for IfName {
    type Error = IfNameError;

    fn try_from(text: String) -> Result<Self, IfNameError> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IfName").field(&self.as_str()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_and_the_link_of_the_firewall_before_it_are_twins() {
        let twin = |text: &str| text.parse::<IfName>().unwrap().twin().map(String::from);
        assert_eq!(twin("tap1000i0").as_deref(), Some("fwpr1000p0"));
        assert_eq!(twin("fwpr1000p12").as_deref(), Some("tap1000i12"));
        for single in [
            "tap1000",
            "tapi0",
            "tap10x0i0",
            "fwpr1000i0",
            "fwln1000i0",
            "vmbr1",
            "tap1i",
        ] {
            assert_eq!(twin(single), None, "{single}");
        }
        // The longer word does not fit where the shorter one just did.
        assert_eq!(twin("tap99999999i999"), None);
    }

    #[test]
    fn names_that_the_kernel_or_nft_would_misread_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "sixteen-bytes-xx",
            "a b",
            "a/b",
            "tap*",
            "eth0:1",
            "a\"b",
            "tap\n",
            "t\u{e4}p",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "tap1000i0", "fwpr1000p0", "fifteen-bytes-x", "eth0.1"] {
            assert_eq!(
                good.parse::<IfName>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
    }
}
