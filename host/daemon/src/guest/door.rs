//! The guest routes over a VM's own serial port.

use std::sync::Arc;

use agentlab_api::SandboxId;
use agentlab_backend::ByteStream;
use agentlab_channel::Acceptor;
use agentlab_engine::GuestOrigin;
use agentlab_engine::port::GuestDoor;
use async_trait::async_trait;
use axum::Router;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Commands;
use crate::connection::{self, Http, Stop};

/// Serves guests over serial channels, once the engine is there to answer them: the engine needs the door to start,
/// and the door's router needs the engine.
#[derive(Debug)]
pub(crate) struct SerialDoor {
    router: watch::Sender<Option<Router>>,
    commands: Arc<Commands>,
    stopping: CancellationToken,
}

impl SerialDoor {
    /// A door that lets guests wait.
    pub(crate) fn new(commands: Arc<Commands>, stopping: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            router: watch::Sender::new(None),
            commands,
            stopping,
        })
    }

    /// Guests are answered from now on.
    pub(crate) fn open(&self, router: Router) {
        self.router.send_replace(Some(router));
    }
}

#[async_trait]
impl GuestDoor for SerialDoor {
    async fn write_back(&self, sandbox: SandboxId) {
        if let Err(problem) = self.commands.write_back(sandbox).await {
            tracing::debug!(%sandbox, reason = problem.detail, "The guest was not asked to write back");
        }
    }

    async fn serve(&self, sandbox: SandboxId, stream: Box<dyn ByteStream>) {
        let mut waiting = self.router.subscribe();
        let router = match waiting.wait_for(|router| router.is_some()).await {
            Ok(router) => router.clone(),
            Err(_) => None,
        };
        let Some(router) = router else { return };
        let mut line = Acceptor::new(stream);
        let mut next = line.next().await;
        loop {
            match next {
                Ok(Some(stream)) => {
                    tracing::debug!(%sandbox, connection = stream.id(), "A guest connected over its serial port");
                    let stop = Stop::On(self.stopping.clone());
                    let origin = GuestOrigin::Channel(sandbox);
                    let mut serving = connection::serve(stream, Http::Two, router.clone(), origin, stop);
                    // A runner that begins anew replaces its older connection, which is dropped then.
                    next = tokio::select! {
                        () = serving.as_mut() => line.next().await,
                        newer = line.next() => newer,
                    };
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%sandbox, %error, "A guest's serial port failed");
                    return;
                }
            }
        }
    }
}
