//! Named formats of values, refused in the genuine words.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Version;
use crate::properties;

/// Longest SMBIOS record.
const SMBIOS: usize = 512;

pub(crate) fn check(path: &str, format: &str, value: &str, version: Version) -> Result<(), String> {
    let fits = match format {
        "vmid" => return vmid(value),
        "smbios" if value.len() > SMBIOS => {
            return Err(format!("value may only be {SMBIOS} characters long"));
        }
        "tags" => {
            return value
                .split([',', ';', ' '])
                .filter(|tag| !tag.is_empty())
                .try_for_each(tag);
        }
        "urlencoded" => return urlencoded(value),
        "dns" => dns(value),
        "configid" => configid(value) && value.len() <= 40,
        "configids" => value
            .split([',', ';', ' '])
            .filter(|id| !id.is_empty())
            .all(configid),
        "nodeid" => !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "storageid" => value.len() > 1 && starts_with_letter(value) && word(value, "-_."),
        "poolid" => !value.is_empty() && value.split('/').all(|part| !part.is_empty() && word(part, "._-")),
        "roleid" => !value.is_empty() && word(value, "._-"),
        "userid" => value.split_once('@').is_some_and(|(user, realm)| {
            !user.is_empty() && !user.contains([':', '/', ' ']) && realm.len() > 1 && word(realm, ".-_")
        }),
        "group" => return group(value),
        "size" => return pattern(size(value, "MG")),
        "growth" => return pattern(growth(value)),
        "url" => return pattern(value.starts_with("http://") || value.starts_with("https://")),
        "disk" => is_drive(value) || matches!(value, "efidisk0" | "tpmstate0"),
        "mac" => is_unicast(value),
        "ipv4" => value.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => value.parse::<Ipv6Addr>().is_ok(),
        "ipv4config" => value == "dhcp" || network::<Ipv4Addr>(value, 32),
        "ipv6config" => matches!(value, "dhcp" | "auto") || network::<Ipv6Addr>(value, 128),
        "volumeid" => value.split_once(':').is_some_and(|(storage, volume)| {
            starts_with_letter(storage) && word(storage, "-_.") && !volume.is_empty()
        }),
        "bridge" => (1..=10).contains(&value.len()) && starts_with_letter(value) && word(value, "_-."),
        "base64" => !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic()),
        "uuid" => return pattern(is_uuid(value)),
        "disksize" => return pattern(size(value.trim_end_matches(['K', 'M', 'G', 'T']), "")),
        "anydisk" => {
            is_drive(value) || matches!(value, "efidisk0" | "tpmstate0") || value.starts_with("unused")
        }
        named => match properties::named(named) {
            Some(format) => return format.check(path, value, version),
            None => true,
        },
    };
    if fits {
        return Ok(());
    }
    Err(match format {
        "dns" => "invalid format - value does not look like a valid DNS name\n".into(),
        "configid" | "configids" => format!("invalid format - invalid configuration ID '{value}'\n"),
        "nodeid" => "invalid format - value does not look like a valid node name\n".into(),
        "storageid" => format!("invalid format - storage ID '{value}' contains illegal characters\n"),
        "poolid" => format!("invalid format - value '{value}' does not look like a valid pool name\n"),
        "userid" => format!("invalid format - value '{value}' does not look like a valid user name\n"),
        "mac" => "invalid format - value does not look like a valid unicast MAC address\n".into(),
        "ipv4" | "ipv6" => format!(
            "invalid format - value is not a valid {} address\n",
            if format == "ipv4" { "IPv4" } else { "IPv6" }
        ),
        "ipv4config" | "ipv6config" => format!(
            "invalid format - value does not look like a valid {} network configuration\n",
            &format[..4]
        ),
        "volumeid" => format!("invalid format - unable to parse volume ID '{value}'\n"),
        "bridge" => format!("invalid format - invalid bridge ID '{value}'\n"),
        "disk" | "anydisk" => {
            format!("value '{value}' does not have a value in the enumeration 'ide0, ide1, …'")
        }
        _ => format!("invalid format - value '{value}' is not valid\n"),
    })
}

fn vmid(value: &str) -> Result<(), String> {
    let looks = (3..=9).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_digit())
        && !value.starts_with('0');
    if looks {
        return Ok(());
    }
    if value.parse::<i64>().is_err() {
        return Err(format!("type check ('integer') failed - got '{value}'"));
    }
    Err("invalid format - value does not look like a valid VM ID\n".into())
}

fn tag(tag: &str) -> Result<(), String> {
    let mut bytes = tag.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if first && bytes.all(|b| b.is_ascii_alphanumeric() || b"_-+.".contains(&b)) {
        return Ok(());
    }
    Err("invalid format - invalid characters in tag\n".into())
}

fn urlencoded(value: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.!~*'()%+".contains(c);
    if value.chars().all(plain) {
        return Ok(());
    }
    Err("invalid format - invalid urlencoded string\n".into())
}

/// An address with the length of its prefix.
fn network<A: std::str::FromStr>(value: &str, longest: u8) -> bool {
    value.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<A>().is_ok() && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest)
    })
}

/// Six bytes, of which the first is that of one single station.
fn is_unicast(value: &str) -> bool {
    let bytes: Vec<&str> = value.split(':').collect();
    let is_byte = |byte: &&str| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok();
    let first = bytes.first().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.len() == 6 && bytes.iter().all(is_byte) && first.is_some_and(|first| first & 1 == 0)
}

fn is_uuid(value: &str) -> bool {
    let lengths: Vec<usize> = value.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && value.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn group(value: &str) -> Result<(), String> {
    if value.len() > 18 {
        return Err("value may only be 18 characters long".into());
    }
    if value.len() < 2 {
        return Err("value must be at least 2 characters long".into());
    }
    pattern(starts_with_letter(value) && word(value, "-_"))
}

fn pattern(fits: bool) -> Result<(), String> {
    if fits {
        Ok(())
    } else {
        Err("value does not match the regex pattern".into())
    }
}

fn size(value: &str, units: &str) -> bool {
    let digits = value.trim_end_matches(|c| units.contains(c));
    value.len() - digits.len() <= 1 && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn growth(value: &str) -> bool {
    let value = value.strip_prefix('+').unwrap_or(value);
    match value.split_once('.') {
        Some((whole, rest)) => size(whole, "") && size(rest, "KMGT"),
        None => size(value, "KMGT"),
    }
}

fn dns(value: &str) -> bool {
    value.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

fn configid(value: &str) -> bool {
    value.len() > 1 && starts_with_letter(value) && word(value, "_-")
}

fn starts_with_letter(value: &str) -> bool {
    value.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
}

fn word(value: &str, besides: &str) -> bool {
    value
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
}

/// Whether a configuration key names a drive.
pub(crate) fn is_drive(name: &str) -> bool {
    [("ide", 4), ("sata", 6), ("scsi", 31), ("virtio", 16)]
        .iter()
        .any(|(bus, end)| {
            name.strip_prefix(bus)
                .is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number < *end))
        })
}

/// Bytes of a size such as `64M`, `+1.5G` without its sign, or plain KiB where that is what no unit means.
pub(crate) fn bytes_of(text: &str, without_unit: u64) -> u64 {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => without_unit,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let thousandths = format!("{fraction:0<3}").chars().take(3).collect::<String>();
    let whole: u64 = whole.parse().unwrap_or(0);
    whole * unit + thousandths.parse::<u64>().unwrap_or(0) * unit / 1000
}

/// A size as it stands in a configuration.
pub(crate) fn size_text(bytes: u64) -> String {
    for (unit, name) in [(1_u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")] {
        if bytes > 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}
