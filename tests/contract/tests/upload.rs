//! The real runner's uploads to a real daemon, over ways that break: what has arrived is not sent again.

use std::path::PathBuf;
use std::time::Duration;

use agent_runner::link::{Link, LinkError, Ways};
use agent_runner::remains::{self, Keeper, Remains};
use agentlab_protocol::message::ArtifactRole;
use agentlab_protocol::seed::{Seed, SeedChannel};
use agentlab_tests_contract::{Gate, Lab, Visitors};
use sha2::{Digest as _, Sha256};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const NAME: &str = "files/large";
const PATIENCE: Duration = Duration::from_secs(120);
/// What may be lost at each cut: one buffer of the host's, and what framing and encryption add.
const LOST: u64 = 400_000;

/// That the file went through the gate once, but for what was lost at each cut.
fn check_sent_once(gate: &Gate, bytes: &[u8], cuts: u64) {
    let size = u64::try_from(bytes.len()).unwrap();
    let most = size + size / 50 + cuts * LOST;
    assert!(
        gate.passed() < most,
        "{} bytes were sent, {most} at most",
        gate.passed()
    );
}

/// A job whose guest is a runner's link, and the file that it sends.
struct Stage {
    lab: Lab,
    visitors: Visitors,
    job: String,
    seed: Seed,
    line: UnixStream,
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Stage {
    async fn set(megabytes: usize) -> Self {
        let mut lab = Lab::prepare().unwrap();
        // Which is where a gate comes from.
        lab.flags(&["--loopback"]);
        let visitors = lab.visitors().unwrap();
        lab.start().unwrap();
        let job = lab.detached("ok").unwrap();
        let next = timeout(PATIENCE, visitors.next()).await;
        let (seed, line) = next.expect("no machine was powered on").unwrap();
        let file = lab.path("large");
        let bytes: Vec<u8> = (0..megabytes * 250_000)
            .flat_map(|word| u32::try_from(word).unwrap().to_le_bytes())
            .collect();
        std::fs::write(&file, &bytes).unwrap();
        Self {
            lab,
            visitors,
            job,
            seed,
            line,
            file,
            bytes,
        }
    }

    /// Both ways of TLS, the second of them, which takes files, over a gate that is given back.
    async fn over_tls(&mut self) -> (Gate, Gate) {
        self.seed.channels = vec![SeedChannel::Tls];
        let address = self.seed.address;
        let (bootstrap, port) = Gate::before(self.seed.bootstrap, address).await.unwrap();
        self.seed.bootstrap = port;
        let (artifacts, port) = Gate::before(self.seed.artifacts, address).await.unwrap();
        self.seed.artifacts = port;
        (bootstrap, artifacts)
    }

    /// The serial line over a gate, and where further lines go in.
    fn over_serial(self) -> (Serial, Gate) {
        let path = self.lab.path("line");
        let (more, lines) = mpsc::unbounded_channel();
        let gate = Gate::on_line(&path, lines).unwrap();
        more.send(self.line).unwrap();
        let mut seed = self.seed;
        seed.channels = vec![SeedChannel::Serial];
        let serial = Serial {
            path,
            more,
            seed,
            lab: self.lab,
            visitors: self.visitors,
            job: self.job,
            file: self.file,
            bytes: self.bytes,
        };
        (serial, gate)
    }

    async fn link(&self, remains: &mut Remains) -> Link {
        session(remains, Ways::new(&self.seed, None).unwrap()).await
    }
}

/// A stage whose line goes through a gate.
struct Serial {
    lab: Lab,
    visitors: Visitors,
    job: String,
    seed: Seed,
    path: PathBuf,
    more: mpsc::UnboundedSender<UnixStream>,
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Serial {
    async fn link(&self, remains: &mut Remains) -> Link {
        session(remains, Ways::new(&self.seed, Some(self.path.clone())).unwrap()).await
    }
}

async fn session(remains: &mut Remains, ways: Ways) -> Link {
    let keeper = Keeper::nowhere();
    let session = remains::session(remains, &keeper, ways);
    timeout(PATIENCE, session).await.expect("no session").unwrap().0
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

async fn put(link: &Link, name: &str, file: &std::path::Path, bytes: &[u8]) -> Result<(), LinkError> {
    let (name, size) = (name.parse().unwrap(), u64::try_from(bytes.len()).unwrap());
    let sha256 = sum(bytes);
    let sent = link.put_artifact(&name, ArtifactRole::File, file, size, &sha256);
    timeout(PATIENCE, sent).await.expect("the upload hangs")
}

/// What the host has, byte for byte, and that nothing of it is left anywhere else.
fn check_stored(lab: &Lab, job: &str, bytes: &[u8]) {
    let stored = std::fs::read(lab.stored(&sum(bytes))).unwrap();
    assert!(stored == bytes, "other bytes were stored");
    let list = lab.json(&["job", "artifacts", job]).unwrap();
    assert_eq!(list["artifacts"][0]["sha256"], sum(bytes), "{list:#}");
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 1, "{list:#}");
}

/// That nothing waits to be continued.
fn check_no_part(lab: &Lab, job: &str) {
    let waiting = std::fs::read_dir(lab.path("data/partial").join(job));
    assert_eq!(waiting.map_or(0, Iterator::count), 0, "a part is left");
}

#[tokio::test]
async fn an_upload_cut_ten_times_over_tls_sends_only_what_had_not_arrived() {
    let mut stage = Stage::set(16).await;
    let (_bootstrap, gate) = stage.over_tls().await;
    gate.cut_after([1_500_000; 10]);
    let link = stage.link(&mut Remains::first(&stage.seed).unwrap()).await;
    put(&link, NAME, &stage.file, &stage.bytes).await.unwrap();
    gate.cut(10).await;
    check_sent_once(&gate, &stage.bytes, 10);
    check_stored(&stage.lab, &stage.job, &stage.bytes);
    check_no_part(&stage.lab, &stage.job);
    // An answer that was lost: all of it is there, and nothing of it is sent.
    let before = gate.passed();
    put(&link, NAME, &stage.file, &stage.bytes).await.unwrap();
    assert!(gate.passed() - before < 10_000, "{}", gate.passed() - before);
}

#[tokio::test]
async fn an_upload_goes_on_over_the_serial_line_and_after_the_daemon_was_killed() {
    let (stage, gate) = Stage::set(8).await.over_serial();
    gate.cut_after([1_500_000, 1_500_000, 3_000_000]);
    let mut remains = Remains::first(&stage.seed).unwrap();
    let link = stage.link(&mut remains).await;
    let killed = async {
        gate.cut(2).await;
        // In the midst of the third connection, or between two: it makes no difference.
        stage.lab.kill_beside_its_machines().unwrap();
        loop {
            let (_, line) = stage.visitors.next_line().await.unwrap();
            stage.more.send(line).unwrap();
        }
    };
    tokio::select! {
        done = put(&link, NAME, &stage.file, &stage.bytes) => done.unwrap(),
        () = killed => {}
    }
    // A killed daemon loses what it had in memory of one connection more.
    check_sent_once(&gate, &stage.bytes, 4);
    check_stored(&stage.lab, &stage.job, &stage.bytes);
    check_no_part(&stage.lab, &stage.job);
}

#[tokio::test]
async fn the_runner_that_follows_a_killed_one_sends_the_rest() {
    let mut stage = Stage::set(8).await;
    let (_bootstrap, gate) = stage.over_tls().await;
    gate.cut_after([5_000_000]);
    let mut remains = Remains::first(&stage.seed).unwrap();
    let first = stage.link(&mut remains).await;
    tokio::select! {
        _ = put(&first, NAME, &stage.file, &stage.bytes) => panic!("it was not cut"),
        () = gate.cut(1) => {}
    }
    drop(first);
    let second = stage.link(&mut remains).await;
    put(&second, NAME, &stage.file, &stage.bytes).await.unwrap();
    check_sent_once(&gate, &stage.bytes, 2);
    check_stored(&stage.lab, &stage.job, &stage.bytes);
    check_no_part(&stage.lab, &stage.job);
}

#[tokio::test]
async fn two_uploads_of_one_name_end_as_one_file() {
    let mut stage = Stage::set(4).await;
    let (_bootstrap, gate) = stage.over_tls().await;
    gate.cut_after([2_000_000]);
    let link = stage.link(&mut Remains::first(&stage.seed).unwrap()).await;
    let other = stage.lab.path("other");
    let bytes = vec![7; 3_000_000];
    std::fs::write(&other, &bytes).unwrap();
    let (one, two) = tokio::join!(
        put(&link, NAME, &stage.file, &stage.bytes),
        put(&link, NAME, &other, &bytes),
    );
    let (stored, refused) = match (one, two) {
        (Ok(()), Err(refused)) => (&stage.bytes, refused),
        (Err(refused), Ok(())) => (&bytes, refused),
        both => panic!("{both:?}"),
    };
    assert!(
        matches!(refused, LinkError::Refused { status: 409, .. }),
        "{refused}"
    );
    // The other one may have broken off first, and what came of it waits until the job ends.
    check_stored(&stage.lab, &stage.job, stored);
}
