//! The guest routes over vsock. The back end knows whose each connection is.

use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::Backend;
use agentlab_engine::GuestOrigin;
use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::limit::Limits;
use crate::connection::{self, Http, Stop};

/// After a failure to accept, which is rarely over at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What serves them.
pub(crate) struct VsockGuests {
    /// Where connections arrive.
    pub(crate) backend: Arc<dyn Backend>,
    /// How much one guest may have open.
    pub(crate) limits: Arc<Limits>,
    /// All routes.
    pub(crate) router: Router,
    /// Ends it.
    pub(crate) stopping: CancellationToken,
}

impl VsockGuests {
    /// Answers guests until stopped. For a back end without vsock this only waits.
    pub(crate) async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => break,
                arrived = self.backend.next_vsock() => match arrived {
                    Ok((sandbox, stream)) => {
                        if let Some(permit) = self.limits.connection(GuestOrigin::Vsock(sandbox)) {
                            let stop = Stop::On(self.stopping.clone());
                            let origin = GuestOrigin::Vsock(sandbox);
                            let serving = connection::serve(stream, Http::Two, self.router.clone(), origin, stop);
                            tracing::debug!(%sandbox, "A guest connected over vsock");
                            connections.spawn(async move {
                                serving.await;
                                drop(permit);
                            });
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "Guests are not accepted over vsock for a moment");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "A guest's connection ended badly");
                    }
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}
