//! The log: text on standard error, at a level that can change.

use std::io::{IsTerminal as _, stderr};

use agentlab_config::LogLevel;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// Crates whose words follow the configured level; the others only warn.
const OURS: [&str; 6] = [
    "agentlabd",
    "agentlab_backend",
    "agentlab_channel",
    "agentlab_engine",
    "agentlab_netpolicy",
    "agentlab_store",
];

/// The running log.
#[derive(Debug)]
pub struct Log {
    /// Absent when `RUST_LOG` decides, which no configuration overrules.
    filter: Option<reload::Handle<Targets, Registry>>,
}

impl Log {
    /// Begins it, once per process. systemd keeps standard error in the journal, which has times of its own.
    #[must_use]
    pub fn to_stderr(level: LogLevel) -> Self {
        let given = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
        let overruled = given.is_some();
        let (filter, handle) = reload::Layer::new(given.unwrap_or_else(|| targets(level)));
        let lines = fmt::layer()
            .with_writer(stderr)
            .compact()
            .with_ansi(stderr().is_terminal());
        let lines = if std::env::var_os("JOURNAL_STREAM").is_some() {
            lines.without_time().boxed()
        } else {
            lines.boxed()
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Self {
            filter: (!overruled).then_some(handle),
        }
    }

    /// From here on.
    pub fn set_level(&self, level: LogLevel) {
        let changed = self
            .filter
            .as_ref()
            .map_or(Ok(()), |filter| filter.reload(targets(level)));
        if let Err(error) = changed {
            tracing::warn!(%error, "The level of the log could not be changed");
        }
    }
}

fn targets(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    Targets::new()
        .with_default(tracing::Level::WARN.min(ours))
        .with_targets(OURS.map(|name| (name, ours)))
}
