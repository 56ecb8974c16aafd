//! Nothing that is not provably ours is ever changed: against a stand-in that keeps account of who touched what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, connect};
use agentlab_backend::{Backend, BackendError, Power, PowerOn};
use agentlab_protocol::secret::SecretText;
use pve_sim::{PveSim, Rates, Scale, Setup, Version};

use crate::lab::{options, shape, spec, stamp, vmid};

const QUICK: Scale = Scale(0.01);

pub(crate) fn backend(node: &PveSim) -> Arc<dyn Backend> {
    waiting_for_locks(node, options().lock_patience)
}

fn waiting_for_locks(node: &PveSim, lock_patience: Duration) -> Arc<dyn Backend> {
    let mut options = options();
    options.node = None;
    options.storage = Some("local".into());
    options.volume_owner = Some(vmid(777));
    options.lock_patience = lock_patience;
    connect(settings(node, options)).unwrap()
}

pub(crate) fn settings(node: &PveSim, options: agentlab_backend::PveOptions) -> ProxmoxSettings {
    let token = ApiToken::try_from(&SecretText::new(node.token())).unwrap();
    let trust = Trust::Fingerprint(node.fingerprint().parse().unwrap());
    ProxmoxSettings::new(node.url().parse().unwrap(), token, trust, options)
}

fn config(node: &PveSim, raw: u32) -> BTreeMap<String, String> {
    node.operator().config(raw).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_keeps_nothing_of_its_template_that_would_outlive_it_or_reach_another_network() {
    for version in [Version::V8, Version::V9] {
        let mut setup = Setup::lab(version, QUICK);
        let more = [
            ("net1", "virtio=BC:24:11:EB:96:56,bridge=vmbr0"),
            ("onboot", "1"),
            ("balloon", "200"),
            ("description", "Built by Ann"),
        ];
        let more = more.map(|(key, value)| (key.to_owned(), value.to_owned()));
        setup.template.extend(more);
        let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
        let backend = backend(&node);
        backend.clone_template(&spec()).await.unwrap();
        backend.configure(vmid(1000), &stamp(), &shape()).await.unwrap();
        let made = config(&node, 1000);
        assert_eq!(made.get("protection").map(String::as_str), Some("0"));
        assert_eq!(made.get("onboot").map(String::as_str), Some("0"));
        assert_eq!(made.get("tags").map(String::as_str), Some("agentlab"));
        assert_eq!(made["net0"], "virtio=02:A1:00:00:03:E8,bridge=vmbr1,firewall=0");
        assert_eq!(made.get("net1"), None);
        assert_eq!(made["balloon"], "0");
        assert_eq!(made.contains_key("allow-ksm"), version == Version::V9);
        // An operator who puts it onto another network, or gives it a second NIC, has taken it out of our hands.
        for (key, value) in [
            ("net0", "virtio=02:A1:00:00:03:E8,bridge=vmbr0,firewall=0"),
            ("net0", "virtio=02:A1:00:00:03:E8,bridge=vmbr1,firewall=0,tag=20"),
            ("net1", "virtio=BC:24:11:EB:96:56,bridge=vmbr0"),
        ] {
            let before = config(&node, 1000).get(key).cloned();
            node.operator().configure(1000, key, Some(value));
            let answer = backend
                .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
                .await;
            assert!(
                matches!(answer, Err(BackendError::Refused { .. })),
                "{key}: {answer:?}"
            );
            node.operator().configure(1000, key, before.as_deref());
        }
        backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await
            .unwrap();
        backend.destroy(vmid(1000), &stamp()).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_is_somebody_elses_is_left_alone_in_the_pool_and_outside_of_it() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    assert!(node.operator().create_foreign(1000));
    let answer = backend.clone_template(&spec()).await;
    assert!(matches!(answer, Err(BackendError::Conflict { .. })), "{answer:?}");
    let answer = backend.destroy(vmid(1000), &stamp()).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    let listed = backend.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].stamp.clone()), (1, None));
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_our_machine_and_one_whose_notes_were_changed_are_not_ours() {
    let node = PveSim::start(Version::V8, QUICK).await.unwrap();
    let backend = backend(&node);
    backend.clone_template(&spec()).await.unwrap();
    let ours = config(&node, 1000);
    // A copy under another number: its description came along, and PVE gave it another uuid.
    assert!(node.operator().create_foreign(1001));
    node.operator()
        .configure(1001, "description", Some(&ours["description"]));
    node.operator()
        .configure(1001, "smbios1", Some("uuid=00000000-0000-0000-0000-000000000001"));
    let answer = backend.destroy(vmid(1001), &stamp()).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    // Notes around our line do no harm; without it the machine is a stranger's.
    let noted = format!("asked for by Ann\n{}", ours["description"]);
    node.operator().configure(1000, "description", Some(&noted));
    assert!(
        backend
            .inspect(vmid(1000))
            .await
            .unwrap()
            .unwrap()
            .stamp
            .is_some()
    );
    node.operator().configure(1000, "description", Some("mine now"));
    let answer = backend.destroy(vmid(1000), &stamp()).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    assert!(node.operator().config(1000).is_some() && node.operator().config(1001).is_some());
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_an_operator_protected_still_goes_and_a_locked_one_waits_its_turn() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    backend.clone_template(&spec()).await.unwrap();
    node.operator().configure(1000, "protection", Some("1"));
    node.operator().configure(1000, "lock", Some("backup"));
    let answer = backend.destroy(vmid(1000), &stamp()).await;
    assert!(
        matches!(&answer, Err(error @ BackendError::Busy { reason, .. }) if error.is_transient() && reason.contains("backup")),
        "{answer:?}"
    );
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.operator().configure(1000, "lock", None);
    };
    let stamp = stamp();
    let patient = waiting_for_locks(&node, Duration::from_secs(60));
    let (answer, ()) = tokio::join!(patient.destroy(vmid(1000), &stamp), unlock);
    answer.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_keeps_the_uuid_and_without_the_privilege_says_which_one_is_missing() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let right = backend(&node);
    right.clone_template(&spec()).await.unwrap();
    let uuid = config(&node, 1000)["smbios1"].clone();
    right
        .place_seed(vmid(1000), &stamp(), &[0xa5; 200])
        .await
        .unwrap();
    let with = config(&node, 1000)["smbios1"].clone();
    assert!(with.starts_with(&format!("{uuid},base64=1,serial=")), "{with}");
    right.remove_seed(vmid(1000), &stamp()).await.unwrap();
    assert_eq!(config(&node, 1000)["smbios1"], uuid);

    let mut setup = Setup::lab(Version::V8, QUICK);
    setup
        .privileges
        .retain(|privilege| privilege != "VM.Config.HWType");
    let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
    let poor = backend(&node);
    poor.clone_template(&spec()).await.unwrap();
    let answer = poor.place_seed(vmid(1000), &stamp(), b"seed").await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains("VM.Config.HWType")),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_quorum_nothing_is_changed_and_nothing_is_concluded() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    backend.clone_template(&spec()).await.unwrap();
    node.operator().set_quorate(false);
    let answer = backend.configure(vmid(1000), &stamp(), &shape()).await;
    assert!(
        matches!(&answer, Err(BackendError::Unreachable { reason, .. }) if reason.contains("not quorate")),
        "{answer:?}"
    );
    assert!(backend.inspect(vmid(1000)).await.unwrap().is_some());
    node.operator().set_quorate(true);
    backend.configure(vmid(1000), &stamp(), &shape()).await.unwrap();
}

/// Asks until there is an answer that concludes something, as the engine does.
async fn until_done<T, F>(what: &str, ask: impl Fn() -> F) -> T
where
    F: Future<Output = agentlab_backend::Result<T>>,
{
    let mut said = Vec::new();
    while said.len() < 40 {
        match ask().await {
            Ok(done) => return done,
            Err(error @ BackendError::NotOurs { .. }) => panic!("{what}: our own machine: {error}"),
            // Faults of workers are final for the engine's step; for this test they are weather.
            Err(error) => said.push(error.to_string()),
        }
    }
    panic!("{what} never ended: {said:#?}");
}

/// One life of a machine on bad days: calls lost before and after their effect, late answers, locks, workers that fail
/// or warn. Whatever happened, it ends gone, and nobody else's was touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_bad_days_a_machine_still_comes_goes_and_leaves_nothing() {
    for seed in 0..12 {
        println!("seed {seed}");
        let version = if seed % 2 == 0 { Version::V8 } else { Version::V9 };
        let node = PveSim::start(version, QUICK).await.unwrap();
        let backend = backend(&node);
        let rates = Rates {
            half_done_clone: 0,
            ..Rates::bad_day()
        };
        node.operator().create_foreign(1001);
        node.plan_faults(seed, rates);
        let (at, stamp) = (vmid(1000), stamp());
        until_done("clone", || async { backend.clone_template(&spec()).await }).await;
        until_done("configure", || async {
            backend.configure(at, &stamp, &shape()).await
        })
        .await;
        until_done("seed", || async { backend.place_seed(at, &stamp, b"seed").await }).await;
        until_done("power on", || async {
            backend.power_on(at, &stamp, PowerOn { nic: None }).await
        })
        .await;
        let machine = until_done("inspect", || async { backend.inspect(at).await }).await;
        assert_eq!(machine.unwrap().power, Power::Running, "seed {seed}");
        until_done("remove seed", || async { backend.remove_seed(at, &stamp).await }).await;
        until_done("power off", || async { backend.power_off(at, &stamp).await }).await;
        until_done("destroy", || async { backend.destroy(at, &stamp).await }).await;
        assert_eq!(node.left(), Vec::<String>::new(), "seed {seed}");
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new(), "seed {seed}");
    }
}

/// Two racing for one number: one gets it, and the other leaves it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_one_number_one_gets_it_and_the_other_is_told() {
    let node = PveSim::start(Version::V8, QUICK).await.unwrap();
    let (one, other) = (backend(&node), backend(&node));
    let mine = spec();
    let mut theirs = spec();
    theirs.stamp.nonce = "fedcba9876543210".repeat(2);
    let (first, second) = tokio::join!(one.clone_template(&mine), other.clone_template(&theirs));
    let won = [first.is_ok(), second.is_ok()];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{first:?} {second:?}");
    let lost = first.err().or(second.err()).unwrap();
    assert!(matches!(lost, BackendError::Conflict { .. }), "{lost:?}");
    let (winner, loser) = if won[0] {
        (&mine, &theirs)
    } else {
        (&theirs, &mine)
    };
    let answer = one.destroy(vmid(1000), &loser.stamp).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    one.destroy(vmid(1000), &winner.stamp).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

/// However many machines there are, looking at them costs two calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_made_at_once_and_then_cost_two_calls_to_list() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    let mut making = tokio::task::JoinSet::new();
    for raw in 1000..1030 {
        let backend = backend.clone();
        making.spawn(async move {
            let mut spec = spec();
            spec.vmid = vmid(raw);
            spec.name = format!("sandbox-{raw}");
            backend.clone_template(&spec).await
        });
    }
    while let Some(made) = making.join_next().await {
        made.unwrap().unwrap();
    }
    let listed = backend.list().await.unwrap();
    assert_eq!(listed.len(), 30);
    assert!(listed.iter().all(|machine| machine.stamp == Some(stamp())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_is_asked_and_believed_of_one_interface_only() {
    for version in [Version::V8, Version::V9] {
        let mut setup = Setup::lab(version, QUICK);
        setup.guests.docker = true;
        setup.guests.ipv6 = true;
        let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
        let backend = backend(&node);
        let (at, stamp) = (vmid(1000), stamp());
        backend.clone_template(&spec()).await.unwrap();
        assert!(!backend.agent_answers(at).await.unwrap());
        backend.configure(at, &stamp, &shape()).await.unwrap();
        backend.power_on(at, &stamp, PowerOn { nic: None }).await.unwrap();
        while !backend.agent_answers(at).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let addresses = backend.agent_addresses(at).await.unwrap();
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        let program = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"].map(str::to_owned);
        let patience = Duration::from_secs(60);
        let done = backend
            .agent_execute(at, &stamp, &program, patience)
            .await
            .unwrap();
        assert_eq!(
            (done.code, done.stdout.as_slice(), done.stderr.as_slice()),
            (Some(3), b"out\n".as_slice(), b"err\n".as_slice())
        );
        let missing = ["/no/such/program".to_owned()];
        assert!(
            backend
                .agent_execute(at, &stamp, &missing, patience)
                .await
                .is_err()
        );
        let mut foreign = stamp.clone();
        foreign.nonce = "fedcba9876543210".repeat(2);
        let answer = backend.agent_execute(at, &foreign, &program, patience).await;
        assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    }
}
