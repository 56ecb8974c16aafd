//! Kernels without what the policy needs, as far as a running one can be made to look like it.

#[cfg(test)]
#[path = "command/requirement.rs"]
mod requirement;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use agentlab_netpolicy::{BridgeSpec, Enforcer, GuestPort, HostPolicy, Trust, USUAL_DENIAL_GROUP};
    use nix::sched::{CloneFlags, unshare};

    use crate::requirement::skipped;

    /// A filter of system calls as bubblewrap loads it: whoever asks for netfilter's netlink protocol gets the answer of
    /// a kernel that has none.
    fn without_netfilter() -> Vec<u8> {
        let socket = u32::try_from(nix::libc::SYS_socket).unwrap();
        let (load, equal, answer) = (0x20_u16, 0x15_u16, 0x06_u16);
        let refused = 0x0005_0000 | nix::libc::EPROTONOSUPPORT.cast_unsigned();
        // The number of the call, then its first and its third argument.
        [
            (load, 0, 0, 0),
            (equal, 0, 5, socket),
            (load, 0, 0, 16),
            (equal, 0, 3, nix::libc::AF_NETLINK.cast_unsigned()),
            (load, 0, 0, 32),
            (equal, 0, 1, nix::libc::NETLINK_NETFILTER.cast_unsigned()),
            (answer, 0, 0, refused),
            (answer, 0, 0, 0x7fff_0000),
        ]
        .into_iter()
        .flat_map(|(code, yes, no, value): (u16, u8, u8, u32)| {
            let [a, b] = code.to_ne_bytes();
            [[a, b, yes, no], value.to_ne_bytes()].concat()
        })
        .collect()
    }

    #[test]
    fn a_kernel_without_netfilter_or_taps_is_told_by_that_name() {
        if skipped() {
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link add wan0 type bridge");
        let filter = Path::new(env!("CARGO_TARGET_TMPDIR")).join("without-netfilter");
        std::fs::write(&filter, without_netfilter()).unwrap();
        let line = "exec bwrap --dev-bind / / --cap-add ALL --seccomp 9 \"$@\" 9<\"$0\"";
        let arguments = [
            "apply",
            "--uplink",
            "wan0",
            "--config",
            "/dev/null",
            "--lock-dir",
            "/tmp",
        ];
        let program = [
            "-c",
            line,
            filter.to_str().unwrap(),
            env!("CARGO_BIN_EXE_agentlab-net"),
        ];
        let apply = Command::new("sh")
            .args(program)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let apply = apply.wait_with_output().unwrap();
        let words = String::from_utf8(apply.stderr).unwrap();
        assert!(
            apply.status.code() == Some(2) && words.contains("CONFIG_NETFILTER_NETLINK"),
            "{words}"
        );

        let mut enforcer = Enforcer::start(host()).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate /");
        run("mount -t tmpfs none /dev/net");
        let error = enforcer.attach(&port()).unwrap_err().to_string();
        assert!(error.contains("modprobe tun"), "{error}");
    }

    fn host() -> HostPolicy {
        HostPolicy {
            bridge: BridgeSpec {
                name: "vmbr1".parse().unwrap(),
                address: "10.77.0.1".parse().unwrap(),
                prefix: 16,
                mtu: None,
            },
            uplink: None,
            guest_ports: Vec::new(),
            dns: false,
            machine_uids: None,
            tailnet: None,
            denial_group: USUAL_DENIAL_GROUP,
        }
    }

    fn port() -> GuestPort {
        GuestPort {
            name: "tap1000i0".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 7],
            address: "10.77.1.7".parse().unwrap(),
            trust: Trust::Off,
        }
    }

    fn run(line: &str) {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status();
        assert!(status.unwrap().success(), "{line}");
    }
}
