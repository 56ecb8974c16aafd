//! What a guest is sending: counted from the first byte until it is stored or dropped, however long that takes and
//! whatever it is called.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_api::{ArtifactKind, JobId};
use agentlab_protocol::message::{
    ArtifactName, ArtifactRole, BUNDLE_NAME, DIFF_NAME, FILES_DIR, LOG_NAME, PATCH_NAME, REPORT_NAME,
    RESUMABLE_BYTES,
};
use agentlab_store::{ArtifactRecord, Hold, Incoming, StoreError};

use crate::engine::Engine;
use crate::guest::{GuestRefusal, GuestSession, beside, disk_full, stored, within_quota};
use crate::sandbox::inbox::Message;
use crate::shared::{Shared, lock};

/// Uploads of one sandbox that may be under way at once.
const AT_ONCE: usize = 4;
/// Uploads of one job that broke off and may be continued, besides the one that is coming.
const KEPT_AT_ONCE: usize = 4;

/// The uploads of one sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    count: usize,
    /// What they may still come to, together.
    bytes: u64,
}

impl Uploads {
    /// Sets `bytes` aside for one more, of the `room` that what is stored leaves. `None` while others may need it.
    pub(crate) fn begin(&self, bytes: u64, room: u64) -> Option<Permit> {
        let mut under_way = lock(&self.0);
        let together = under_way.bytes.checked_add(bytes)?;
        if under_way.count >= AT_ONCE || together > room {
            return None;
        }
        under_way.count += 1;
        under_way.bytes = together;
        Some(Permit {
            uploads: self.clone(),
            bytes,
        })
    }
}

/// A place among the uploads of a sandbox; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    uploads: Uploads,
    bytes: u64,
}

impl Permit {
    /// What of `room` neither this nor any other upload under way may need.
    fn left_of(&self, room: u64) -> u64 {
        room.saturating_sub(lock(&self.uploads.0).bytes)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = lock(&self.uploads.0);
        under_way.count = under_way.count.saturating_sub(1);
        under_way.bytes = under_way.bytes.saturating_sub(self.bytes);
    }
}

/// What a guest says of a file before it sends it. Its name is checked, all else is compared with what comes.
#[derive(Debug, Clone)]
pub struct Announced {
    /// What it is called.
    pub name: ArtifactName,
    /// What it is.
    pub role: ArtifactRole,
    /// What it hashes to: 64 hexadecimal digits.
    pub sha256: String,
    /// Its first byte that is to come.
    pub offset: u64,
    /// How many are to come, if it says.
    pub rest: Option<u64>,
}

impl Announced {
    /// Too small to be worth continuing. Of unknown length, it may be large.
    fn is_small(&self) -> bool {
        self.offset == 0 && self.rest.is_some_and(|rest| rest < RESUMABLE_BYTES)
    }
}

/// A file that a guest is sending. Dropped before [`Upload::finish`], it leaves nothing behind but what may be continued.
#[derive(Debug)]
pub struct Upload {
    source: Source,
    hold: Hold,
    // Dropped last: what is on disk still counts.
    permit: Permit,
}

#[derive(Debug)]
enum Source {
    Coming(Incoming),
    /// All of it is here: only the answer was lost.
    Stored {
        /// How much that is.
        size_bytes: u64,
    },
}

/// A file whose bytes are on disk, for as long as this lives.
#[derive(Debug)]
pub struct Arrived {
    size_bytes: u64,
    hold: Hold,
    _permit: Permit,
}

impl Upload {
    /// Takes more bytes. After an error only dropping makes sense.
    ///
    /// # Errors
    /// Those of [`Incoming::write`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match &mut self.source {
            Source::Coming(incoming) => incoming.write(bytes).await,
            Source::Stored { .. } if bytes.is_empty() => Ok(()),
            Source::Stored { size_bytes } => Err(StoreError::Offset {
                what: "artifact",
                kept: *size_bytes,
            }),
        }
    }

    /// Resolves when the guest sends the same file over another connection: this one should be dropped.
    pub async fn superseded(&mut self) {
        match &mut self.source {
            Source::Coming(incoming) => incoming.superseded().await,
            Source::Stored { .. } => std::future::pending().await,
        }
    }

    /// It broke off: what came of it is written out before this is dropped.
    pub async fn keep(&mut self) {
        if let Source::Coming(incoming) = &mut self.source {
            incoming.keep().await;
        }
    }

    /// Makes the bytes stay, if they are what was announced.
    ///
    /// # Errors
    /// Those of [`Incoming::finish`].
    pub async fn finish(self) -> Result<Arrived, StoreError> {
        let size_bytes = match self.source {
            Source::Coming(incoming) => incoming.finish(Some(self.hold.sha256())).await?.size_bytes,
            Source::Stored { size_bytes } => size_bytes,
        };
        Ok(Arrived {
            size_bytes,
            hold: self.hold,
            _permit: self.permit,
        })
    }
}

/// A file on its way to its record. The bytes stay even if nobody waits for that any more.
#[derive(Debug)]
pub(crate) struct Unrecorded {
    /// What is to be recorded.
    pub(crate) record: ArtifactRecord,
    /// What keeps the bytes until then.
    pub(crate) hold: Hold,
}

impl Engine {
    /// How much is here of a file that a guest began to send, so that it need send only the rest: all of it when it was
    /// stored. Whoever still sends it over another connection is cut off.
    ///
    /// # Errors
    /// The job has ended.
    pub async fn kept_of_artifact(
        &self,
        session: &GuestSession,
        name: &ArtifactName,
        sha256: &str,
    ) -> Result<u64, GuestRefusal> {
        let handle = self.guest_of(session)?;
        let job = self.unfinished_job(&handle).await?;
        drop(handle.inbox.try_send(Box::new(Message::Heard)));
        let store = &self.shared.store;
        let standing = store.artifact(&job, name.as_str()).await;
        match standing.map_err(|error| stored(&error))? {
            Some(standing) if standing.sha256.eq_ignore_ascii_case(sha256) => Ok(standing.size_bytes),
            Some(_) | None => {
                let kept = store.files().kept_of_artifact(&job, name.as_str(), sha256);
                kept.await.map_err(|error| stored(&error))
            }
        }
    }

    /// Begins the upload of one file, or goes on with it, within the bounds of the job's profile and above the disk floor.
    ///
    /// # Errors
    /// A bound is reached, the name does not fit its role or stands for other bytes, another byte must come next, or the
    /// job has ended.
    pub async fn receive_artifact(
        &self,
        session: &GuestSession,
        announced: &Announced,
    ) -> Result<Upload, GuestRefusal> {
        let handle = self.guest_of(session)?;
        let (name, role) = (announced.name.as_str(), announced.role);
        if !name_fits(role, &announced.name) {
            return Err(GuestRefusal::Conflict(format!(
                "{role:?} is not the role of {name}"
            )));
        }
        let job = self.unfinished_job(&handle).await?;
        drop(handle.inbox.try_send(Box::new(Message::Heard)));
        let store = &self.shared.store;
        let kept = store.artifacts(&job).await.map_err(|error| stored(&error))?;
        let is_stored = beside(&kept, name, &announced.sha256)?;
        let record = handle.record();
        let rules = &record.profile.artifacts;
        let size = announced.rest.unwrap_or(0).saturating_add(announced.offset);
        let left = within_quota(rules, &kept, (name, kind_of(role)), size)?;
        self.keep_floor().await?;
        let others = kept.iter().filter(|file| file.name != name);
        let used = others.fold(0u64, |sum, file| sum.saturating_add(file.size_bytes));
        let room = rules.max_total_bytes.saturating_sub(used);
        // Who says how much is coming is held to it.
        let limit = if announced.rest.is_some() { size } else { left };
        let permit = handle
            .uploads
            .begin(limit, room)
            .ok_or_else(|| GuestRefusal::Unavailable("too many uploads at once".to_owned()))?;
        let hold = store.files().hold(&announced.sha256);
        let hold = hold.map_err(|error| stored(&error))?;
        let here = kept.iter().find(|file| is_stored && file.name == name);
        let source = match here.map(|file| file.size_bytes) {
            Some(size_bytes) if announced.offset > 0 && size_bytes == announced.offset => {
                Source::Stored { size_bytes }
            }
            Some(_) | None => self
                .incoming((&hold, &job), announced, limit, permit.left_of(room))
                .await
                .map(Source::Coming)
                .map_err(|error| stored(&error))?,
        };
        Ok(Upload { source, hold, permit })
    }

    /// What waits to be continued is the first to make room on a disk that is too full.
    async fn keep_floor(&self) -> Result<(), GuestRefusal> {
        let floor = self.shared.settings.artifact_disk_floor;
        let files = self.shared.store.files();
        let above = async || files.free_bytes().await.map(|free| free > floor);
        if above().await.map_err(|error| stored(&error))? {
            return Ok(());
        }
        let removed = remove_interrupted(&self.shared)
            .await
            .map_err(|error| stored(&error))?;
        if removed > 0 && above().await.map_err(|error| stored(&error))? {
            return Ok(());
        }
        Err(disk_full())
    }

    /// The floor is kept while it arrives, so that reaching it is not taken for a bound of the job's. What broke off before
    /// may take the room that nobody else needs.
    async fn incoming(
        &self,
        (hold, job): (&Hold, &JobId),
        announced: &Announced,
        limit: u64,
        room_beside: u64,
    ) -> Result<Incoming, StoreError> {
        let (files, name) = (self.shared.store.files(), announced.name.as_str());
        let upload = (job, name, hold.sha256());
        files.make_room_for(upload, KEPT_AT_ONCE, room_beside).await?;
        if announced.is_small() {
            files.receive_artifact(hold, limit).await
        } else {
            let offset = announced.offset;
            files.continue_artifact(hold, (job, name), offset, limit).await
        }
    }

    /// A file arrived whole and is on disk. The same name again is a success with the same bytes, and a conflict with
    /// others: those never take the place of what was stored first.
    ///
    /// # Errors
    /// A bound is exceeded together with what arrived meanwhile, or the job has ended.
    pub async fn artifact_received(
        &self,
        session: &GuestSession,
        announced: Announced,
        arrived: Arrived,
    ) -> Result<(), GuestRefusal> {
        let Arrived {
            size_bytes,
            hold,
            _permit,
        } = arrived;
        let recorded = async {
            let handle = self.guest_of(session)?;
            let record = ArtifactRecord {
                job: self.unfinished_job(&handle).await?,
                name: announced.name.into(),
                kind: kind_of(announced.role),
                size_bytes,
                sha256: hold.sha256().to_owned(),
                created_at: self.shared.now(),
            };
            let artifact = Unrecorded { record, hold };
            handle.ask(|reply| Message::Stored { artifact, reply }).await?
        };
        let recorded = recorded.await;
        if recorded.is_err() {
            self.shared.remove_unrecorded().await;
        }
        recorded
    }
}

/// Removes every upload that waits to be continued, and says how many there were.
async fn remove_interrupted(shared: &Shared) -> Result<usize, StoreError> {
    let (files, now) = (shared.store.files(), shared.now());
    let mut removed = 0;
    for job in files.interrupted_jobs().await? {
        removed += files.remove_interrupted(&job, Duration::ZERO, now).await?;
    }
    Ok(removed)
}

/// What a role is called outside of the guest protocol.
fn kind_of(role: ArtifactRole) -> ArtifactKind {
    match role {
        ArtifactRole::Bundle => ArtifactKind::Bundle,
        ArtifactRole::Patch => ArtifactKind::Patch,
        ArtifactRole::Diff => ArtifactKind::Diff,
        ArtifactRole::Log => ArtifactKind::Log,
        ArtifactRole::Report => ArtifactKind::Report,
        ArtifactRole::File => ArtifactKind::File,
    }
}

/// Whether a file of this role may have this name: a guest's own file never poses as one of the runner's.
fn name_fits(role: ArtifactRole, name: &ArtifactName) -> bool {
    let name = name.as_str();
    match role {
        ArtifactRole::Bundle => name == BUNDLE_NAME,
        ArtifactRole::Patch => name == PATCH_NAME,
        ArtifactRole::Diff => name == DIFF_NAME,
        ArtifactRole::Log => name == LOG_NAME,
        ArtifactRole::Report => name == REPORT_NAME,
        ArtifactRole::File => name.starts_with(FILES_DIR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_counts_until_it_is_dropped_whatever_its_name() {
        let uploads = Uploads::default();
        let first = uploads.begin(60, 100).unwrap();
        assert!(
            uploads.begin(60, 100).is_none(),
            "together more than there is room for"
        );
        let others: Vec<Permit> = (0..3).map(|_| uploads.begin(10, 100).unwrap()).collect();
        assert!(uploads.begin(0, 100).is_none(), "a fifth one");
        drop(first);
        assert!(uploads.begin(70, 100).is_some());
        drop(others);
        assert!(uploads.begin(100, 100).is_some());
    }

    #[test]
    fn a_file_of_the_agent_never_poses_as_one_of_the_runner() {
        let name = |text: &str| text.parse::<ArtifactName>().unwrap();
        assert!(name_fits(ArtifactRole::File, &name("files/report.json")));
        assert!(!name_fits(ArtifactRole::File, &name("report.json")));
        assert!(!name_fits(ArtifactRole::Report, &name("files/report.json")));
    }
}
