//! What an image does not do at boot, and what it starts instead.
//!
//! ```text
//!   systemd ─► agentlab.target ─┬─ agent-runner.service   at once, waits for nothing
//!                               ├─ basic.target           journal, sysctl, tmpfiles; what is masked below is not
//!                               └─ multi-user.target      services that the recipe's packages brought
//! ```
//!
//! Every process that a boot forks costs 50 to 100 ms on an emulated processor, so that a stock boot takes half a
//! minute. Nothing here weakens the guest for its agent: the machine lives for one job, has one user and no console
//! to log in at, and its hardware is known.

use crate::fingerprint::Fingerprint;

/// Where the runner is in the guest.
pub const RUNNER_PATH: &str = "/usr/lib/agentlab/agent-runner";
/// The runner's unit.
pub const RUNNER_UNIT: &str = "agent-runner.service";
/// What the machine boots into.
pub const TARGET: &str = "agentlab.target";

/// Units linked to `/dev/null`.
pub const MASKED_UNITS: [&str; 72] = [
    // Nobody sits at a console.
    "autovt@.service",
    "console-getty.service",
    "getty-static.service",
    "getty.target",
    "getty@.service",
    "serial-getty@.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-bsod.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
    // A machine that lives for hours has no housekeeping.
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "man-db.timer",
    "systemd-tmpfiles-clean.timer",
    // Nothing to commit, migrate or rebuild: the image is as its builder left it.
    "ldconfig.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-machine-id-commit.service",
    "systemd-sysusers.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-boot-random-seed.service",
    // virtio-rng and vmgenid give entropy; a seed file would be the same in every clone.
    "systemd-random-seed.service",
    // Hardware that is not there.
    "systemd-battery-check.service",
    "systemd-hibernate-clear.service",
    "systemd-pcrmachine.service",
    "systemd-pcrphase-initrd.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-rfkill.socket",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    "systemd-pcrextend.socket",
    "systemd-pcrlock.socket",
    // The initrd mounted the disk and /tmp, and loaded the drivers; devtmpfs makes the nodes, of disks plugged in
    // later too. A recipe that wants udev's links and rules keeps the four units of it.
    "systemd-fsck-root.service",
    "systemd-remount-fs.service",
    "kmod-static-nodes.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-trigger.service",
    "systemd-udev-settle.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-udev-load-credentials.service",
    // File systems that an agent's work does not need before it asks for them.
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "run-lock.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    // The runner sets address and hostname.
    "networking.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-network-generator.service",
    "systemd-hostnamed.socket",
    "systemd-creds.socket",
    "systemd-sysext.socket",
];

/// Generators linked to `/dev/null`: each would be a process before the first unit starts.
pub const MASKED_GENERATORS: [&str; 15] = [
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
];

/// The runner's unit. It depends on nothing: PID 1 has mounted /run, and the initrd everything else. A runner that
/// gives up has used up its token and is not started again; one that is killed goes on from what it kept in memory. The
/// agent's processes are ended with it. `OOMPolicy=continue` because
/// an agent that eats all memory must end itself and not the runner that reports it.
pub const RUNNER_SERVICE: &str = "\
[Unit]
Description=AgentLab runner
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target basic.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=simple
ExecStart=/usr/lib/agentlab/agent-runner
Restart=on-abnormal
RestartSec=200ms
KillMode=mixed
TimeoutStopSec=10
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=524288
StandardOutput=journal+console
StandardError=journal+console
";

/// What the machine boots into.
pub const TARGET_UNIT: &str = "\
[Unit]
Description=AgentLab sandbox
Requires=basic.target
Wants=agent-runner.service multi-user.target
After=basic.target
AllowIsolate=yes
";

/// Small files, as `(path, text)`.
pub const FILES: [(&str, &str); 8] = [
    (
        "/etc/systemd/journald.conf.d/agentlab.conf",
        "# The disk is thrown away with the machine; writing to it twice would only be slower.\n\
         [Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nAudit=no\n",
    ),
    (
        "/etc/systemd/system.conf.d/agentlab.conf",
        "[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=60s\n",
    ),
    // pam_nologin would wait for systemd-user-sessions.service.
    ("/etc/tmpfiles.d/systemd-nologin.conf", ""),
    (
        "/etc/systemd/system/systemd-growfs-root.service.d/agentlab.conf",
        "# The initrd leaves this mark when the disk is larger than the template's.\n\
         [Unit]\nConditionPathExists=/run/agentlab-grow\n",
    ),
    ("/etc/fstab", "# The initrd mounts the disk and /tmp.\n"),
    ("/etc/hostname", "agentlab\n"),
    (
        "/etc/hosts",
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    ),
    ("/etc/resolv.conf", "# The runner names the DNS server here.\n"),
];

/// What starts the runner in an image that somebody else made.
pub const FOREIGN_TARGET: &str = "multi-user.target";

/// Files that go into an image that somebody else made, as `(path, text)`.
pub const FOREIGN_FILES: [(&str, &str); 3] = [
    (
        "/etc/systemd/system/agent-runner.service.d/image.conf",
        "# The image's own initrd leaves the root file system read-only.\n\
         [Unit]\nAfter=systemd-remount-fs.service local-fs.target\n",
    ),
    (
        "/etc/systemd/network/00-agentlab.network",
        "# The runner sets the address.\n[Match]\nDriver=virtio_net\n\n[Link]\nUnmanaged=yes\n",
    ),
    (
        "/etc/cloud/cloud.cfg.d/99-agentlab.cfg",
        "# The runner sets the address, and nothing is upgraded behind the agent's back.\n\
         network: {config: disabled}\npackage_upgrade: false\n",
    ),
];

/// Hash of all of it.
#[must_use]
pub fn digest() -> String {
    let start = Fingerprint::of("tuning")
        .with_all("masked units", &MASKED_UNITS)
        .with_all("masked generators", &MASKED_GENERATORS)
        .with("runner", RUNNER_SERVICE.as_bytes())
        .with("target", TARGET_UNIT.as_bytes());
    FILES
        .iter()
        .chain(&FOREIGN_FILES)
        .fold(start, |print, (path, text)| print.with(path, text.as_bytes()))
        .finish()
}
