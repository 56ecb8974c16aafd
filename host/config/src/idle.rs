//! `idle_stop_*`: when sandboxes that nobody uses are stopped.

use std::time::Duration;

use crate::check::Check;
use crate::raw::Raw;

/// When a sandbox counts as unused, and how long it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleStop {
    /// Time between two looks.
    pub interval: Duration,
    /// How long a sandbox may be unused whose profile does not say; zero for as long as it likes.
    pub window: Duration,
    /// Computing of a larger share of its processors is use.
    pub cpu_threshold: Share,
}

/// A part of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

// It is never NaN.
impl Eq for Share {}

impl Share {
    /// The number.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0
    }
}

/// A month.
pub(crate) const MOST_MINUTES: u32 = 43_200;

impl IdleStop {
    pub(crate) fn of(raw: &Raw, check: &mut Check<'_>) -> Option<Self> {
        let interval = check.duration("idle_stop_interval", raw.idle_stop_interval, 60, (1, 3600));
        let minutes = check.number(
            &["idle_stop_minutes_default"],
            raw.idle_stop_minutes_default,
            30,
            (0, MOST_MINUTES),
        );
        let threshold = raw.idle_stop_cpu_threshold.unwrap_or(0.05);
        if !(0.0..=1.0).contains(&threshold) {
            check.fault(
                &["idle_stop_cpu_threshold"],
                format!("is {threshold}, and must be from 0 to 1: a share of a sandbox's processors"),
            );
            return None;
        }
        raw.idle_stop_enabled.unwrap_or(true).then_some(Self {
            interval,
            window: Duration::from_secs(u64::from(minutes) * 60),
            cpu_threshold: Share(threshold),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::parse_config;

    #[test]
    fn sandboxes_that_nobody_uses_are_stopped_unless_the_file_says_otherwise() {
        let rules = |text: &str| parse_config(text, "c.yaml").unwrap().value.idle_stop;
        let default = rules("").unwrap();
        assert_eq!(default.interval, Duration::from_secs(60));
        assert_eq!(default.window, Duration::from_secs(1800));
        assert!((default.cpu_threshold.as_f64() - 0.05).abs() < f64::EPSILON);
        assert_eq!(rules("idle_stop_enabled: false"), None);
        assert_eq!(
            rules("idle_stop_minutes_default: 0").unwrap().window,
            Duration::ZERO
        );
        for text in [
            "idle_stop_cpu_threshold: 1.5",
            "idle_stop_cpu_threshold: -0.1",
            "idle_stop_interval: 0s",
            "idle_stop_minutes_default: 99999",
        ] {
            let error = parse_config(text, "c.yaml").unwrap_err().to_string();
            assert!(
                error.contains("c.yaml:1:") && error.contains("idle_stop_"),
                "{error}"
            );
        }
    }
}
