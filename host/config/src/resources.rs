//! `resources:` of a profile: what is a size, and what the back end can bound.

use agentlab_api::{Profile, Resources};

use crate::BackendKind;

type Range = (Vec<&'static str>, String);

/// Values that no back end takes.
pub(crate) fn faults(profile: &Profile) -> Vec<Range> {
    let Resources {
        cores,
        memory_mb,
        cpu_limit_percent,
        cpulist,
        balloon,
    } = &profile.resources;
    let mut faults = Vec::new();
    let mut between = |key: &'static str, value: u64, least: u64, most: u64| {
        if !(least..=most).contains(&value) {
            let reason = format!("is {value}, and must be from {least} to {most}");
            faults.push((vec!["resources", key], reason));
        }
    };
    between("cores", u64::from(*cores), 1, 128);
    between("memory_mb", u64::from(*memory_mb), 256, 4 << 20);
    if let Some(percent) = cpu_limit_percent {
        // More than its processors could use would bound nothing.
        let most = u64::from(*cores).clamp(1, 128) * 100;
        between("cpu_limit_percent", u64::from(*percent), 5, most);
    }
    if let Some(least) = balloon {
        between("balloon", u64::from(*least), 256, u64::from(*memory_mb).max(256));
    }
    if let Some(reason) = cpulist.as_deref().and_then(|list| wrong_list(list, *cores)) {
        faults.push((vec!["resources", "cpulist"], reason));
    }
    faults
}

/// What is wrong with a list such as `0-3,8`.
fn wrong_list(list: &str, cores: u16) -> Option<String> {
    let shown: String = list.escape_debug().take(80).collect();
    let mut count = 0;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => count += last - first + 1,
            _ => {
                return Some(format!(
                    "is `{shown}`, and must list processors of the host, such as 0-3,8"
                ));
            }
        }
    }
    (count < u32::from(cores)).then(|| {
        format!("is `{shown}`, {count} processors of the host for the {cores} that `cores` asks for")
    })
}

/// At most four digits, and nothing else.
fn number(text: &str) -> Option<u32> {
    let fits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

/// The first key that a back end would not enforce, with the reason.
pub(crate) fn unenforced(resources: &Resources, backend: BackendKind) -> Option<String> {
    let given = [
        ("cpulist", resources.cpulist.is_some()),
        ("cpu_limit_percent", resources.cpu_limit_percent.is_some()),
        ("balloon", resources.balloon.is_some()),
    ];
    let mut given = given
        .into_iter()
        .filter(|(_, is_given)| *is_given)
        .map(|(key, _)| key);
    match backend {
        BackendKind::Shell => None,
        // A token of root@pam is not root@pam either.
        BackendKind::Proxmox => given.find(|key| *key == "cpulist").map(|key| {
            format!(
                "asks for `resources.{key}`, which cannot be enforced: Proxmox VE lets nobody but root@pam itself pin \
                 processors, and no API token; leave it out, or use `backend: shell` on the node"
            )
        }),
        BackendKind::Qemu => given.next().map(|key| {
            format!(
                "asks for `resources.{key}`, which cannot be enforced with `backend: qemu`; leave it out, or lower \
                 `resources.cores`"
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_profiles;

    fn said(lines: &str) -> String {
        let text = format!("name: a\ntemplate_vmid: 9000\nresources:\n{lines}");
        match parse_profiles(&text, "p.yaml") {
            Ok(_) => String::new(),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_bound_that_bounds_nothing_and_a_list_that_is_none_are_refused() {
        assert_eq!(
            said("  cores: 4\n  cpu_limit_percent: 150\n  cpulist: 0-2,8\n  balloon: 512\n"),
            ""
        );
        for (line, reason) in [
            ("  cpu_limit_percent: 201\n", "must be from 5 to 200"),
            ("  cpu_limit_percent: 0\n", "must be from 5 to 200"),
            ("  balloon: 4096\n", "must be from 256 to 2048"),
            ("  cpulist: \"3\"\n", "1 processors of the host for the 2"),
            ("  cpulist: 3-1\n", "must list processors"),
            ("  cpulist: 0,,1\n", "must list processors"),
            ("  cpulist: \"0-1 --args x\"\n", "must list processors"),
            ("  cpulist: 0-99999\n", "must list processors"),
        ] {
            let said = said(line);
            assert!(said.contains(reason), "{line}: {said}");
        }
    }

    #[test]
    fn what_a_back_end_does_not_enforce_is_refused_with_what_to_do() {
        let mut resources = Resources::default();
        for backend in [BackendKind::Qemu, BackendKind::Proxmox, BackendKind::Shell] {
            assert_eq!(unenforced(&resources, backend), None);
        }
        resources.cpu_limit_percent = Some(150);
        assert_eq!(unenforced(&resources, BackendKind::Proxmox), None);
        assert!(
            unenforced(&resources, BackendKind::Qemu).is_some_and(|said| said.contains("cpu_limit_percent"))
        );
        resources.cpulist = Some("0-1".into());
        assert_eq!(unenforced(&resources, BackendKind::Shell), None);
        assert!(unenforced(&resources, BackendKind::Proxmox).is_some_and(|said| said.contains("root@pam")));
    }
}
