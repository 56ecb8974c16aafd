//! What the REST back end adds to a new machine, next to the same calls of PVE made by hand, their tasks looked at every
//! 50 ms. Both against a stand-in that takes as long as a genuine node, over TLS.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentlab_api::{SandboxId, Vmid};
use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, connect};
use agentlab_backend::{Backend, CloneSpec, Limits, MacAddress, PowerOn, PveOptions, Shape, Stamp};
use agentlab_protocol::secret::SecretText;
use pve_sim::{PveSim, Scale, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const ROUNDS: u32 = 9;
const BY_HAND: Duration = Duration::from_millis(50);
const SERIAL: &str = "QUxzZAABAI4AAAPoAZMAESIzRFVmd4iZqrvM3e7_";

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut out = std::io::stdout();
    for version in [Version::V8, Version::V9] {
        let node = PveSim::start(version, Scale(1.0)).await?;
        let backend = backend(&node)?;
        let mut line = Line::open(&node).await?;
        let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            by_hand.push(line.make(1000 + 2 * round).await?);
            ours.push(make(&*backend, 1001 + 2 * round).await?);
        }
        let (by_hand, ours) = (median(by_hand), median(ours));
        writeln!(
            out,
            "release {:<8} by hand, 50 ms polling {:>5} ms   back end {:>5} ms   ratio {:.3}   over it {:+} ms",
            version.text(),
            by_hand.as_millis(),
            ours.as_millis(),
            ours.as_secs_f64() / by_hand.as_secs_f64(),
            i128::try_from(ours.as_millis())? - i128::try_from(by_hand.as_millis())?,
        )?;
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn backend(node: &PveSim) -> Outcome<Arc<dyn Backend>> {
    let mut options = PveOptions::new((1000.try_into()?, 1999.try_into()?), "vmbr1");
    options.pool = Some("agentlab".into());
    let token = ApiToken::try_from(&SecretText::new(node.token()))?;
    let trust = Trust::Fingerprint(node.fingerprint().parse()?);
    Ok(connect(ProxmoxSettings::new(
        node.url().parse()?,
        token,
        trust,
        options,
    ))?)
}

/// As the engine's steps do it, with the look that it takes before it powers on.
async fn make(backend: &dyn Backend, raw: u32) -> Outcome<Duration> {
    let vmid: Vmid = raw.try_into()?;
    let stamp = Stamp {
        sandbox: SandboxId::generate(),
        nonce: "0123456789abcdef".repeat(2),
    };
    let shape = Shape {
        cores: 2,
        memory_mb: 2048,
        root_size_gb: None,
        mac: MacAddress([2, 0xa1, 0, 0, 3, 232]),
        limits: Limits::default(),
        place: None,
    };
    let spec = CloneSpec {
        vmid,
        template: 9000.try_into()?,
        name: format!("sandbox-{raw}"),
        stamp: stamp.clone(),
    };
    let began = Instant::now();
    backend.clone_template(&spec).await?;
    backend.configure(vmid, &stamp, &shape).await?;
    backend.place_seed(vmid, &stamp, SERIAL.as_bytes()).await?;
    backend.inspect(vmid).await?;
    backend.power_on(vmid, &stamp, PowerOn { nic: None }).await?;
    let took = began.elapsed();
    backend.destroy(vmid, &stamp).await?;
    Ok(took)
}

/// A connection of somebody who knows the API and asks for nothing twice.
struct Line {
    stream: TlsStream<TcpStream>,
    token: String,
    node: String,
}

impl Line {
    async fn open(node: &PveSim) -> Outcome<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(node.certificate().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(node.url().trim_start_matches("https://")).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self {
            stream: connector
                .connect(ServerName::try_from("localhost")?, stream)
                .await?,
            token: node.token(),
            node: node.node().to_owned(),
        })
    }

    async fn call(&mut self, method: &str, path: &str, body: Option<Value>) -> Outcome<Value> {
        let body = body.map(|body| body.to_string());
        let typed = body.as_ref().map(|body| {
            let length = body.len();
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
        });
        let request = format!(
            "{method} /api2/json{path} HTTP/1.1\r\nHost: node\r\nAuthorization: PVEAPIToken={}\r\n{}\r\n{}",
            self.token,
            typed.unwrap_or_default(),
            body.unwrap_or_default(),
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await?);
        }
        let head = String::from_utf8(head)?.to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap_or("0").parse()?];
        self.stream.read_exact(&mut body).await?;
        if !head.starts_with("http/1.1 200") {
            return Err(format!("{method} {path}: {head}{}", String::from_utf8_lossy(&body)).into());
        }
        Ok(serde_json::from_slice::<Value>(&body)?["data"].take())
    }

    async fn task(&mut self, method: &str, path: &str, body: Option<Value>) -> Outcome<()> {
        let upid = self.call(method, path, body).await?;
        let upid = upid.as_str().ok_or("it named no task")?;
        let status = format!("/nodes/{}/tasks/{upid}/status", self.node);
        loop {
            let status = self.call("GET", &status, None).await?;
            if status["status"] == "stopped" {
                return match status["exitstatus"].as_str() {
                    Some("OK") => Ok(()),
                    end => Err(format!("{path} ended with {end:?}").into()),
                };
            }
            tokio::time::sleep(BY_HAND).await;
        }
    }

    /// Clone, configuration, seed, start; destroyed afterwards, which does not count.
    async fn make(&mut self, raw: u32) -> Outcome<Duration> {
        let qemu = format!("/nodes/{}/qemu", self.node);
        let config = format!("{qemu}/{raw}/config");
        let clone = json!({"newid": raw, "name": format!("sandbox-{raw}"), "full": 0, "pool": "agentlab"});
        let shape = json!({
            "cores": 2, "memory": 2048, "balloon": 0, "protection": 0, "onboot": 0,
            "net0": "virtio=02:A1:00:00:03:E8,bridge=vmbr1,firewall=0",
        });
        let seed = json!({"smbios1": format!("uuid=7d2ab580-26da-44b3-8f0d-0395a2723def,base64=1,serial={SERIAL}=")});
        let began = Instant::now();
        self.task("POST", &format!("{qemu}/9000/clone"), Some(clone))
            .await?;
        self.call("PUT", &config, Some(shape)).await?;
        self.call("PUT", &config, Some(seed)).await?;
        self.task("POST", &format!("{qemu}/{raw}/status/start"), Some(json!({})))
            .await?;
        let took = began.elapsed();
        self.task("POST", &format!("{qemu}/{raw}/status/stop"), Some(json!({})))
            .await?;
        self.task("DELETE", &format!("{qemu}/{raw}?purge=1"), None)
            .await?;
        Ok(took)
    }
}
