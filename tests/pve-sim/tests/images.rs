//! Files that come to a storage from outside, and machines made of them: the way of a template onto a node.

use pve_sim::{Plugin, Request, Response, Scale, Setup, Version};
use serde_json::{Value, json};

use crate::asker::{Asker, reason};

const QCOW2_BYTES: u64 = 3 << 30;

/// The beginning of an image whose guest sees 3 GiB.
fn qcow2(backing: u64) -> Vec<u8> {
    let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
    image.extend(backing.to_be_bytes());
    image.extend([0; 8]);
    image.extend(QCOW2_BYTES.to_be_bytes());
    image.resize(4096, 0);
    image
}

/// As a client must write it: `content` first, the file last.
async fn upload(node: &Asker, storage: &str, fields: &[(&str, &str)], name: &str, file: &[u8]) -> Response {
    let mut body = Vec::new();
    for (field, value) in fields {
        let part = format!("--edge\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n");
        body.extend(part.into_bytes());
    }
    let head = format!(
        "--edge\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    body.extend(head.into_bytes());
    body.extend(file);
    body.extend(b"\r\n--edge--\r\n");
    let request = Request {
        method: "POST".into(),
        path: format!("/nodes/{}/storage/{storage}/upload", node.sim.node()),
        authorization: Some(format!("PVEAPIToken={}", node.token)),
        content_type: Some("multipart/form-data; boundary=edge".into()),
        body: body.into(),
        ..Request::default()
    };
    node.sim.answer(request).await
}

async fn uploaded(node: &Asker, fields: &[(&str, &str)], name: &str, file: &[u8]) -> String {
    let response = upload(node, "local", fields, name, file).await;
    assert_eq!(response.status, 200, "{response:?}");
    node.end(&response.body.unwrap()["data"]).await
}

#[tokio::test(start_paused = true)]
async fn an_image_is_uploaded_imported_and_made_a_template() {
    for version in [Version::V8, Version::V9] {
        let root = Asker::lab(version).as_root();
        let sum = {
            use sha2::Digest as _;
            hex::encode(sha2::Sha256::digest(qcow2(0)))
        };
        let fields = [
            ("content", "import"),
            ("checksum-algorithm", "sha256"),
            ("checksum", &sum),
        ];
        assert_eq!(uploaded(&root, &fields, "agent lab.qcow2", &qcow2(0)).await, "OK");
        let listed = json!({ "content": "import" });
        let listed = root.data("GET", "{node}/storage/local/content", listed).await;
        assert_eq!(listed[0]["volid"], "local:import/agent_lab.qcow2");
        assert_eq!(listed[0]["size"], QCOW2_BYTES);
        let machine = json!({
            "vmid": 9100, "name": "agentlab", "agent": "1", "boot": "order=scsi0", "memory": 512,
            "scsihw": "virtio-scsi-single", "serial0": "socket", "ostype": "l26", "net0": "virtio,bridge=vmbr1",
            "scsi0": "labdir:0,import-from=local:import/agent_lab.qcow2,discard=on",
            "description": "agentlab-runner: 0.1.0",
        });
        assert_eq!(root.task("POST", "{node}/qemu", machine).await, "OK");
        let config = root.data("GET", "{node}/qemu/9100/config", Value::Null).await;
        assert_eq!(
            config["scsi0"],
            "labdir:9100/vm-9100-disk-0.qcow2,discard=on,size=3G"
        );
        assert!(config.get("lock").is_none(), "{config}");
        assert_eq!(
            root.task("POST", "{node}/qemu/9100/template", json!({})).await,
            "OK"
        );
        let config = root.data("GET", "{node}/qemu/9100/config", Value::Null).await;
        assert_eq!(
            config["scsi0"],
            "labdir:9100/base-9100-disk-0.qcow2,discard=on,size=3G"
        );
        let gone = "{node}/storage/local/content/local:import%2Fagent_lab.qcow2";
        assert_eq!(root.task("DELETE", gone, Value::Null).await, "OK");
        let listed = json!({ "content": "import" });
        assert_eq!(
            root.data("GET", "{node}/storage/local/content", listed).await,
            json!([])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_is_refused_for_what_it_is_and_for_who_sends_it() {
    let token = Asker::lab(Version::V9);
    let import = [("content", "import")];
    let denied = upload(&token, "local", &import, "a.raw", b"disk").await;
    assert_eq!(
        reason(&denied),
        (
            403,
            "Permission check failed (/storage/local, Datastore.AllocateTemplate)"
        )
    );
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.storages.push(("tank".into(), Plugin::Zfs, false));
    let root = Asker::of(setup).as_root();
    let snippet = upload(&root, "local", &[("content", "snippets")], "a.yaml", b"x").await;
    assert_eq!(snippet.status, 400, "{snippet:?}");
    let ending = upload(&root, "local", &import, "a.img", b"x").await;
    let errors = &ending.body.unwrap()["errors"];
    assert_eq!(errors["filename"], "invalid filename or wrong extension");
    let block = upload(&root, "tank", &import, "a.raw", b"x").await;
    assert_eq!(reason(&block), (500, "can't upload to storage type 'zfspool'"));
    let late = upload(&root, "local", &[], "a.raw", b"x").await;
    assert_eq!(late.status, 400, "content after the file is not seen: {late:?}");
    let wrong = [
        ("content", "import"),
        ("checksum-algorithm", "sha256"),
        ("checksum", "00ff"),
    ];
    let end = uploaded(&root, &wrong, "a.raw", b"disk").await;
    assert!(
        end.starts_with("checksum mismatch: got '") && end.ends_with("' != expect '00ff'"),
        "{end}"
    );
    let end = uploaded(&root, &import, "a.qcow2", &qcow2(512)).await;
    assert!(end.starts_with("backing file not allowed"), "{end}");
    let listed = root
        .data("GET", "{node}/storage/local/content", Value::Null)
        .await;
    assert!(!listed.to_string().contains("import"), "{listed}");
}

#[tokio::test(start_paused = true)]
async fn a_node_fetches_an_image_for_whoever_may_use_its_network() {
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    let url = "https://images.example/debian.qcow2";
    setup.downloads.insert(url.to_owned(), qcow2(0).into());
    let token = Asker::of(setup);
    let spec = |url| json!({ "url": url, "content": "import", "filename": "debian.qcow2" });
    let path = "{node}/storage/local/download-url";
    let denied = token.ask("POST", path, spec(url)).await;
    assert_eq!(reason(&denied), (403, "Permission check failed"));
    let root = token.as_root();
    assert_eq!(root.task("POST", path, spec(url)).await, "OK");
    let again = root.task("POST", path, spec(url)).await;
    assert_eq!(
        again,
        "refusing to override existing file '/var/lib/vz/import/debian.qcow2'"
    );
    let mut packed = spec(url);
    packed["compression"] = json!("zst");
    let packed = root.ask("POST", path, packed).await;
    assert_eq!(reason(&packed), (500, "decompression not supported for import"));
    let mut other = spec("https://nowhere.example/x");
    other["filename"] = json!("x.raw");
    assert!(
        root.task("POST", path, other)
            .await
            .starts_with("download failed")
    );
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_made_whole_leaves_nothing_of_itself() {
    let root = Asker::lab(Version::V8).as_root();
    let missing = json!({
        "vmid": 9100, "scsi0": "local:1", "scsi1": "local:0,import-from=local:import/nosuch.raw",
    });
    let end = root.task("POST", "{node}/qemu", missing).await;
    assert!(
        end.starts_with("unable to create VM 9100 - cannot import from 'local:import/nosuch.raw'"),
        "{end}"
    );
    let gone = root.ask("GET", "{node}/qemu/9100/config", Value::Null).await;
    assert_eq!(gone.status, 500);
    let of_it = json!({ "vmid": 9100 });
    let volumes = root.data("GET", "{node}/storage/local/content", of_it).await;
    assert_eq!(volumes, json!([]));
    let wrong = json!({ "vmid": 9100, "scsi0": "local:8,import-from=local:import/a.raw" });
    let wrong = root.ask("POST", "{node}/qemu", wrong).await;
    assert_eq!(
        wrong.body.unwrap()["errors"]["scsi0"],
        "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_imports_only_what_it_may_read_and_names_no_path() {
    let token = Asker::lab(Version::V9);
    let machine = |source: &str| json!({ "vmid": 100, "pool": "agentlab", "scsi0": format!("local:0,import-from={source}") });
    let path = token.ask("POST", "{node}/qemu", machine("/etc/shadow")).await;
    assert_eq!(
        reason(&path),
        (500, "Only root can pass arbitrary filesystem paths.")
    );
    let other = token
        .ask("POST", "{node}/qemu", machine("labdir:import/a.raw"))
        .await;
    assert_eq!(
        reason(&other),
        (
            403,
            "Permission check failed (/storage/labdir, Datastore.AllocateSpace|Datastore.Audit)"
        )
    );
    let iso = token.ask("POST", "{node}/qemu", machine("local:iso/a.iso")).await;
    assert_eq!(iso.status, 400, "{iso:?}");
    // Its template it may clone, and so may it copy the disk.
    let base = machine("local:9000/base-9000-disk-0.qcow2");
    assert_eq!(token.task("POST", "{node}/qemu", base).await, "OK");
    let elsewhere = token.ask("POST", "{node}/qemu", json!({ "vmid": 101 })).await;
    assert_eq!(reason(&elsewhere), (403, "Permission check failed"));
}
