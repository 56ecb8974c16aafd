//! Collects everything that is wrong with a configuration, each with its place, instead of stopping at the first.

use std::path::PathBuf;
use std::time::Duration;

use crate::Fault;
use crate::span::Span;
use crate::yaml::Node;

/// Collects what is wrong, each with its place.
pub(crate) struct Check<'a> {
    pub(crate) label: &'a str,
    pub(crate) root: Option<&'a Node>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) warnings: Vec<String>,
}

impl Check<'_> {
    pub(crate) fn fault(&mut self, path: &[&str], message: impl Into<String>) {
        let place = self.root.map(|root| root.place_of(path)).unwrap_or_default();
        let message = format!("`{}` {}", path.join("."), message.into());
        self.faults.push(Fault::new(self.label, place, &message));
    }

    pub(crate) fn path(
        &mut self,
        key: &str,
        given: Option<PathBuf>,
        default: impl FnOnce() -> PathBuf,
    ) -> PathBuf {
        let Some(path) = given else { return default() };
        if !path.is_absolute()
            || path
                .components()
                .any(|part| part == std::path::Component::ParentDir)
        {
            self.fault(
                &[key],
                format!(
                    "must be an absolute path without `..`, and is `{}`",
                    path.display()
                ),
            );
        }
        path
    }

    pub(crate) fn duration(
        &mut self,
        key: &str,
        given: Option<Span>,
        default: u64,
        range: (u64, u64),
    ) -> Duration {
        let Some(Span(given)) = given else {
            return Duration::from_secs(default);
        };
        let (least, most) = (Duration::from_secs(range.0), Duration::from_secs(range.1));
        match Duration::try_from(given) {
            Ok(duration) if (least..=most).contains(&duration) => duration,
            Ok(_) | Err(_) => {
                self.fault(
                    &[key],
                    format!(
                        "is `{given:#}`, and must be from {} to {} seconds",
                        range.0, range.1
                    ),
                );
                least
            }
        }
    }

    pub(crate) fn number<N: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        path: &[&str],
        given: Option<N>,
        default: N,
        range: (N, N),
    ) -> N {
        let number = given.unwrap_or(default);
        if number < range.0 || number > range.1 {
            self.fault(
                path,
                format!("is {number}, and must be from {} to {}", range.0, range.1),
            );
        }
        number
    }

    /// Interface names as the kernel takes them.
    pub(crate) fn interface(&mut self, key: &str, name: &str) {
        let fits = !name.is_empty()
            && name.len() <= 15
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && name != "."
            && name != "..";
        if !fits {
            self.fault(
                &[key],
                "is not an interface name: 1 to 15 letters, digits, `.`, `_`, `-`",
            );
        }
    }
}
