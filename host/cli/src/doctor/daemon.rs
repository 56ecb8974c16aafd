//! What the daemon says of itself, over its socket.

use agentlab_api::StatusView;
use agentlab_client::ClientError;
use agentlab_config::BackendKind;

use super::row::Row;
use crate::output::{in_trouble, size};

/// Less is soon used up by a single job.
const LITTLE_ROOM: u64 = 5 << 30;

pub(crate) fn rows(status: &Result<StatusView, ClientError>, wanted: BackendKind) -> Vec<Row> {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let next = error
                .hint()
                .unwrap_or_else(|| "systemctl status agentlabd".to_owned());
            return vec![Row::fail("daemon", error.to_string(), next)];
        }
    };
    let mut rows = vec![Row::ok("daemon", format!("agentlabd {}", status.version))];
    let backend = &status.backend;
    let expected = match wanted {
        BackendKind::Qemu => "qemu",
        BackendKind::Proxmox => "proxmox",
        BackendKind::Shell => "shell",
    };
    if let Some(trouble) = &backend.trouble {
        let next = "is the node up, its API reachable, its cluster quorate (`pvecm status`)? Nothing is concluded meanwhile";
        rows.push(Row::fail("back end", in_trouble(trouble), next));
    } else if backend.kind == expected {
        rows.push(Row::ok(
            "back end",
            format!("{} {}", backend.kind, backend.version),
        ));
    } else {
        rows.push(Row::warn(
            "back end",
            format!(
                "the daemon runs with {}, and config.yaml says {expected}",
                backend.kind
            ),
            "systemctl restart agentlabd",
        ));
    }
    if wanted == BackendKind::Qemu {
        rows.extend(accelerator(status));
        rows.push(templates(status));
    }
    let free = format!("{} free for artifacts", size(status.artifact_free_bytes));
    rows.push(if status.artifact_free_bytes < LITTLE_ROOM {
        Row::warn(
            "room",
            free,
            "make room where `artifact_dir` is; uploads stop at `artifact_disk_floor_bytes`",
        )
    } else {
        Row::ok("room", free)
    });
    rows.extend(
        status
            .alarms
            .iter()
            .map(|alarm| Row::fail("alarm", alarm.clone(), "journalctl -u agentlabd")),
    );
    rows
}

fn accelerator(status: &StatusView) -> Option<Row> {
    let name = status.backend.accelerator.as_ref()?;
    let reason = status.backend.accelerator_reason.clone();
    Some(match (name.as_str(), reason) {
        ("kvm", _) => Row::ok("kvm", "guests run under it"),
        (_, Some(reason)) => Row::warn(
            "kvm",
            format!("guests are translated ({name}), which is slow: {reason}"),
            "switch virtualisation on in the firmware, or nesting on in the hypervisor around this host",
        ),
        (_, None) => Row::ok("kvm", format!("{name}, as config.yaml says")),
    })
}

fn templates(status: &StatusView) -> Row {
    let names: Vec<String> = status
        .backend
        .templates
        .iter()
        .map(|one| format!("{} {} (runner {})", one.vmid, one.name, one.runner_version))
        .collect();
    if names.is_empty() {
        Row::fail("template", "there is none", "agentlab template build demo")
    } else {
        Row::ok("template", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use agentlab_api::{BackendStatus, TemplateView};

    use super::*;
    use crate::doctor::State;

    fn status(accelerator: Option<&str>, templates: Vec<TemplateView>) -> StatusView {
        StatusView {
            version: "0.1.0".to_owned(),
            started_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            backend: BackendStatus {
                kind: "qemu".to_owned(),
                version: "7.2".to_owned(),
                accelerator: accelerator.map(str::to_owned),
                accelerator_reason: Some("a probe VM did not run under KVM".to_owned()),
                templates,
                trouble: None,
            },
            sandboxes: std::collections::BTreeMap::new(),
            jobs: std::collections::BTreeMap::new(),
            artifact_free_bytes: 1 << 30,
            live_tokens: 0,
            alarms: vec!["something is wrong".to_owned()],
        }
    }

    fn state(rows: &[Row], check: &str) -> State {
        rows.iter().find(|row| row.check == check).unwrap().state
    }

    #[test]
    fn a_host_with_qemu_is_judged_by_what_its_daemon_found_out() {
        let rows = rows(&Ok(status(Some("tcg"), Vec::new())), BackendKind::Qemu);
        for (check, expected) in [
            ("daemon", State::Ok),
            ("back end", State::Ok),
            ("kvm", State::Warn),
            ("template", State::Fail),
            ("room", State::Warn),
            ("alarm", State::Fail),
        ] {
            assert_eq!(state(&rows, check), expected, "{check}");
        }
        let template = TemplateView {
            name: "demo".to_owned(),
            vmid: 9000.try_into().unwrap(),
            id: "00".to_owned(),
            runner_version: "0.1.0".to_owned(),
        };
        let well = super::rows(&Ok(status(Some("kvm"), vec![template])), BackendKind::Qemu);
        assert_eq!(
            (state(&well, "kvm"), state(&well, "template")),
            (State::Ok, State::Ok)
        );
        // It still runs with what config.yaml said before.
        let stale = super::rows(&Ok(status(Some("kvm"), Vec::new())), BackendKind::Proxmox);
        assert_eq!(state(&stale, "back end"), State::Warn);
        assert!(stale.iter().all(|row| row.check != "template"));
    }
}
