//! A seed that goes by a cloud-init snippet, which lies on a node's disk for a while.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_runner::link::{Link, Ways};
use agent_runner::remains::{self, Keeper, Remains};
use agentlab_protocol::message::RedeemAnswer;
use agentlab_protocol::seed::{Seed, SeedChannel};
use agentlab_tests_contract::Gate;
use pve_sim::{PveSim, Scale, Setup, Version};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Stage, canary_in};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// Whatever was in a directory at any time since.
struct Watch {
    dir: PathBuf,
    seen: Arc<Mutex<BTreeSet<String>>>,
    _looking: JoinSet<()>,
}

impl Watch {
    fn over(dir: PathBuf) -> Self {
        let seen = Arc::<Mutex<BTreeSet<String>>>::default();
        let mut looking = JoinSet::new();
        let (found, watched) = (Arc::clone(&seen), dir.clone());
        looking.spawn(async move {
            loop {
                // A file may go between the two looks.
                let files = fs::read_dir(&watched).unwrap().flatten();
                let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
                found.lock().unwrap().extend(texts);
                sleep(LOOK).await;
            }
        });
        Self {
            dir,
            seen,
            _looking: looking,
        }
    }

    fn seen(&self) -> BTreeSet<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The text of a seed, once there is one.
    async fn seed(&self) -> String {
        loop {
            if let Some(seed) = self.seen().iter().find_map(|text| seed_in(text)) {
                return seed;
            }
            sleep(LOOK).await;
        }
    }

    /// Returns once nothing is left there.
    async fn emptied(&self) {
        while fs::read_dir(&self.dir).unwrap().next().is_some() {
            sleep(LOOK).await;
        }
    }
}

fn seed_in(snippet: &str) -> Option<String> {
    let (_, rest) = snippet.split_once("content: '")?;
    Some(rest.split_once('\'')?.0.to_owned())
}

/// A node whose template wants its seeds by cloud-init, which starts no machine whose snippet is not there.
async fn node(dir: PathBuf) -> PveSim {
    let mut setup = Setup::lab(Version::V9, Scale(0.02));
    let drive = "local:9000/vm-9000-cloudinit.qcow2";
    setup.volumes.push((drive.into(), 9000, 4 << 20));
    setup
        .template
        .insert("ide2".into(), format!("{drive},media=cdrom"));
    let wants = concat!(
        "agentlab-runner: ",
        env!("CARGO_PKG_VERSION"),
        "\nagentlab-seed: cloud-init"
    );
    setup.template.insert("description".into(), wants.into());
    setup.snippets_dir = Some(dir);
    setup.in_process().listen("127.0.0.1:0").await.unwrap()
}

/// What a guest with this seed is given, from its own address.
async fn redeemed(mut seed: Seed) -> (Link, RedeemAnswer, [Gate; 2]) {
    seed.channels = vec![SeedChannel::Tls];
    let (bootstrap, port) = Gate::before(seed.bootstrap, seed.address).await.unwrap();
    seed.bootstrap = port;
    let (artifacts, port) = Gate::before(seed.artifacts, seed.address).await.unwrap();
    seed.artifacts = port;
    let (mut remains, keeper) = (Remains::first(&seed).unwrap(), Keeper::nowhere());
    let session = remains::session(&mut remains, &keeper, Ways::new(&seed, None).unwrap());
    let (link, answer) = timeout(PATIENCE, session).await.expect("no session").unwrap();
    (link, answer, [bootstrap, artifacts])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snippet_holds_its_seed_and_no_secret_before_while_and_after_a_guest_reads_it() {
    let mut stage = Stage::set("secrets: [env, git, claude, ssh.keys.me]\n");
    let dir = stage.lab.path("snippets");
    fs::create_dir(&dir).unwrap();
    let node = node(dir.clone()).await;
    let config = format!(
        "backend: proxmox\nproxmox_api_url: {}\nproxmox_api_token: {}\nproxmox_tls_fingerprint: \"{}\"\n\
         proxmox_pool: agentlab\nproxmox_storage: local\nsnippet_storage: local\nsnippets_dir: {}\n",
        node.url(),
        node.token(),
        node.fingerprint(),
        dir.display(),
    );
    stage.lab.configure(&config).unwrap();
    stage.lab.flags(&["--loopback"]);
    stage.lab.start().unwrap();
    let watch = Watch::over(dir);
    let job = stage.lab.detached("ok").unwrap();
    let placed = timeout(PATIENCE, watch.seed()).await;
    let placed = placed.unwrap_or_else(|_| panic!("no seed was placed:\n{}", stage.lab.log()));
    while stage.lab.json(&["sandbox", "list"]).unwrap()["sandboxes"][0]["state"] != "BOOTING" {
        sleep(LOOK).await;
    }
    let vmid = node.operator().clients_machines()[0];
    let of_machine = node.operator().config(vmid).unwrap();
    assert!(of_machine["cicustom"].starts_with("user=local:snippets/agentlab-"));

    let seed = Seed::from_text(&placed).unwrap();
    let (link, answer, _gates) = redeemed(seed.clone()).await;
    let given = serde_json::to_value(&answer).unwrap();
    for canary in [
        "c4n4ry-wanted",
        "c4n4ry-git-token",
        "c4n4ryPRIVATEKEY",
        "c4n4ry-claude",
    ] {
        assert!(given.to_string().contains(canary), "{canary} was not given");
    }
    timeout(PATIENCE, watch.emptied())
        .await
        .expect("a snippet is left");
    let report = json!({"version": 1, "job": job, "status": "failed", "message": "enough was seen"});
    link.report(&serde_json::from_value(report).unwrap())
        .await
        .unwrap();
    stage.lab.finished(&job).unwrap();
    timeout(PATIENCE, async {
        while !node.operator().clients_machines().is_empty() {
            sleep(LOOK).await;
        }
    })
    .await
    .expect("a machine is left");

    // Nothing but the seed, whose every byte has a name; and of a seed, nothing but what has to be in it.
    let snippets = watch.seen();
    for snippet in &snippets {
        assert_eq!(canary_in(snippet.as_bytes()), None, "{snippet}");
        if let Some(text) = seed_in(snippet) {
            assert_eq!(text, seed.to_text().unwrap());
        }
    }
    assert_eq!(canary_in(&seed.encode().unwrap()), None);
    for told in [format!("{of_machine:?}"), format!("{:?}", node.audit())] {
        assert_eq!(canary_in(told.as_bytes()), None, "{told}");
    }
}
