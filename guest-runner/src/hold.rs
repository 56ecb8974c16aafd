//! A sandbox without a job: the host only wants to know that it is alive.

use std::convert::Infallible;
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase};

use crate::link::{Link, LinkError};

/// Sends heartbeats for as long as the session is good.
///
/// # Errors
/// The host refused one: the session is over.
pub async fn hold(link: &Link, every: Duration) -> Result<Infallible, LinkError> {
    loop {
        match link
            .heartbeat(Heartbeat {
                phase: Phase::Idle,
                message: String::new(),
            })
            .await
        {
            // Nothing runs here that could be cancelled.
            Ok(_) => {}
            // The link has said so on the console and goes on trying with the next beat.
            Err(LinkError::Unreachable { .. }) => {}
            Err(refused) => return Err(refused),
        }
        tokio::time::sleep(every).await;
    }
}
