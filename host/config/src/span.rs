//! Lengths of time as people write them, refused in words that say how.

use jiff::SignedDuration;
use serde::de::{Deserialize, Deserializer, Error};

/// What a key that holds one must be.
pub(crate) const EXPECTED: &str = "a time with its unit, such as 30s, 2m or 1h 30m";

/// `30s`, `2m`, `1h 30m`, or ISO 8601.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) SignedDuration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // As a custom error it has the place of the value, otherwise that of the key.
        text.parse().map(Self).map_err(|_| D::Error::custom(EXPECTED))
    }
}

#[cfg(test)]
mod tests {
    use crate::{ConfigError, parse_config};

    #[test]
    fn a_time_without_a_unit_is_refused_with_its_key_and_how_it_is_written() {
        for text in ["30", "soon", "1 fortnight"] {
            let Err(ConfigError::Invalid(faults)) = parse_config(&format!("boot_timeout: {text}\n"), "c")
            else {
                panic!("{text} was taken");
            };
            assert_eq!(
                faults[0].to_string(),
                "c:1:15: `boot_timeout` must be a time with its unit, such as 30s, 2m or 1h 30m"
            );
        }
        let taken = parse_config("boot_timeout: 1m 30s\nreconcile_interval: PT2M\n", "c").unwrap();
        assert_eq!(taken.value.boot_timeout.as_secs(), 90);
        assert_eq!(taken.value.reconcile_interval.as_secs(), 120);
    }
}
