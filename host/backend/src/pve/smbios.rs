//! `smbios1`: where a seed is put. A key of the configuration that reaches the guest as its system's serial number,
//! which only root can read there.
//!
//! PVE takes a serial number in base64 alone, and `base64=1` is said of all fields at once: whatever else a template
//! has there is encoded along.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// Longest value PVE takes.
const LONGEST: usize = 512;

/// The fields in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Smbios {
    fields: Vec<(String, String)>,
}

/// Why a seed does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) usize);

impl Smbios {
    pub(crate) fn parse(text: &str) -> Self {
        let fields = text.split(',').filter_map(|part| part.split_once('='));
        Self {
            fields: fields
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    fn field(&self, key: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        fields
            .find(|(found, _)| found == key)
            .map(|(_, value)| value.as_str())
    }

    /// PVE gives every machine one of its own.
    pub(crate) fn uuid(&self) -> Option<&str> {
        self.field("uuid")
    }

    /// Whether a serial number stands there. Nobody else writes one into our machines; one that a template brought
    /// along is replaced by the first seed, and removed with it.
    pub(crate) fn has_serial(&self) -> bool {
        self.field("serial").is_some()
    }

    /// The value with a seed in it, under the same uuid.
    pub(crate) fn with_seed(&self, seed: &[u8]) -> Result<String, TooLong> {
        let text = URL_SAFE_NO_PAD.encode(seed);
        let serial = ("serial".to_owned(), STANDARD.encode(text));
        let whole = self.encoded(Some(&serial));
        if whole.len() <= LONGEST {
            return Ok(whole);
        }
        // A maker's name is not worth a sandbox.
        let uuid = self.fields.iter().filter(|(key, _)| key == "uuid").cloned();
        let bare = Self {
            fields: uuid.collect(),
        }
        .encoded(Some(&serial));
        if bare.len() <= LONGEST {
            Ok(bare)
        } else {
            Err(TooLong(bare.len()))
        }
    }

    /// The value without the seed.
    pub(crate) fn without_seed(&self) -> String {
        let rest: Vec<_> = self
            .fields
            .iter()
            .filter(|(key, _)| key != "serial" && key != "base64")
            .collect();
        if rest.iter().all(|(key, _)| key == "uuid") {
            return rest
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(",");
        }
        self.encoded(None)
    }

    fn encoded(&self, serial: Option<&(String, String)>) -> String {
        let is_encoded = self.field("base64").is_some_and(|value| value == "1");
        let mut parts = Vec::new();
        for (key, value) in &self.fields {
            match key.as_str() {
                "uuid" => parts.push(format!("uuid={value}")),
                "base64" | "serial" => {}
                _ if is_encoded => parts.push(format!("{key}={value}")),
                _ => parts.push(format!("{key}={}", STANDARD.encode(value))),
            }
        }
        parts.push("base64=1".to_owned());
        parts.extend(serial.map(|(key, value)| format!("{key}={value}")));
        parts.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "uuid=7d2ab580-26da-44b3-8f0d-0395a2723def";

    #[test]
    fn a_seed_comes_and_goes_and_the_uuid_stays() {
        let before = Smbios::parse(UUID);
        assert!(!before.has_serial());
        let with = before.with_seed(b"ALsd\x00\x01rest").unwrap();
        assert!(with.starts_with(&format!("{UUID},base64=1,serial=")), "{with}");
        let after = Smbios::parse(&with);
        assert!(after.has_serial());
        assert_eq!(after.uuid(), before.uuid());
        let serial = STANDARD.decode(after.field("serial").unwrap()).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(serial).unwrap(), b"ALsd\x00\x01rest");
        // A second one takes its place.
        let again = Smbios::parse(&after.with_seed(b"ALsdother").unwrap());
        assert_eq!(again.fields.iter().filter(|(key, _)| key == "serial").count(), 1);
        assert_eq!(again.without_seed(), UUID);
        assert_eq!(Smbios::default().without_seed(), "");
    }

    #[test]
    fn what_else_a_template_has_there_is_encoded_along() {
        let with = Smbios::parse(&format!("{UUID},manufacturer=ACME"))
            .with_seed(b"ALsd")
            .unwrap();
        assert!(with.contains("manufacturer=QUNNRQ=="), "{with}");
        let without = Smbios::parse(&with).without_seed();
        assert_eq!(without, format!("{UUID},manufacturer=QUNNRQ==,base64=1"));
    }

    #[test]
    fn what_pve_would_refuse_is_refused_here_with_its_length() {
        let long = Smbios::parse(&format!("{UUID},manufacturer={}", "m".repeat(200)));
        let with = long.with_seed(&[7; 200]).unwrap();
        assert!(with.len() <= LONGEST && !with.contains("manufacturer"), "{with}");
        assert_eq!(long.with_seed(&[7; 300]), Err(TooLong(594)));
    }
}
