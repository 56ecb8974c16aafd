//! Keeps one guest from filling the file system that all machines live on: below the floor there is an alarm, below
//! half of it the machine that has written most is taken away.

use std::time::Duration;

use agentlab_api::{ErrorCode, Vmid, chain};
use agentlab_backend::Storage;
use agentlab_store::SandboxRecord;
use tokio::time::timeout;

use crate::event;
use crate::journal::Point;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::State;
use crate::sandbox::perform::failure;
use crate::shared::Shared;

const LOOK: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
const FULL: &str = "The disk of the machines is nearly full";

/// Looks once.
pub(crate) async fn keep(shared: &Shared, records: &[SandboxRecord]) {
    let storage = match timeout(LOOK, shared.backend.storage()).await {
        Ok(Ok(Some(storage))) => storage,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::warn!(error = %chain(&error), "room for machines is not known"),
        Err(_) => return tracing::warn!("room for machines was not told in time"),
    };
    if storage.free_bytes >= storage.floor_bytes {
        return shared.clear(FULL);
    }
    if shared.raise(&format!("{FULL}: no machine is begun before there is room again")) {
        let text = format!("{FULL}: {} MiB are free", storage.free_bytes / MIB);
        tell(shared, event::host_alarm(text)).await;
    }
    let Some((record, written)) = fullest(&storage, records) else {
        return;
    };
    let text = format!(
        "The host's disk is nearly full; VM {} had written {} MiB, more than any other",
        record.vmid,
        written / MIB
    );
    tracing::error!(sandbox = %record.id, "{text}");
    tell(shared, event::alarm(record, text.clone())).await;
    if let Some(handle) = shared.driver(record.id) {
        let cause = failure(ErrorCode::LimitReached, &record.cursor, text);
        handle.order(Message::TakeAway { cause });
    }
}

/// The machine to take away, with what it has written. None while there is some room left.
fn fullest<'a>(storage: &Storage, records: &'a [SandboxRecord]) -> Option<(&'a SandboxRecord, u64)> {
    if storage.free_bytes >= storage.floor_bytes / 2 {
        return None;
    }
    let written = |vmid: Vmid| storage.written.iter().find(|(other, _)| *other == vmid);
    records
        .iter()
        .filter(|record| State::of(record).is_up())
        .filter_map(|record| Some((record, written(record.vmid)?.1)))
        .max_by_key(|(_, bytes)| *bytes)
}

async fn tell(shared: &Shared, alarm: agentlab_store::Write) {
    if let Err(error) = shared.journal.commit(Point::Told, vec![alarm]).await {
        tracing::error!(error = %chain(&error), "alarm could not be recorded");
    }
}

#[cfg(test)]
mod tests {
    use agentlab_api::SandboxState;

    use super::*;
    use crate::sandbox::machine::tests::record;

    #[test]
    fn only_below_half_the_floor_the_running_machine_that_wrote_most_is_taken_away() {
        let one = |raw: u32, state| SandboxRecord {
            vmid: Vmid::try_from(raw).unwrap(),
            state,
            ..record()
        };
        let records = [
            one(1000, SandboxState::Ready),
            one(1001, SandboxState::Ready),
            one(1002, SandboxState::Stopped),
        ];
        let written = records.iter().map(|record| record.vmid).zip([5, 7, 9]).collect();
        let mut storage = Storage {
            free_bytes: 50,
            floor_bytes: 100,
            written,
        };
        assert_eq!(fullest(&storage, &records), None);
        storage.free_bytes = 49;
        let (record, bytes) = fullest(&storage, &records).unwrap();
        assert_eq!((u32::from(record.vmid), bytes), (1001, 7));
    }
}
