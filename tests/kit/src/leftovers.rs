//! Everything that must be gone when a sandbox is.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::Namespace;

/// Names what is left of any sandbox: processes, taps, bindings, overlays, seeds.
pub(crate) fn find(namespace: &Namespace, dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    left.extend(
        qemu_processes(dir)
            .into_iter()
            .map(|pid| format!("QEMU process {pid}")),
    );
    let links = namespace.output("ip", &["-brief", "link"])?;
    left.extend(
        links
            .lines()
            .filter(|line| line.starts_with("tap"))
            .map(|line| format!("link {line}")),
    );
    let rules = namespace.output("nft", &["list", "ruleset"])?;
    let bound = |line: &&str| line.contains("\"tap1") || line.contains(" tap1");
    left.extend(
        rules
            .lines()
            .filter(bound)
            .map(|line| format!("policy: {}", line.trim())),
    );
    left.extend(
        files_below(dir)
            .into_iter()
            .filter(|path| is_of_a_machine(path))
            .map(|path| path.display().to_string()),
    );
    Ok(left)
}

fn is_of_a_machine(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    path.extension().is_some_and(|extension| extension == "qcow2")
        || name.starts_with("seed")
        || name == "machine.json"
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path()),
            Ok(_) | Err(_) => vec![entry.path()],
        })
        .collect()
}

/// QEMU processes with a descriptor below a directory.
pub(crate) fn qemu_processes(dir: &Path) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
        .filter(|pid| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.to_string_lossy().contains("qemu-system") && holds_file_below(*pid, dir)
        })
        .collect()
}

fn holds_file_below(pid: u32, dir: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(dir)))
}
