//! The REST back end against a server that answers as a test wants it, and what a stand-in for a node shows of it that
//! no other back end has.

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod examine;
#[cfg(test)]
mod firewall;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod server;
#[cfg(test)]
mod storage;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod template;
#[cfg(test)]
mod wire;
#[cfg(test)]
mod workspaces;

#[cfg(test)]
mod lab {
    use std::sync::Arc;
    use std::time::Duration;

    use agentlab_api::{SandboxId, Vmid};
    use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, connect};
    use agentlab_backend::{Backend, CloneSpec, Limits, MacAddress, PveOptions, Shape, Stamp};
    use agentlab_protocol::secret::SecretText;

    use crate::server::Server;

    pub(crate) const SECRET: &str = "11111111-2222-3333-4444-555555555555";

    pub(crate) fn vmid(raw: u32) -> Vmid {
        raw.try_into().unwrap()
    }

    pub(crate) fn token() -> ApiToken {
        ApiToken::try_from(&SecretText::new(format!("agentlab@pve!lp={SECRET}"))).unwrap()
    }

    pub(crate) fn options() -> PveOptions {
        let mut options = PveOptions::new((vmid(1000), vmid(1999)), "vmbr1");
        options.node = Some("pve8".into());
        options.pool = Some("agentlab".into());
        options.task_patience = Duration::from_secs(60);
        options.lock_patience = Duration::from_millis(600);
        options.watch_interval = Duration::from_millis(100);
        options
    }

    pub(crate) fn settings(server: &Server) -> ProxmoxSettings {
        let trust = Trust::Fingerprint(server.fingerprint);
        let mut settings = ProxmoxSettings::new(server.url.parse().unwrap(), token(), trust, options());
        settings.call_patience = Duration::from_secs(60);
        settings
    }

    pub(crate) fn backend(server: &Server) -> Arc<dyn Backend> {
        connect(settings(server)).unwrap()
    }

    pub(crate) fn stamp() -> Stamp {
        Stamp {
            sandbox: SandboxId::from_bytes([7; 16]),
            nonce: "0123456789abcdef".repeat(2),
        }
    }

    pub(crate) fn spec() -> CloneSpec {
        CloneSpec {
            vmid: vmid(1000),
            template: vmid(9000),
            name: "sandbox-1000".into(),
            stamp: stamp(),
        }
    }

    pub(crate) fn shape() -> Shape {
        Shape {
            cores: 1,
            memory_mb: 64,
            root_size_gb: None,
            mac: MacAddress([2, 0xa1, 0, 0, 3, 232]),
            limits: Limits::default(),
            place: None,
        }
    }
}
