//! `agentlab job artifacts download --bundle`: everything a job left as one file, `<job>.tar.gz`.
//!
//! The same artifacts give the same bytes, whenever and by whomever they are packed. What is in it may be unpacked
//! anywhere: names are those that `download` would give, below one directory, and each file is held against its SHA-256
//! while it passes; `SHA256SUMS` says them again.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use agentlab_api::{ArtifactView, JobId};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use tokio::io::AsyncWrite;

use crate::Context;
use crate::error::CommandError;
use crate::landing::{Landing, Place};
use crate::tree::{END, Entry};

/// A file that is packed while it is written, by nobody but this command.
struct Packing(GzEncoder<std::fs::File>);

impl AsyncWrite for Packing {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Packs all of them into `<job>.tar.gz` of a directory, or leaves nothing there. Its place and its size.
pub(super) async fn download(
    context: &Context,
    job: &JobId,
    artifacts: &[ArtifactView],
    landing: &Landing,
) -> Result<(Place, u64), CommandError> {
    let mut artifacts: Vec<&ArtifactView> = artifacts.iter().collect();
    artifacts.sort_by(|left, right| left.name.cmp(&right.name));
    let places = Place::of_all(artifacts.iter().map(|one| one.name.as_str()))?;
    let name = format!("{job}.tar.gz");
    let place = Place::of_all([name.as_str()])?
        .pop()
        .ok_or_else(|| CommandError::refused("The bundle has no name"))?;
    let arriving = landing.begin(&place)?;
    let failed = |source| CommandError::File {
        action: "Writing",
        path: landing.shown(&place).display().to_string(),
        source,
    };
    let file = arriving.file()?;
    let mut packing = Packing(GzBuilder::new().write(file, Compression::default()));
    let sums: String = artifacts
        .iter()
        .zip(&places)
        .map(|(one, place)| format!("{}  {}\n", one.sha256, place.path().display()))
        .collect();
    let entry = Entry::plain(&format!("{job}/SHA256SUMS"), length(&sums));
    put(&mut packing, &entry.header()).map_err(failed)?;
    put(&mut packing, sums.as_bytes()).map_err(failed)?;
    put(&mut packing, &vec![0; entry.padding()]).map_err(failed)?;
    for (artifact, place) in artifacts.into_iter().zip(&places) {
        let entry = Entry::plain(&format!("{job}/{}", place.path().display()), artifact.size_bytes);
        put(&mut packing, &entry.header()).map_err(failed)?;
        context.client.download(job, artifact, &mut packing).await?;
        put(&mut packing, &vec![0; entry.padding()]).map_err(failed)?;
    }
    put(&mut packing, &END).map_err(failed)?;
    let file = packing.0.finish().map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    arriving.finish()?;
    Ok((place, size))
}

fn put(packing: &mut Packing, bytes: &[u8]) -> io::Result<()> {
    packing.0.write_all(bytes)
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}
