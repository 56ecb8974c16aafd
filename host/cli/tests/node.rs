//! `agentlab init` and `agentlab doctor` against a stand-in of a node's programs, which answers as genuine ones did.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use agentlab_testkit::idle_daemon;
    use serde_json::{Value, json};

    const BEFORE: &str = "# ours\nlog_level: warn # why\nmax_sandboxes: 3\n";

    struct Node {
        dir: tempfile::TempDir,
    }

    struct Ran {
        code: Option<i32>,
        signal: Option<i32>,
        stdout: String,
        stderr: String,
    }

    impl Node {
        /// Nothing of ours is there yet but a template.
        fn bare(release: &str) -> Self {
            // Beside the program, so that it can be linked and finds the stand-ins beside itself.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let node = Self { dir };
            for name in ["bin", "state", "profiles"] {
                fs::create_dir(node.path(name)).unwrap();
            }
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
            for name in ["version", "status", "nodes", "storage", "resources", "config"] {
                let from = fixtures.join(format!("{name}-{release}.json"));
                fs::copy(from, node.path("state").join(name)).unwrap();
            }
            let roles = fs::read_to_string(fixtures.join(format!("roles-{release}.jsonl"))).unwrap();
            let built_in: String = roles
                .split_inclusive('\n')
                .filter(|line| line.contains("\"special\":1"))
                .collect();
            node.set("roles", &built_in);
            for name in ["pools", "tokens", "acl", "calls", "crash"] {
                node.set(name, "");
            }
            node.set("users", "{\"userid\":\"root@pam\",\"enable\":1}\n");
            node.set("changes", "0\n");
            for name in ["pvesh", "pveum", "agentlab-net", "agentlabd"] {
                let to = node.path("bin").join(name);
                // By a child: while another test begins a process, that may hold open what this process writes, and
                // what is open for writing cannot be run.
                let installed = Command::new("install")
                    .args([&fixtures.join("stand-in"), &to])
                    .status();
                assert!(installed.unwrap().success());
            }
            fs::hard_link(env!("CARGO_BIN_EXE_agentlab"), node.path("bin").join("agentlab")).unwrap();
            let (profiles, data) = (node.path("profiles"), node.path("state"));
            let paths = format!(
                "profiles_dir: {}\ndata_dir: {}\n",
                profiles.display(),
                data.display()
            );
            fs::write(node.path("config.yaml"), format!("{BEFORE}{paths}")).unwrap();
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn set(&self, name: &str, text: &str) {
            fs::write(self.path("state").join(name), text).unwrap();
        }

        fn get(&self, name: &str) -> String {
            fs::read_to_string(self.path("state").join(name)).unwrap()
        }

        fn config(&self) -> String {
            fs::read_to_string(self.path("config.yaml")).unwrap()
        }

        fn changes(&self) -> u32 {
            self.get("changes").trim().parse().unwrap()
        }

        fn run(&self, arguments: &[&str]) -> Ran {
            let output = Command::new(self.path("bin").join("agentlab"))
                .args(arguments)
                .arg("--config")
                .arg(self.path("config.yaml"))
                .env("AGENTLAB_SOCKET", self.path("socket"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
                .wait_with_output()
                .unwrap();
            Ran {
                code: output.status.code(),
                signal: output.status.signal(),
                stdout: String::from_utf8(output.stdout).unwrap(),
                stderr: String::from_utf8(output.stderr).unwrap(),
            }
        }

        /// There is one token, whose secret is stored.
        fn assert_token(&self, context: &str) {
            let config = self.config();
            let stored = format!("proxmox_api_token: \"{}\"", self.get("secret").trim());
            assert!(
                config.lines().any(|line| line == stored),
                "{context}: {}",
                self.get("tokens")
            );
            assert_eq!(self.get("tokens").lines().count(), 1, "{context}");
            assert!(!self.get("tokens").contains("not stored"), "{context}");
        }

        /// Everything is as `init --apply` leaves it.
        fn assert_ready(&self, context: &str) {
            self.assert_token(context);
            let seen = self.run(&["init", "--json"]);
            let document: Value = serde_json::from_str(&seen.stdout).unwrap();
            assert_eq!(document["missing"], serde_json::json!([]), "{context}");
            assert_eq!(document["refused"], serde_json::json!([]), "{context}");
            assert_eq!(
                (document["ready"].clone(), seen.code),
                (Value::Bool(true), Some(0)),
                "{context}: {}",
                seen.stdout
            );
        }
    }

    #[test]
    fn without_apply_everything_is_said_and_nothing_is_changed() {
        for release in ["8", "9"] {
            let node = Node::bare(release);
            let before = node.config();
            let ran = node.run(&["init"]);
            assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
            assert_eq!((node.changes(), node.config()), (0, before));
            for words in [
                "Proxmox VE",
                "pveum pool add agentlab --comment 'AgentLab sandboxes'",
                "pveum acl modify /sdn/zones/localnetwork/vmbr0 --roles AgentLabNet",
                "pveum acl modify /sdn/zones/localnetwork/vmbr1 --roles AgentLabNet",
                "pveum acl modify /storage/local --roles AgentLabStore --users agentlab@pve",
                &format!("--tokens 'agentlab@pve!daemon-pve{release}'"),
                "9000 tmpl is a template on local",
            ] {
                assert!(ran.stdout.contains(words), "{words} is not in {}", ran.stdout);
            }
        }
    }

    #[test]
    fn apply_makes_it_so_once_and_shows_the_secret_to_nobody() {
        for release in ["8", "9"] {
            let node = Node::bare(release);
            let ran = node.run(&["init", "--apply"]);
            assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
            let config = node.config();
            assert!(config.starts_with(BEFORE), "{config}");
            assert!(config.contains("proxmox_tls_fingerprint: \""), "{config}");
            assert!(
                config.contains(&format!("proxmox_node: \"pve{release}\"")),
                "{config}"
            );
            let mode = fs::metadata(node.path("config.yaml"))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o600);
            let secret = node.get("secret");
            let (_, secret) = secret.trim().split_once('=').unwrap();
            for said in [&ran.stdout, &ran.stderr, &node.get("calls")] {
                assert!(!said.contains(secret), "{said}");
            }
            node.assert_ready(release);
            let changes = node.changes();
            fs::set_permissions(node.path("config.yaml"), fs::Permissions::from_mode(0o644)).unwrap();
            let open = node.run(&["init"]);
            assert!(
                open.code == Some(1) && open.stdout.contains("chmod 0600"),
                "{}",
                open.stdout
            );
            fs::set_permissions(node.path("config.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
            let again = node.run(&["init", "--apply", "--json"]);
            assert_eq!(
                (again.code, node.changes()),
                (Some(0), changes),
                "{}",
                again.stderr
            );
            assert_eq!(node.config(), config);
        }
    }

    #[test]
    fn killed_at_any_step_it_ends_the_same_the_next_time() {
        let whole = Node::bare("8");
        assert_eq!(whole.run(&["init", "--apply"]).code, Some(0));
        let calls = whole.get("calls");
        let last = whole.changes();
        assert!(last > 10, "{calls}");
        for crash in (1..=last)
            .map(|number| format!("after {number}"))
            .chain(["before 7".to_owned()])
        {
            let node = Node::bare("8");
            node.set("crash", &crash);
            assert_eq!(node.run(&["init", "--apply"]).signal, Some(9), "{crash}");
            node.set("crash", "");
            let ran = node.run(&["init", "--apply"]);
            assert_eq!(ran.code, Some(0), "{crash}: {}{}", ran.stdout, ran.stderr);
            // It ended with 0, so it found nothing missing when it looked again.
            node.assert_token(&crash);
        }
    }

    #[test]
    fn a_token_is_replaced_when_asked_and_only_then() {
        let node = Node::bare("9");
        assert_eq!(node.run(&["init", "--apply"]).code, Some(0));
        let first = node.get("secret");
        fs::write(
            node.path("config.yaml"),
            node.config().replace("proxmox_api_token:", "#"),
        )
        .unwrap();
        let changes = node.changes();
        let ran = node.run(&["init", "--apply"]);
        assert_eq!((ran.code, node.changes()), (Some(1), changes), "{}", ran.stdout);
        assert!(
            ran.stdout.contains("PVE says a secret only once"),
            "{}",
            ran.stdout
        );
        assert!(ran.stderr.contains("--rotate"), "{}", ran.stderr);
        assert_eq!(node.run(&["init", "--apply", "--rotate"]).code, Some(0));
        assert_ne!(node.get("secret"), first);
        node.assert_ready("after rotation");
    }

    #[test]
    fn a_storage_named_for_workspaces_is_remembered_by_its_grant() {
        let node = Node::bare("8");
        let ran = node.run(&["init", "--apply", "--volume-storage", "labdir"]);
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
        assert!(
            node.config().contains("proxmox_storage: \"labdir\""),
            "{}",
            node.config()
        );
        assert!(
            node.get("acl")
                .contains("\"path\":\"/storage/labdir\",\"propagate\":1,\"roleid\":\"AgentLabVolumes\"")
        );
        node.assert_ready("without naming it again");
    }

    #[test]
    fn what_stands_in_the_way_is_named_before_anything_is_done() {
        let foreign = "{\"privs\":\"Sys.Modify,VM.Audit\",\"roleid\":\"AgentLab\",\"special\":0}\n";
        let node = Node::bare("8");
        node.set("roles", &format!("{}{foreign}", node.get("roles")));
        let ran = node.run(&["init", "--apply"]);
        assert_eq!((ran.code, node.changes()), (Some(1), 0), "{}", ran.stderr);
        assert!(
            ran.stdout.contains("role AgentLab is there and not ours"),
            "{}",
            ran.stdout
        );

        let node = Node::bare("8");
        fs::write(node.path("config.yaml"), "backend: qemu\n").unwrap();
        let ran = node.run(&["init", "--apply"]);
        assert_eq!((ran.code, node.changes()), (Some(5), 0), "{}", ran.stdout);
        assert!(ran.stderr.contains("backend: proxmox"), "{}", ran.stderr);

        let node = Node::bare("8");
        // The last key that is written could not be.
        fs::write(node.path("config.yaml"), "proxmox_node: &x other\n").unwrap();
        let ran = node.run(&["init", "--apply"]);
        assert_eq!(node.changes(), 0, "{}{}", ran.stdout, ran.stderr);
    }

    #[test]
    fn elsewhere_it_says_what_it_looked_for() {
        let node = Node::bare("8");
        fs::remove_file(node.path("bin/pvesh")).unwrap();
        let ran = node.run(&["init", "--apply"]);
        assert_eq!(ran.code, Some(5));
        assert!(
            ran.stderr.contains("`pvesh` is neither in PATH nor in"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("agentlab doctor"), "{}", ran.stderr);
    }

    impl Node {
        /// What the API says to the token: its privileges, and how probes end.
        fn answers(&self, permissions: &Value, probe: u16) {
            let said = |status: u16, data: &Value| json!({ "status": status, "reason": "x", "data": data });
            let list = json!([]);
            let first = [
                said(200, &json!({ "version": "8.4.21" })),
                said(200, permissions),
                said(403, &Value::Null),
                said(200, &list),
            ];
            let token = "agentlab@pve!daemon-pve8";
            let whole = |answers: &[Value]| json!({ "token": token, "answers": answers, "clock_ahead": 0 });
            self.set("asked", &whole(&first).to_string());
            self.set("probed", &whole(&vec![said(probe, &Value::Null); 11]).to_string());
        }

        fn doctor(&self) -> (Option<i32>, Vec<(String, String, String)>) {
            let ran = self.run(&["doctor", "--json"]);
            let document: Value = serde_json::from_str(&ran.stdout).unwrap();
            let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let rows = document["checks"].as_array().unwrap();
            let rows = rows.iter().map(|row| {
                let seen = format!("{} -> {}", text(row, "seen"), text(row, "next"));
                (text(row, "check"), text(row, "state"), seen)
            });
            (ran.code, rows.collect())
        }
    }

    #[test]
    fn doctor_passes_a_node_that_is_well_and_names_what_is_not() {
        let node = Node::bare("8");
        assert_eq!(node.run(&["init", "--apply"]).code, Some(0));
        idle_daemon(&node.path("socket"), "8.4.21").unwrap();
        node.set("firewall", "{}");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/permissions-8.json");
        let mut permissions: Value = serde_json::from_str(&fs::read_to_string(fixtures).unwrap()).unwrap();
        permissions["/pool/agentlab"]["VM.Config.HWType"] = json!(1);
        permissions["/vms/9999"] = permissions["/vms/777"].take();
        permissions["/sdn/zones/localnetwork/vmbr1"] = json!({ "SDN.Use": 1 });
        permissions.as_object_mut().unwrap().remove("/vms/777");
        node.answers(&permissions, 403);
        let (code, rows) = node.doctor();
        assert_eq!(code, Some(0), "{rows:#?}");
        for check in [
            "token",
            "privileges",
            "surplus",
            "reach",
            "quorum",
            "template",
            "storage",
            "left over",
            "numbers",
        ] {
            let mut of_check = rows.iter().filter(|(name, ..)| name == check).peekable();
            assert!(of_check.peek().is_some(), "{check} is not in {rows:#?}");
            assert!(of_check.all(|(_, state, _)| state == "ok"), "{rows:#?}");
        }

        // A machine of ours that nobody knows, under PVE's firewall, with its memory in a snapshot; and a token too many.
        let machine =
            "{\"id\":\"qemu/1003\",\"node\":\"pve8\",\"pool\":\"agentlab\",\"type\":\"qemu\",\"vmid\":1003}";
        node.set(
            "resources",
            &node.get("resources").replace(']', &format!(",{machine}]")),
        );
        node.set("machine", "{\"net0\":\"virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1\",\"smbios1\":\"uuid=1,base64=1,serial=YQ==\"}");
        node.set(
            "snapshots",
            "[{\"name\":\"live\",\"vmstate\":1},{\"name\":\"current\"}]",
        );
        node.set("firewall", "{\"enable\":1}");
        node.set("status", "[{\"type\":\"cluster\",\"quorate\":0,\"name\":\"c\"},{\"type\":\"node\",\"local\":1,\"name\":\"pve8\"}]");
        permissions["/"] = json!({ "Sys.Modify": 1 });
        permissions["/storage/local"]
            .as_object_mut()
            .unwrap()
            .remove("Datastore.AllocateSpace");
        node.answers(&permissions, 400);
        let (code, rows) = node.doctor();
        assert_eq!(code, Some(1), "{rows:#?}");
        for (check, state, words) in [
            ("quorum", "fail", "no quorum"),
            (
                "pve-firewall",
                "warn",
                "/nodes/pve8/firewall/rules --type in --action ACCEPT --iface vmbr1",
            ),
            ("left over", "warn", "1003 has a seed in SMBIOS"),
            ("fwbr", "fail", "firewall=1 on net0"),
            ("snapshots", "fail", "qm delsnapshot 1003 live"),
            (
                "privileges",
                "fail",
                "lacks Datastore.AllocateSpace on /storage/local",
            ),
            ("surplus", "warn", "on /: Sys.Modify"),
            ("reach", "fail", "daemon-pve8 may make roles"),
        ] {
            let is_said =
                |row: &(String, String, String)| row.0 == check && row.1 == state && row.2.contains(words);
            assert!(
                rows.iter().any(is_said),
                "{check} {state} {words} is not in {rows:#?}"
            );
        }
    }
}
