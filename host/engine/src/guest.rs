//! The guest edge: what a sandbox may say, and what it is worth. A guest is found by where its request came from,
//! never by what it says of itself.

use std::net::Ipv4Addr;

use agentlab_api::{ArtifactKind, ArtifactRules, ChannelKind, JobId, RepositorySource, SandboxId, chain};
use agentlab_protocol::message::{Heartbeat, HeartbeatAnswer, LogBatch, RedeemAnswer, RedeemRequest, Report};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::session::{decode_secret, derive, sha256};
use agentlab_store::{ArtifactRecord, StoreError};

use crate::engine::Engine;
use crate::sandbox::inbox::{Message, Redemption};
use crate::shared::{Handle, NoAnswer};

/// Where a guest's request came from, as the host itself knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestOrigin {
    /// Peer address of a TLS connection; the packet policy lets only its owner use it.
    Address(Ipv4Addr),
    /// The very machine's serial channel.
    Channel(SandboxId),
    /// The vsock device that this machine was given.
    Vsock(SandboxId),
}

/// A guest that has shown its session. Only [`Engine::authenticate`] makes one.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSession {
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The job it works on; absent when it holds still for an operator.
    pub job: Option<JobId>,
}

/// What a guest is told instead of yes. The edge maps it to a status and adds nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestRefusal {
    /// Wrong token, wrong place, too late, too often: all look the same. 401.
    #[error("unauthorized")]
    Unauthorized,
    /// It may not do this now. 409.
    #[error("{0}")]
    Conflict(String),
    /// A bound is reached. 413.
    #[error("{0}")]
    TooLarge(String),
    /// An upload goes on from this byte only. 416.
    #[error("it goes on from byte {0} only")]
    Offset(u64),
    /// Nothing to fetch. 404.
    #[error("not found")]
    NotFound,
    /// Not now; try again. 503.
    #[error("{0}")]
    Unavailable(String),
}

impl From<NoAnswer> for GuestRefusal {
    fn from(_: NoAnswer) -> Self {
        Self::Unavailable("try again".to_owned())
    }
}

pub(crate) fn stored(error: &StoreError) -> GuestRefusal {
    match error {
        StoreError::TooLarge { .. } => GuestRefusal::TooLarge(error.to_string()),
        StoreError::Offset { kept, .. } => GuestRefusal::Offset(*kept),
        _ if error.is_disk_full() => disk_full(),
        StoreError::DiskFloor { .. }
        | StoreError::Database { .. }
        | StoreError::Unusable { .. }
        | StoreError::Name(_)
        | StoreError::Migration { .. }
        | StoreError::Corrupt { .. }
        | StoreError::File { .. }
        | StoreError::Mismatch { .. }
        | StoreError::Conflict(_)
        | StoreError::Closed => {
            tracing::error!(error = %chain(error), "a guest's request failed in the store");
            GuestRefusal::Unavailable("try again".to_owned())
        }
    }
}

/// Space may come back, and work that is refused is lost: the guest tries again for as long as its job lasts.
pub(crate) fn disk_full() -> GuestRefusal {
    GuestRefusal::Unavailable("the host's disk is too full for now".to_owned())
}

/// Largest file of a kind. The work itself may take all that a job may leave.
fn largest(rules: &ArtifactRules, kind: ArtifactKind) -> u64 {
    match kind {
        ArtifactKind::Bundle | ArtifactKind::Patch | ArtifactKind::Diff => rules.max_total_bytes,
        ArtifactKind::Log | ArtifactKind::Report | ArtifactKind::File => rules.max_file_bytes,
    }
}

/// What is left of a job's bounds for one more file of this name, in bytes.
///
/// # Errors
/// A bound is reached, or `size_bytes` exceeds what is left.
pub(crate) fn within_quota(
    rules: &ArtifactRules,
    kept: &[ArtifactRecord],
    (name, kind): (&str, ArtifactKind),
    size_bytes: u64,
) -> Result<u64, GuestRefusal> {
    let others = || kept.iter().filter(|file| file.name != name);
    let count = u32::try_from(others().count()).unwrap_or(u32::MAX);
    if count >= rules.max_files {
        return Err(GuestRefusal::TooLarge(format!(
            "a job may leave {} files",
            rules.max_files
        )));
    }
    let used = others().fold(0u64, |sum, file| sum.saturating_add(file.size_bytes));
    let left = rules
        .max_total_bytes
        .saturating_sub(used)
        .min(largest(rules, kind));
    if left == 0 || size_bytes > left {
        return Err(GuestRefusal::TooLarge(format!(
            "a job may leave {} bytes, {} per file",
            rules.max_total_bytes,
            largest(rules, kind)
        )));
    }
    Ok(left)
}

/// Whether the very file stands there already.
///
/// # Errors
/// Its name stands for other bytes, or it or a part of it for a directory and a file at once.
pub(crate) fn beside(kept: &[ArtifactRecord], name: &str, sha256: &str) -> Result<bool, GuestRefusal> {
    let is_below = |name: &str, directory: &str| {
        name.strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let mut is_stored = false;
    for file in kept {
        let text = if file.name == name {
            is_stored = file.sha256 == sha256;
            (!is_stored).then_some("is stored already, with other bytes")
        } else if is_below(name, &file.name) {
            Some("would be in a directory that is a file already")
        } else if is_below(&file.name, name) {
            Some("is a directory already")
        } else {
            None
        };
        if let Some(text) = text {
            return Err(GuestRefusal::Conflict(format!("{name} {text}")));
        }
    }
    Ok(is_stored)
}

impl Engine {
    fn guest(&self, origin: GuestOrigin) -> Result<Handle, GuestRefusal> {
        let found = match origin {
            // Where the profile leaves the network out, whoever speaks from there is not the guest.
            GuestOrigin::Address(address) => match self.shared.driver_at(address) {
                Some(handle) if !self.shared.speaks_tls(&handle.record().profile) => {
                    return Err(GuestRefusal::Unauthorized);
                }
                found => found,
            },
            GuestOrigin::Channel(sandbox) | GuestOrigin::Vsock(sandbox) => self.shared.driver(sandbox),
        };
        match found {
            Some(handle) => Ok(handle),
            // While stopping, or before everything is taken up, absence proves nothing.
            None if !self.is_settled() => Err(GuestRefusal::Unavailable("try again".to_owned())),
            None => Err(GuestRefusal::Unauthorized),
        }
    }

    pub(crate) fn guest_of(&self, session: &GuestSession) -> Result<Handle, GuestRefusal> {
        self.guest(GuestOrigin::Channel(session.sandbox))
    }

    /// Trades a token for a session and an order, once per token and runner key.
    ///
    /// # Errors
    /// Everything that is wrong about the token, the key or the place is [`GuestRefusal::Unauthorized`].
    pub async fn redeem(
        &self,
        origin: GuestOrigin,
        request: RedeemRequest,
    ) -> Result<RedeemAnswer, GuestRefusal> {
        let handle = self.guest(origin)?;
        let token = decode_secret(request.token.expose()).ok_or(GuestRefusal::Unauthorized)?;
        let key = decode_secret(request.runner_key.expose()).ok_or(GuestRefusal::Unauthorized)?;
        if u32::from(handle.record().vmid) != request.vmid {
            return Err(GuestRefusal::Unauthorized);
        }
        let redemption = Redemption {
            token_sha256: hex::encode(sha256(token.expose())),
            key_sha256: sha256(key.expose()),
            runner_version: request.runner_version,
            channel: match origin {
                GuestOrigin::Address(_) => ChannelKind::Tls,
                GuestOrigin::Channel(_) => ChannelKind::Serial,
                GuestOrigin::Vsock(_) => ChannelKind::Vsock,
            },
        };
        handle.ask(|reply| Message::Redeem { redemption, reply }).await?
    }

    /// Knows a guest by the place it speaks from and the session it shows.
    ///
    /// # Errors
    /// [`GuestRefusal::Unauthorized`] unless both belong together.
    #[expect(
        clippy::unused_async,
        reason = "the signature leaves room for a look into the store"
    )]
    pub async fn authenticate(
        &self,
        origin: GuestOrigin,
        session: &Secret32,
    ) -> Result<GuestSession, GuestRefusal> {
        let record = self.guest(origin)?.record();
        let key = record
            .runner_key_sha256
            .as_deref()
            .and_then(|text| hex::decode(text).ok());
        let key = key.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        // Compared even without a key, so that the time tells nothing.
        let expected = derive(
            &self.shared.host_key,
            record.id.as_bytes(),
            &key.unwrap_or_default(),
        );
        if expected != *session || key.is_none() {
            return Err(GuestRefusal::Unauthorized);
        }
        Ok(GuestSession {
            sandbox: record.id,
            job: record.job.clone(),
        })
    }

    /// The answer to the redemption arrived; the token is worthless from here on.
    ///
    /// # Errors
    /// It could not be recorded.
    pub async fn acknowledge(&self, session: &GuestSession) -> Result<(), GuestRefusal> {
        self.guest_of(session)?
            .ask(|reply| Message::Acknowledge { reply })
            .await?
    }

    /// A sign of life, answered with whether to end the job.
    ///
    /// # Errors
    /// It could not be recorded.
    pub async fn heartbeat(
        &self,
        session: &GuestSession,
        beat: Heartbeat,
    ) -> Result<HeartbeatAnswer, GuestRefusal> {
        self.guest_of(session)?
            .ask(|reply| Message::Heartbeat { beat, reply })
            .await?
    }

    /// Appends output; pieces that are here already are dropped.
    ///
    /// # Errors
    /// The batch is larger than allowed, or could not be recorded.
    pub async fn guest_logs(&self, session: &GuestSession, batch: LogBatch) -> Result<(), GuestRefusal> {
        self.guest_of(session)?
            .ask(|reply| Message::Logs { batch, reply })
            .await?
    }

    /// The uploaded bundle of the guest's job, and its size.
    ///
    /// # Errors
    /// [`GuestRefusal::NotFound`] when its job has none, or has ended.
    pub async fn repository(&self, session: &GuestSession) -> Result<(tokio::fs::File, u64), GuestRefusal> {
        let handle = self.guest_of(session)?;
        let id = handle.record().job.clone().ok_or(GuestRefusal::NotFound)?;
        let job = self.shared.store.job(&id).await.map_err(|error| stored(&error))?;
        let job = job
            .filter(|job| !job.state.is_final())
            .ok_or(GuestRefusal::NotFound)?;
        let RepositorySource::Bundle { sha256, .. } = &job.repository else {
            return Err(GuestRefusal::NotFound);
        };
        let opened = self
            .shared
            .store
            .files()
            .open_bundle(sha256)
            .await
            .map_err(|error| stored(&error))?;
        drop(handle.inbox.try_send(Box::new(Message::Heard)));
        opened.ok_or(GuestRefusal::NotFound)
    }

    pub(crate) async fn unfinished_job(&self, handle: &Handle) -> Result<JobId, GuestRefusal> {
        let ended = || GuestRefusal::Conflict("the job has ended".to_owned());
        let id = handle.record().job.clone().ok_or_else(ended)?;
        let job = self.shared.store.job(&id).await.map_err(|error| stored(&error))?;
        job.filter(|job| !job.state.is_final())
            .map(|job| job.id)
            .ok_or_else(ended)
    }

    /// The guest's last word on its job. Returns at once; the teardown is the driver's.
    ///
    /// # Errors
    /// It is not about the guest's own job, or could not be recorded.
    pub async fn report(&self, session: &GuestSession, report: Report) -> Result<(), GuestRefusal> {
        let report = Box::new(report);
        self.guest_of(session)?
            .ask(|reply| Message::Report { report, reply })
            .await?
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn file(name: &str, size_bytes: u64) -> ArtifactRecord {
        ArtifactRecord {
            job: "job_0123456789ab".parse().unwrap(),
            name: name.into(),
            kind: ArtifactKind::File,
            size_bytes,
            sha256: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_name_stands_for_one_file_and_never_for_a_file_and_a_directory() {
        let kept = [ArtifactRecord {
            sha256: "aa".into(),
            ..file("files/a", 1)
        }];
        assert_eq!(beside(&kept, "files/a", "aa"), Ok(true));
        for free in ["files/b", "files/ab", "files/b/a", "a"] {
            assert_eq!(beside(&kept, free, "aa"), Ok(false), "{free}");
        }
        for (name, sha256) in [("files/a", "bb"), ("files/a/b", "aa"), ("files", "aa")] {
            let refused = beside(&kept, name, sha256);
            assert!(
                matches!(refused, Err(GuestRefusal::Conflict(_))),
                "{name}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_job_cannot_leave_more_than_its_profile_allows() {
        let rules = ArtifactRules {
            max_file_bytes: 10,
            max_total_bytes: 15,
            max_files: 2,
            ..ArtifactRules::default()
        };
        assert_eq!(within_quota(&rules, &[], ("a", ArtifactKind::File), 0), Ok(10));
        assert_eq!(
            within_quota(&rules, &[file("a", 10)], ("b", ArtifactKind::File), 5),
            Ok(5)
        );
        assert!(within_quota(&rules, &[file("a", 10)], ("b", ArtifactKind::File), 6).is_err());
        assert!(
            within_quota(
                &rules,
                &[file("a", 1), file("b", 1)],
                ("c", ArtifactKind::File),
                0
            )
            .is_err(),
            "a third file"
        );
        assert_eq!(
            within_quota(
                &rules,
                &[file("a", 10), file("b", 5)],
                ("a", ArtifactKind::File),
                10
            ),
            Ok(10),
            "the same name again"
        );
        assert_eq!(
            within_quota(&rules, &[], ("work.bundle", ArtifactKind::Bundle), 15),
            Ok(15),
            "the work may take it all"
        );
    }
}
