//! `--workspace-wait`: asks again for as long as somebody else has the workspace.

use std::time::Duration;

use agentlab_api::{ErrorCode, Problem};
use agentlab_client::ClientError;
use tokio::time::Instant;

use crate::Context;
use crate::error::CommandError;

/// How long the daemon waits on one request. Between two of them it is told who has the workspace by then.
const SLICE: Duration = Duration::from_secs(10);

/// Makes a request that wants a workspace, with the time that the daemon may wait for it. The first one tells who has it,
/// and the last one is the answer.
pub(super) async fn patiently<T>(
    context: &Context,
    patience_seconds: Option<u32>,
    request: impl AsyncFn(Option<u32>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let Some(patience_seconds) = patience_seconds else {
        return request(None).await;
    };
    let until = Instant::now() + Duration::from_secs(patience_seconds.into());
    let mut told = None;
    let mut slice = 0;
    loop {
        let problem = match request(Some(slice)).await {
            Err(CommandError::Client(ClientError::Problem(problem))) => problem,
            answer => return answer,
        };
        let Some(why) = who_has_it(&problem) else {
            return Err(ClientError::Problem(problem).into());
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let detail = format!("{why}; waited {patience_seconds} s for it");
            let problem = Box::new(Problem { detail, ..*problem });
            return Err(ClientError::Problem(problem).into());
        }
        if told.as_ref() != Some(&why) {
            context.printer.waiting(&why);
            told = Some(why);
        }
        // Begun seconds count: what is left of one is not worth a request of its own.
        slice = u32::try_from(left.min(SLICE).as_secs()).unwrap_or(0).max(1);
    }
}

/// Only of a workspace that is given back some day.
fn who_has_it(problem: &Problem) -> Option<String> {
    let mut errors = problem.errors.iter();
    let about = errors.find(|error| error.pointer == "/workspace")?;
    (problem.code == ErrorCode::StateConflict).then(|| about.detail.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_workspace_that_somebody_has_is_waited_for() {
        let busy = Problem::new(ErrorCode::StateConflict, "x").with_field("/workspace", "VM 1000 has it");
        assert_eq!(who_has_it(&busy).as_deref(), Some("VM 1000 has it"));
        for other in [
            Problem::new(ErrorCode::StateConflict, "x"),
            Problem::new(ErrorCode::InvalidValue, "x").with_field("/workspace", "no such name"),
        ] {
            assert_eq!(who_has_it(&other), None, "{other:?}");
        }
    }
}
