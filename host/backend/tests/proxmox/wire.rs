//! What happens on the way, and what may be concluded from it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_backend::BackendError;
use agentlab_backend::proxmox::{Fingerprint, Trust, connect};
use serde_json::json;

use crate::lab::{SECRET, backend, settings, shape, spec, stamp, vmid};
use crate::server::{Reply, Seen, Server};

fn version() -> Reply {
    Reply::data(json!({"version": "8.4.21", "release": "8.4"}))
}

fn unreachable(error: &BackendError) -> String {
    if let BackendError::Unreachable { reason, .. } = error {
        return reason.clone();
    }
    panic!("{error:?}")
}

#[tokio::test]
async fn a_certificate_that_is_not_believed_is_shown_with_the_key_to_pin_it() {
    let server = Server::start(|_| version()).await;
    for trust in [Trust::Fingerprint(Fingerprint([1; 32])), Trust::SystemRoots] {
        let mut wrong = settings(&server);
        wrong.trust = trust;
        let error = connect(wrong).unwrap().info().await.unwrap_err();
        let words = unreachable(&error);
        assert!(words.contains(&server.fingerprint.to_string()), "{words}");
        assert!(words.contains("proxmox_tls_fingerprint"), "{words}");
        assert!(error.is_transient());
    }
    assert!(
        server.seen().is_empty(),
        "a token went to a server that is not believed"
    );
    for trust in [
        Trust::Fingerprint(server.fingerprint),
        Trust::CaPem(server.pem.clone()),
        Trust::ThisHost,
    ] {
        let mut right = settings(&server);
        right.trust = trust;
        assert_eq!(
            connect(right).unwrap().info().await.unwrap().version,
            "Proxmox VE 8.4.21"
        );
    }
    let mut elsewhere = settings(&server);
    elsewhere.trust = Trust::ThisHost;
    elsewhere.url = "https://pve.example:8006".parse().unwrap();
    assert!(connect(elsewhere).is_err());
    let mut empty = settings(&server);
    empty.trust = Trust::CaPem("nothing".into());
    assert!(connect(empty).is_err());
}

#[tokio::test]
async fn a_call_is_what_pve_expects_and_the_secret_is_in_one_header_only() {
    let server = Server::start(|_| version()).await;
    backend(&server).info().await.unwrap();
    let seen = server.seen();
    assert_eq!(
        (
            seen[0].method.as_str(),
            seen[0].target.as_str(),
            seen[0].body.as_str()
        ),
        ("GET", "/version", "")
    );
    let headers = seen[0].headers.to_lowercase();
    assert!(
        headers.contains(&format!("authorization: pveapitoken=agentlab@pve!lp={SECRET}")),
        "{headers}"
    );
    assert!(
        !headers.contains("content-length") && !headers.contains("transfer-encoding"),
        "{headers}"
    );
    assert!(!seen[0].target.contains(SECRET));
}

#[tokio::test]
async fn a_connection_is_used_again_and_one_that_the_server_closed_costs_nothing() {
    let server = Server::start(|seen| {
        if seen.target.starts_with("/cluster/nextid") {
            return Reply::AnswerAndClose(r#"{"data":"1000"}"#.into());
        }
        Reply::refusal(
            500,
            "Configuration file 'nodes/pve8/qemu-server/1000.conf' does not exist",
        )
    })
    .await;
    let backend = backend(&server);
    for _ in 0..3 {
        assert!(!backend.has_seed(vmid(1000)).await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 6);
    let connections: Vec<usize> = seen.iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 1, 1, 2, 2]);
}

#[tokio::test]
async fn a_question_whose_answer_is_lost_is_asked_again_and_no_third_time() {
    for broken in [
        Reply::Cut(Vec::new()),
        Reply::Cut(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"data\":".to_vec()),
        Reply::Cut(b"nonsense\r\n\r\n".to_vec()),
        Reply::Answer(596, "tls error".into(), String::new()),
        Reply::Answer(200, "OK".into(), "<html>".into()),
        Reply::Answer(200, "OK".into(), "[]".into()),
    ] {
        let calls = Arc::new(AtomicU32::new(0));
        let (counted, reply) = (calls.clone(), broken.clone());
        let server = Server::start(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
            0 => reply.clone(),
            _ => version(),
        })
        .await;
        assert_eq!(
            backend(&server).info().await.unwrap().version,
            "Proxmox VE 8.4.21",
            "{broken:?}"
        );
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        let reply = broken.clone();
        let server = Server::start(move |_| reply.clone()).await;
        let error = backend(&server).info().await.unwrap_err();
        assert!(
            matches!(error, BackendError::Unreachable { .. }),
            "{broken:?}: {error:?}"
        );
        assert_eq!(server.seen().len(), 3, "{broken:?}");
    }
}

#[tokio::test]
async fn an_answer_without_end_and_one_that_does_not_come_are_given_up() {
    let mut endless = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec();
    endless.resize(40 << 20, b' ');
    let server = Server::start(move |_| Reply::Cut(endless.clone())).await;
    let words = unreachable(&backend(&server).info().await.unwrap_err());
    assert!(words.contains("longer than"), "{words}");

    let server = Server::start(|_| Reply::Hang(Duration::from_secs(60))).await;
    let mut hasty = settings(&server);
    hasty.call_patience = Duration::from_millis(200);
    let words = unreachable(&connect(hasty).unwrap().info().await.unwrap_err());
    assert!(words.contains("no answer within"), "{words}");
    assert_eq!(
        server.seen().len(),
        1,
        "a server that let us wait was asked again"
    );
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_nothing_is_concluded() {
    let server = Server::start(|_| version()).await;
    let settings = settings(&server);
    drop(server);
    let error = connect(settings).unwrap().inspect(vmid(1000)).await.unwrap_err();
    assert!(
        matches!(error, BackendError::Unreachable { .. }) && error.is_transient(),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_token_that_is_refused_is_named_with_what_to_look_at() {
    let server = Server::start(|_| Reply::Answer(401, "Authentication failed!".into(), String::new())).await;
    let words = unreachable(&backend(&server).info().await.unwrap_err());
    assert!(
        words.contains("Authentication failed!") && words.contains("proxmox_api_token"),
        "{words}"
    );
    assert!(!words.contains(SECRET), "{words}");
    assert_eq!(server.seen().len(), 2);
    // Without a length and without an end of TLS, as a proxy that gives up sends it.
    let server = Server::start(|_| Reply::Cut(b"HTTP/1.1 401 No ticket\r\n\r\n".to_vec())).await;
    let words = unreachable(&backend(&server).info().await.unwrap_err());
    assert!(words.contains("No ticket"), "{words}");
    let bare = b"HTTP/1.1 200 OK\r\n\r\n{\"data\":{\"version\":\"8.4.21\"}}".to_vec();
    let server = Server::start(move |_| Reply::Cut(bare.clone())).await;
    assert_eq!(
        backend(&server).info().await.unwrap().version,
        "Proxmox VE 8.4.21"
    );
}

/// A node on which a template is, and one VMID with whatever a test puts there.
fn node(machine: Arc<Mutex<Option<String>>>, clone: Reply) -> impl Fn(&Seen) -> Reply {
    move |seen: &Seen| {
        let path = seen.target.split('?').next().unwrap_or_default();
        match (seen.method.as_str(), path) {
            ("GET", "/version") => version(),
            ("GET", "/nodes/pve8/qemu/9000/config") => Reply::data(json!({
                "template": 1, "name": "tmpl", "scsi0": "local:9000/base-9000-disk-0.qcow2,size=200M", "boot": "order=scsi0",
                "agent": "1", "net0": "virtio,bridge=vmbr1",
            })),
            ("GET", "/nodes/pve8/qemu/9000/feature") => Reply::data(json!({"hasFeature": 1})),
            ("GET", "/nodes/pve8/qemu/1000/config") => match machine.lock().unwrap().as_ref() {
                Some(description) => Reply::data(json!({
                    "name": "sandbox-1000", "description": description, "digest": "d",
                    "smbios1": "uuid=7d2ab580-26da-44b3-8f0d-0395a2723def", "scsi0": "local:1000/vm-1000-disk-0.qcow2,size=200M",
                })),
                None => Reply::refusal(
                    500,
                    "Configuration file 'nodes/pve8/qemu-server/1000.conf' does not exist",
                ),
            },
            ("GET", "/cluster/nextid") if machine.lock().unwrap().is_none() => Reply::free(),
            ("GET", "/cluster/nextid") => Reply::taken(),
            ("GET", "/nodes/pve8/qemu/1000/status/current") => Reply::data(json!({"status": "stopped"})),
            ("POST", "/nodes/pve8/qemu/9000/clone") => clone.clone(),
            ("PUT", "/nodes/pve8/qemu/1000/config") => {
                let body: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
                *machine.lock().unwrap() = body["description"].as_str().map(str::to_owned);
                Reply::data(json!(null))
            }
            (_, path) if path.ends_with("/status") => Reply::data(
                json!({"status": "stopped", "exitstatus": "unable to create VM 1000: config file already exists"}),
            ),
            (_, path) if path.ends_with("/log") => Reply::data(json!([{"n": 1, "t": "TASK ERROR: x"}])),
            _ => Reply::refusal(501, "not here"),
        }
    }
}

const UPID: &str = "UPID:pve8:00001433:000A5657:6B008793:qmclone:9000:agentlab@pve!lp:";

fn our_line() -> String {
    format!("{} vmid=1000 template=9000", spec().stamp)
}

#[tokio::test]
async fn a_200_whose_task_failed_proves_nothing_and_the_description_decides() {
    // Somebody else won the race for the number.
    let machine = Arc::new(Mutex::new(None));
    let winner = machine.clone();
    let script = node(machine.clone(), Reply::data(json!(UPID)));
    let server = Server::start(move |seen| {
        if seen.is("POST", "/nodes/pve8/qemu/9000/clone") {
            *winner.lock().unwrap() = Some("somebody's database".to_owned());
        }
        script(seen)
    })
    .await;
    let error = backend(&server).clone_template(&spec()).await.unwrap_err();
    assert!(matches!(error, BackendError::Conflict { .. }), "{error:?}");
    assert_eq!(server.changes(), ["POST /nodes/pve8/qemu/9000/clone"]);
    // An earlier call of ours did, whose answer was lost.
    let earlier = machine.clone();
    *machine.lock().unwrap() = None;
    let script = node(machine.clone(), Reply::data(json!(UPID)));
    let server = Server::start(move |seen| {
        if seen.is("POST", "/nodes/pve8/qemu/9000/clone") {
            *earlier.lock().unwrap() = Some(our_line());
        }
        script(seen)
    })
    .await;
    let backend = backend(&server);
    let made = backend.clone_template(&spec()).await.unwrap();
    assert_eq!(made.stamp, Some(spec().stamp));
    backend.configure(vmid(1000), &stamp(), &shape()).await.unwrap();
    // What it inherited is put right, with its uuid noted, in one call and only after its stamp was read.
    assert_eq!(
        server.changes(),
        [
            "POST /nodes/pve8/qemu/9000/clone",
            "PUT /nodes/pve8/qemu/1000/config"
        ]
    );
    let put = server
        .seen()
        .into_iter()
        .find(|seen| seen.method == "PUT")
        .unwrap();
    let body: serde_json::Value = serde_json::from_str(&put.body).unwrap();
    assert_eq!(
        (&body["protection"], &body["onboot"], &body["digest"]),
        (&json!("0"), &json!("0"), &json!("d"))
    );
    assert!(
        body["description"]
            .as_str()
            .unwrap()
            .ends_with("uuid=7d2ab580-26da-44b3-8f0d-0395a2723def mac=02:A1:00:00:03:E8")
    );
}

#[tokio::test]
async fn a_task_whose_name_cannot_be_read_is_not_taken_for_done() {
    let clone = Reply::data(json!("UPID:pve8:odd"));
    let server = Server::start(node(Arc::default(), clone)).await;
    let error = backend(&server).clone_template(&spec()).await.unwrap_err();
    assert!(
        unreachable(&error).contains("cannot be followed: `UPID:pve8:odd`"),
        "{error:?}"
    );
    assert_eq!(server.changes(), ["POST /nodes/pve8/qemu/9000/clone"]);
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_not_repeated_and_its_effect_is_looked_for() {
    for lost in [
        Reply::Cut(Vec::new()),
        Reply::Cut(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"da".to_vec()),
        Reply::Answer(596, "tls error".into(), String::new()),
        Reply::Answer(599, "Too many redirections".into(), String::new()),
    ] {
        let machine = Arc::new(Mutex::new(None));
        let server = Server::start(node(machine.clone(), lost.clone())).await;
        let error = backend(&server).clone_template(&spec()).await.unwrap_err();
        assert!(
            matches!(error, BackendError::Unreachable { .. }) && error.is_transient(),
            "{lost:?}: {error:?}"
        );
        assert_eq!(server.changes().len(), 1, "{lost:?}");
        // It took effect after all.
        *machine.lock().unwrap() = Some(our_line());
        let made = backend(&server).clone_template(&spec()).await.unwrap();
        assert_eq!(made.stamp, Some(spec().stamp), "{lost:?}");
        let clones = server
            .changes()
            .iter()
            .filter(|change| change.starts_with("POST"))
            .count();
        assert_eq!(clones, 1, "{lost:?}");
    }
}

#[tokio::test]
async fn a_node_of_the_cluster_that_is_down_hides_nothing_but_its_own() {
    let server = Server::start(|seen| {
        let path = seen.target.split('?').next().unwrap_or_default();
        match path {
            "/nodes/pve8/qemu" => {
                Reply::data(json!([{"vmid": 1000, "name": "sandbox-1000", "status": "running"}]))
            }
            "/cluster/resources" => Reply::data(json!([
                {"vmid": 1000, "name": "sandbox-1000", "type": "qemu", "node": "pve8", "status": "unknown"},
                {"vmid": 1500, "name": "db", "type": "qemu", "node": "pve9", "status": "unknown"},
                {"vmid": 1600, "name": "ct", "type": "lxc", "node": "pve8", "status": "running"},
                {"vmid": 9001, "name": "far", "type": "qemu", "node": "pve9", "template": "1"},
            ])),
            "/nodes/pve8/qemu/1000/config" => {
                Reply::data(json!({"name": "sandbox-1000", "description": our_line()}))
            }
            "/nodes/pve8/qemu/1000/status/current" => {
                Reply::data(json!({"status": "running", "qmpstatus": "running"}))
            }
            "/nodes/pve8/qemu/1500/config" => Reply::refusal(
                500,
                "Configuration file 'nodes/pve8/qemu-server/1500.conf' does not exist",
            ),
            "/cluster/nextid" => Reply::taken(),
            _ => Reply::Answer(595, "No route to host".into(), String::new()),
        }
    })
    .await;
    let backend = backend(&server);
    let listed = backend.list().await.unwrap();
    let known: Vec<_> = listed
        .iter()
        .map(|machine| (machine.vmid, machine.stamp.is_some()))
        .collect();
    assert_eq!(
        known,
        [(vmid(1000), true), (vmid(1500), false), (vmid(1600), false)]
    );
    assert_eq!(backend.templates().await.unwrap().len(), 1);
    // Of one of ours there, nothing is known.
    let answer = backend.inspect(vmid(1500)).await;
    assert!(
        matches!(answer, Err(BackendError::Unreachable { .. })),
        "{answer:?}"
    );
}
