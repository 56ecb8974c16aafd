//! Which node, and the way to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_api::Vmid;
use agentlab_backend::proxmox::{self, ApiToken, ProxmoxSettings, Trust};
use agentlab_backend::shell::{self, ShellSettings};
use agentlab_backend::{Publisher, PveOptions};
use agentlab_config::{BackendKind, Config, TlsTrust, TokenSource, load_config};
use agentlab_protocol::secret::SecretText;

use crate::error::{During, Result, TemplateError};

/// How a node is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// The REST API, with a token.
    Api,
    /// `qm`, as root on the node itself.
    Qm,
}

/// What was said of the node on the command line.
#[derive(Debug)]
pub struct Node {
    /// The daemon's configuration.
    pub config: PathBuf,
    /// The way, where one was asked for.
    pub way: Option<Way>,
    /// A file with a token to use instead of the configuration's.
    pub token_file: Option<PathBuf>,
    /// Where `qm` is.
    pub program_dir: PathBuf,
}

impl Node {
    /// The node's publisher. Nobody is contacted yet.
    ///
    /// # Errors
    /// When the configuration cannot be read, or says nothing of a node.
    pub fn publisher(&self, vmid: Vmid) -> Result<Arc<dyn Publisher>> {
        let config = match load_config(&self.config) {
            Ok(loaded) => Some(loaded.value),
            // A node that no daemon was set up on still has its `qm`.
            Err(_) if !self.config.exists() => None,
            Err(error) => {
                return Err(TemplateError::Settings {
                    hint: error.hint(),
                    problem: error.to_string(),
                });
            }
        };
        match self.way(config.as_ref())? {
            Way::Qm => {
                let mut settings = ShellSettings::new(options(config.as_ref(), vmid));
                settings.program_dir.clone_from(&self.program_dir);
                Ok(shell::publisher(settings))
            }
            Way::Api => {
                let config = config.ok_or_else(|| self.no_node())?;
                Ok(proxmox::publisher(self.rest(&config, vmid)?)?)
            }
        }
    }

    fn way(&self, config: Option<&Config>) -> Result<Way> {
        if let Some(way) = self.way {
            return Ok(way);
        }
        let has_token =
            self.token_file.is_some() || config.is_some_and(|config| config.proxmox.token.is_some());
        match config {
            Some(config) if config.backend == BackendKind::Shell => Ok(Way::Qm),
            Some(_) if has_token => Ok(Way::Api),
            _ if self.program_dir.join("qm").exists() => Ok(Way::Qm),
            _ => Err(self.no_node()),
        }
    }

    fn no_node(&self) -> TemplateError {
        TemplateError::Settings {
            problem: format!(
                "{} names no API token of a Proxmox VE node, and there is no {} here",
                self.config.display(),
                self.program_dir.join("qm").display()
            ),
            hint: Some(
                "run it on the node as root, or set proxmox_api_url and proxmox_api_token (see docs/proxmox.md)"
                    .to_owned(),
            ),
        }
    }

    fn rest(&self, config: &Config, vmid: Vmid) -> Result<ProxmoxSettings> {
        let wrong = |key: &'static str| {
            move |problem: String| TemplateError::Settings {
                problem: format!("{key} {problem}"),
                hint: None,
            }
        };
        let told = &config.proxmox;
        let from_file = |path: &Path| {
            let text = SecretText::new(fs::read_to_string(path).during("read", path)?);
            ApiToken::try_from(&text).map_err(wrong("proxmox_api_token_path"))
        };
        let token = match (&self.token_file, &told.token) {
            (Some(path), _) | (None, Some(TokenSource::File(path))) => from_file(path)?,
            (None, Some(TokenSource::Text(text))) => {
                ApiToken::try_from(text).map_err(wrong("proxmox_api_token"))?
            }
            (None, None) => return Err(self.no_node()),
        };
        let trust = match &told.trust {
            TlsTrust::System => Trust::SystemRoots,
            TlsTrust::CaFile(path) => Trust::CaPem(fs::read_to_string(path).during("read", path)?),
            TlsTrust::Fingerprint(text) => {
                Trust::Fingerprint(text.parse().map_err(wrong("proxmox_tls_fingerprint"))?)
            }
            TlsTrust::Unverified => Trust::ThisHost,
        };
        let url = told.url.parse().map_err(wrong("proxmox_api_url"))?;
        Ok(ProxmoxSettings::new(
            url,
            token,
            trust,
            options(Some(config), vmid),
        ))
    }
}

/// Of a publication, only the node matters.
fn options(config: Option<&Config>, vmid: Vmid) -> PveOptions {
    let mut options = PveOptions::new((vmid, vmid), "");
    options.node = config.and_then(|config| config.proxmox.node.clone());
    options
}
