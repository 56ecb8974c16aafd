//! Profiles the daemon has loaded.

use agentlab_api::{Profile, ProfileList};

use crate::Client;
use crate::connection::Call;
use crate::error::Result;
use crate::path::encode;

impl Client {
    /// All profiles.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn profiles(&self) -> Result<ProfileList> {
        self.call(Call::get("/v1/profiles")).await
    }

    /// One profile.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn profile(&self, name: &str) -> Result<Profile> {
        self.call(Call::get(format!("/v1/profiles/{}", encode(name, false))))
            .await
    }
}
