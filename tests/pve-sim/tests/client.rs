//! The REST back end on the stand-in, in process: whoever speaks to a node, without a socket between.

use std::fmt;
use std::sync::Arc;

use agentlab_api::{SandboxId, Vmid};
use agentlab_backend::proxmox::{
    ApiToken, Asked, InProcess, ProxmoxSettings, Said, Trust, connect_in_process,
};
use agentlab_backend::{Backend, CloneSpec, Limits, MacAddress, PveOptions, Shape, Stamp};
use agentlab_protocol::secret::SecretText;
use async_trait::async_trait;
use bytes::Bytes;
use pve_sim::{PveSim, Request};

/// The stand-in as the REST back end's server.
pub(crate) struct Node(pub(crate) PveSim);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

#[async_trait]
impl InProcess for Node {
    async fn exchange(&self, asked: Asked<'_>) -> Option<Said> {
        let target = asked.target.strip_prefix("/api2/json").unwrap_or(asked.target);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method: asked.method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            authorization: Some(asked.authorization.to_owned()),
            content_type: asked.body.map(|_| "application/json".to_owned()),
            body: asked
                .body
                .map(|body| Bytes::from(body.to_owned()))
                .unwrap_or_default(),
        };
        let response = self.0.answer(request).await;
        (!response.dropped).then(|| Said {
            status: response.status,
            reason: response.reason,
            body: response
                .body
                .map(|body| body.to_string().into_bytes())
                .unwrap_or_default(),
        })
    }
}

pub(crate) fn vmid(raw: u32) -> Vmid {
    Vmid::try_from(raw).unwrap()
}

/// As `agentlab init` sets a daemon up on this node.
pub(crate) fn options(sim: &PveSim) -> PveOptions {
    let mut options = PveOptions::new((vmid(1000), vmid(1999)), "vmbr1");
    options.node = Some(sim.node().to_owned());
    options.pool = Some("agentlab".into());
    options
}

pub(crate) fn connect(sim: &PveSim, options: PveOptions) -> Arc<dyn Backend> {
    connect_by(sim, options, Arc::new(Node(sim.clone())))
}

/// Over a way to the node that does something of its own.
pub(crate) fn connect_by(sim: &PveSim, options: PveOptions, way: Arc<dyn InProcess>) -> Arc<dyn Backend> {
    let token = ApiToken::try_from(&SecretText::new(sim.token())).unwrap();
    let url = "https://127.0.0.1:8006".parse().unwrap();
    // Nobody looks at a certificate where there is no connection.
    let trust = Trust::Fingerprint("AB".repeat(32).parse().unwrap());
    let settings = ProxmoxSettings::new(url, token, trust, options);
    connect_in_process(settings, way).unwrap()
}

pub(crate) fn spec(raw: u32) -> CloneSpec {
    CloneSpec {
        vmid: vmid(raw),
        template: vmid(9000),
        name: format!("sandbox-{raw}"),
        stamp: Stamp {
            sandbox: SandboxId::from_bytes([7; 16]),
            nonce: format!("{raw:032x}"),
        },
    }
}

pub(crate) fn shape() -> Shape {
    Shape {
        cores: 1,
        memory_mb: 512,
        root_size_gb: None,
        mac: MacAddress([2, 0xA1, 0, 0, 3, 0xE8]),
        limits: Limits::default(),
        place: None,
    }
}
