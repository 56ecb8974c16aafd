//! What the agent sees of its own machine: the arguments of bubblewrap.
//!
//! | | `bubblewrap` | `hardened` |
//! |---|---|---|
//! | file system | read-only | read-only, without what belongs to others: `/root`, `/home`, `/srv`, logs, sudo's files |
//! | `/work` | writable | the repository and `artifacts` are |
//! | home | writable | writable, but for `.ssh`: a key there would let the agent log in to its own machine, out of here |
//! | `/tmp`, `/var/tmp` | writable, the machine's | writable, its own |
//! | `/run` | empty but for the secrets, read-only, and the resolver's files | empty but for the secrets |
//! | processes, IPC, host name | its own | its own |
//!
//! The documents' sandbox gives `/run` as it is; the sockets of the whole system are there, so neither of these does.

use std::path::Path;

use super::Layout;

/// What surrounds the agent within its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerSandbox {
    /// Nothing.
    None,
    /// The documents' sandbox.
    Bubblewrap,
    /// The same without what belongs to others.
    Hardened,
}

impl InnerSandbox {
    /// The word of a report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bubblewrap => "bubblewrap",
            Self::Hardened => "hardened",
        }
    }
}

const OWN_NAMES: &str =
    "--die-with-parent --new-session --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup-try";
const READ_ONLY: &str = "--ro-bind / / --proc /proc --dev /dev --perms 1777 --tmpfs /dev/shm --tmpfs /run";
/// What is left to root inside is what setpriv needs to stop being root.
const FEW_RIGHTS: &str = "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --chdir";
/// Directories a task has no business in.
const FOREIGN: &[&str] = &[
    "/boot",
    "/home",
    "/media",
    "/mnt",
    "/root",
    "/srv",
    "/etc/agentlab",
    "/etc/ssh",
    "/etc/sudoers.d",
    "/var/backups",
    "/var/log",
    "/var/mail",
    "/var/spool",
];
/// Ways to become somebody else. They would not work, for want of privileges; they are not there to be tried either.
const OTHER_USERS: &[&str] = &[
    "/etc/sudo.conf",
    "/etc/sudoers",
    "/usr/bin/pkexec",
    "/usr/bin/su",
    "/usr/bin/sudo",
];

/// Arguments of bubblewrap up to the program. `extra` stands last, so that an operator has the last word.
#[must_use]
pub fn arguments(kind: InnerSandbox, layout: &Layout, extra: &[String]) -> Vec<String> {
    let mut arguments = Vec::new();
    let words = |arguments: &mut Vec<String>, text: &str| {
        arguments.extend(text.split(' ').map(str::to_owned));
    };
    words(&mut arguments, OWN_NAMES);
    words(&mut arguments, READ_ONLY);
    let (repo, artifacts) = (layout.repo(), layout.artifacts());
    let home = layout.user.home.as_path();
    let writable: &[&Path] = if kind == InnerSandbox::Hardened {
        for path in FOREIGN.iter().filter(|path| Path::new(path).is_dir()) {
            words(&mut arguments, "--perms 0755 --tmpfs");
            arguments.push((*path).to_owned());
        }
        for path in OTHER_USERS.iter().filter(|path| Path::new(path).is_file()) {
            words(&mut arguments, "--ro-bind /dev/null");
            arguments.push((*path).to_owned());
        }
        words(
            &mut arguments,
            "--perms 1777 --tmpfs /tmp --perms 1777 --tmpfs /var/tmp",
        );
        // Directories that a bind needs on its way are made for root alone, unless they are there.
        for path in [repo.as_path(), &artifacts, home, &layout.run] {
            let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
            above.reverse();
            for directory in above.iter().skip(1) {
                words(&mut arguments, "--perms 0755 --dir");
                arguments.push(directory.display().to_string());
            }
        }
        &[&repo, &artifacts, home]
    } else {
        for path in ["/run/systemd/resolve", "/run/resolvconf"] {
            arguments.extend(["--ro-bind-try", path, path].map(str::to_owned));
        }
        words(&mut arguments, "--bind /tmp /tmp --bind /var/tmp /var/tmp");
        &[&layout.work, home]
    };
    for (option, paths) in [("--bind", writable), ("--ro-bind", &[layout.run.as_path()])] {
        for path in paths {
            let path = path.display().to_string();
            arguments.extend([option, &path, &path].map(str::to_owned));
        }
    }
    if kind == InnerSandbox::Hardened {
        words(&mut arguments, "--perms 0755 --tmpfs");
        arguments.push(home.join(".ssh").display().to_string());
    }
    words(&mut arguments, FEW_RIGHTS);
    arguments.push(repo.display().to_string());
    arguments.extend(extra.iter().cloned());
    arguments
}

/// Whether the template's own settings switch the inner sandbox off: `AGENTLAB_INNER_SANDBOX=0` there is the way out
/// when it does not work on some kernel, without touching a profile.
pub(crate) fn switched_off(settings: &str) -> bool {
    settings
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("export ").split_once('='))
        .rfind(|(name, _)| name.trim() == "AGENTLAB_INNER_SANDBOX")
        .is_some_and(|(_, value)| {
            let value = value.trim().trim_matches(['"', '\'']);
            matches!(value, "0" | "off" | "none" | "false" | "disabled" | "no")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_switches_the_sandbox_off_with_the_documented_line_only() {
        for text in [
            "AGENTLAB_INNER_SANDBOX=0",
            "# x\nAGENTLAB_INNER_SANDBOX=1\nexport AGENTLAB_INNER_SANDBOX=\"off\"\n",
            " AGENTLAB_INNER_SANDBOX = 0 ",
        ] {
            assert!(switched_off(text), "{text:?}");
        }
        for text in [
            "",
            "AGENTLAB_INNER_SANDBOX=1",
            "#AGENTLAB_INNER_SANDBOX=0",
            "AGENTLAB_INNER_SANDBOX=0\nAGENTLAB_INNER_SANDBOX=bubblewrap",
            "AGENTLAB_INNER_SANDBOX_ARGS=0",
        ] {
            assert!(!switched_off(text), "{text:?}");
        }
    }

    #[test]
    fn what_an_operator_adds_stands_last_and_a_hardened_sandbox_shares_no_directory_for_all() {
        let layout = Layout::default();
        let extra = ["--bind".to_owned(), "/scratch".to_owned(), "/scratch".to_owned()];
        let plain = arguments(InnerSandbox::Bubblewrap, &layout, &extra);
        assert!(plain.ends_with(&extra));
        let text = arguments(InnerSandbox::Hardened, &layout, &[]).join(" ");
        assert!(
            text.contains("--tmpfs /tmp") && !text.contains("--bind /tmp"),
            "{text}"
        );
        assert!(text.contains("--bind /work/repo /work/repo") && !text.contains("--bind /work /work"));
    }
}
