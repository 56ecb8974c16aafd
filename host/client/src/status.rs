//! `GET /v1/status`.

use agentlab_api::StatusView;

use crate::Client;
use crate::connection::Call;
use crate::error::Result;

impl Client {
    /// How the daemon is.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn status(&self) -> Result<StatusView> {
        self.call(Call::get("/v1/status")).await
    }
}
