//! A runner may be killed under its job. The next one does not run the agent again: it hands over what was made until
//! then. What it must know for that stands in the spool, and none of it is secret.
//!
//! ```text
//!   first life   spool emptied ─► log ─► repository ─► base noted ─► agent ─ ✂
//!   the next     log continued, processes ended ─► collect since base ─► upload ─► report: lost
//! ```

use std::path::Path;
use std::sync::Arc;

use agentlab_protocol::message::{FailureCause, Phase, Report};

use super::collect::Work;
use super::{HostLink, Job, JobLog, Layout, fail, process, repository};
use crate::redact::Needles;

/// There once an agent may have begun; holds the commit it began at, if there is one.
const BASE: &str = "base";
/// Room that no agent can take, so that what it made can be collected from a disk that it filled.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 64 << 20;
/// Pieces of one life are numbered from a multiple of this, so that the host takes none for one it has.
const PIECES_OF_A_LIFE: u64 = 1 << 32;

/// Which one it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Life {
    First,
    /// Of a job that had begun.
    Next {
        base: Option<Base>,
    },
}

/// Where an agent had begun: a commit, or an empty repository.
pub(super) type Base = Option<String>;

/// Begins the log, or goes on with it. `deaths` are the runners that were killed before.
pub(super) fn begin(
    layout: &Layout,
    needles: Arc<Needles>,
    max_log_bytes: u64,
    deaths: u32,
) -> Result<(JobLog, Life), String> {
    let path = layout.spool.join("agent.log");
    let first_piece = u64::from(deaths).saturating_mul(PIECES_OF_A_LIFE);
    if deaths > 0 && path.exists() {
        let log = JobLog::go_on(&path, needles, max_log_bytes, first_piece);
        let noted = std::fs::read_to_string(layout.spool.join(BASE)).ok();
        let base = noted.map(|commit| Some(commit).filter(|commit| !commit.is_empty()));
        return Ok((log.map_err(|error| error.to_string())?, Life::Next { base }));
    }
    repository::prepare_spool(&layout.spool).map_err(|error| error.to_string())?;
    let log = JobLog::create(&path, needles, max_log_bytes, first_piece);
    Ok((log.map_err(|error| error.to_string())?, Life::First))
}

/// The agent is about to begin.
pub(super) fn note_base(spool: &Path, base_commit: Option<&str>) -> std::io::Result<()> {
    std::fs::write(spool.join(BASE), base_commit.unwrap_or_default())
}

/// Sets room aside. On a disk without so much there is none.
pub(super) fn set_aside(spool: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(spool.join(RESERVE))?;
    let none = rustix::fs::FallocateFlags::empty();
    Ok(rustix::fs::fallocate(file, none, 0, RESERVE_BYTES)?)
}

/// Gives the room that was set aside to whoever writes next.
pub(super) fn give_room(spool: &Path) {
    // Not there: then nothing was set aside.
    std::fs::remove_file(spool.join(RESERVE)).ok();
}

impl<H: HostLink> Job<'_, H> {
    /// What an agent made whose runner was killed, if it had begun.
    pub(super) async fn salvage(&self, report: &mut Report, base: Option<Base>) -> Work {
        process::end_user(self.layout.user.uid).await;
        let (phase, words) = if base.is_some() {
            (
                Phase::Agent,
                "The runner was killed under the agent; what it had made until then is here",
            )
        } else {
            (Phase::Repository, "The runner was killed before the agent began")
        };
        fail(report, phase, words.to_owned());
        report.cause = Some(FailureCause::Lost);
        let Some(commit) = base else {
            return Work::default();
        };
        report.base_commit = commit;
        self.collect(report).await
    }
}
