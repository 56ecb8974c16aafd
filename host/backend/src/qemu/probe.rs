//! Whether KVM really runs guests here. `/dev/kvm` alone says nothing: inside some virtual machines it opens, takes
//! a guest, and crawls or hangs. So a guest is run, exactly as a machine would be (same user, same seccomp sandbox):
//! first a dozen bytes that switch the machine off, then a template's own kernel up to its panic for want of a root.
//!
//! ```text
//!   no /dev/kvm ───────────────────────────────► TCG
//!   dozen bytes not done within 3 s ───────────► TCG
//!   kernel not at its panic within 10 s ───────► TCG
//!   both done ─────────────────────────────────► KVM      verdict kept until kernel or QEMU change
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::accelerator::{Accelerator, Programs};
use super::command;
use super::launch::Launch;
use super::log::open_for_append;
use super::record::{read_json, write_json};
use super::template::StoredTemplate;

const DEVICE: &str = "/dev/kvm";
const TINY_DEADLINE: Duration = Duration::from_secs(3);
const KERNEL_DEADLINE: Duration = Duration::from_secs(10);
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// What the tiny guest writes to the debug exit port, and what QEMU makes of it.
const TINY_CODE: u8 = 0x31;
const TINY_EXIT: i32 = 0x63;
const MAX_PROBE_FILE: u64 = 16 * 1024 * 1024;

/// Which accelerator, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verdict {
    pub(super) kvm: bool,
    pub(super) reason: String,
    /// Whether a real kernel was run to find it out.
    pub(super) with_kernel: bool,
}

impl Verdict {
    pub(super) fn accelerator(&self) -> Accelerator {
        if self.kvm {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }
}

/// `accelerator.json`: a verdict and what it depends on.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    host: String,
    verdict: Verdict,
}

/// Runs guests to find out about KVM.
#[derive(Debug, Clone)]
pub(super) struct Prober {
    pub(super) programs: Programs,
    /// Used by no machine.
    pub(super) uid: u32,
    /// Where the verdict is kept.
    pub(super) kept_path: PathBuf,
    /// KVM; tests put the one there that works everywhere.
    pub(super) tried: Accelerator,
}

/// How a probe's guest ended.
#[derive(Debug)]
enum Ended {
    Exit(Option<i32>, String),
    TooLate,
}

/// The group QEMU runs with under KVM: the device's, unless that is root's.
pub(super) fn kvm_group(uid: u32) -> u32 {
    match fs::metadata(DEVICE) {
        Ok(device) if device.gid() != 0 => device.gid(),
        Ok(_) | Err(_) => uid,
    }
}

/// A multiboot kernel: `mov al, code; out 0xf4, al; hlt`.
fn tiny_guest() -> Vec<u8> {
    const MAGIC: u32 = 0x1BAD_B002;
    /// The header says where to load to.
    const FLAGS: u32 = 1 << 16;
    const LOAD: u32 = 0x0010_0000;
    const HEADER: u32 = 32;
    let code = [0xb0, TINY_CODE, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, 0x90];
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    // Header, load, end of load, end of zeroes (none given: same as the end), entry.
    let words = [MAGIC, FLAGS, checksum, LOAD, LOAD, 0, 0, LOAD + HEADER];
    words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(code)
        .collect()
}

/// An unnamed file that any user may open again through `/proc/self/fd`.
fn memory_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

impl Prober {
    /// The verdict kept from an earlier run where it still holds, else a new one. With a template its kernel is
    /// run too.
    pub(super) async fn verdict(&self, template: Option<&StoredTemplate>) -> Verdict {
        if let Err(error) = fs::metadata(DEVICE) {
            let reason = format!("no KVM on this host ({DEVICE}: {error})");
            return Verdict {
                kvm: false,
                reason,
                with_kernel: false,
            };
        }
        let host = self.host();
        let kept = read_json::<Kept>(&self.kept_path)
            .ok()
            .flatten()
            .filter(|kept| kept.host == host);
        if let Some(Kept { verdict, .. }) = kept {
            // Against KVM a tiny guest proves enough; for it only a kernel does.
            if !verdict.kvm || verdict.with_kernel || template.is_none() {
                return verdict;
            }
        }
        let verdict = self.find_out(template).await;
        tracing::info!(kvm = verdict.kvm, reason = verdict.reason, "accelerator chosen");
        let kept = Kept { host, verdict };
        if let Err(error) = write_json(&self.kept_path, &kept) {
            tracing::warn!(%error, "the accelerator's verdict could not be kept");
        }
        kept.verdict
    }

    /// What a verdict depends on.
    fn host(&self) -> String {
        let kernel = rustix::system::uname();
        let device = fs::metadata(DEVICE).map_or_else(
            |_| "absent".to_owned(),
            |device| format!("{}:{:o}", device.gid(), device.mode()),
        );
        let release = kernel.release().to_string_lossy().into_owned();
        format!(
            "linux {release}, qemu {} {}, kvm {device}",
            self.programs.system.display(),
            self.programs.version.text
        )
    }

    async fn find_out(&self, template: Option<&StoredTemplate>) -> Verdict {
        let against = |reason: String, with_kernel| Verdict {
            kvm: false,
            reason: format!("{reason}; guests are translated (TCG), which is slower"),
            with_kernel,
        };
        if let Err(reason) = self.try_tiny().await {
            return against(reason, false);
        }
        let Some(template) = template else {
            let reason = "a tiny guest ran under KVM".to_owned();
            return Verdict {
                kvm: true,
                reason,
                with_kernel: false,
            };
        };
        match self.try_kernel(template).await {
            Ok(()) => {
                let reason = format!("the kernel of template `{}` ran under KVM", template.name);
                Verdict {
                    kvm: true,
                    reason,
                    with_kernel: true,
                }
            }
            Err(reason) => against(reason, true),
        }
    }

    async fn try_tiny(&self) -> Result<(), String> {
        let kernel =
            memory_file("probe", &tiny_guest()).map_err(|error| format!("no probe guest: {error}"))?;
        let exit_port = [
            OsString::from("-device"),
            OsString::from("isa-debug-exit,iobase=0xf4,iosize=1"),
        ];
        let ended = self.run(kernel, None, &exit_port, TINY_DEADLINE).await;
        match ended.map_err(|error| format!("KVM could not be tried: {error}"))? {
            Ended::Exit(Some(TINY_EXIT), _) => Ok(()),
            Ended::Exit(code, words) => Err(format!("QEMU with KVM ended at once{}", why(code, &words))),
            Ended::TooLate => Err(format!(
                "{DEVICE} exists but a guest of a few instructions did not end under KVM within {} s",
                TINY_DEADLINE.as_secs()
            )),
        }
    }

    async fn try_kernel(&self, template: &StoredTemplate) -> Result<(), String> {
        let files = template.open().map_err(|error| error.to_string())?;
        let line = [
            "-append",
            "console=ttyS0 panic=-1 rdinit=/none init=/none root=/dev/none",
        ]
        .map(OsString::from);
        let ended = self.run(files.kernel, files.initrd, &line, KERNEL_DEADLINE).await;
        match ended.map_err(|error| format!("KVM could not be tried: {error}"))? {
            Ended::Exit(Some(0), words) if words.contains("Kernel panic") => Ok(()),
            Ended::Exit(code, words) => {
                Err(format!("a Linux guest died early under KVM{}", why(code, &words)))
            }
            Ended::TooLate => Err(format!(
                "{DEVICE} exists but a Linux guest hung under KVM for {} s",
                KERNEL_DEADLINE.as_secs()
            )),
        }
    }

    async fn run(
        &self,
        kernel: File,
        initrd: Option<File>,
        more: &[OsString],
        deadline: Duration,
    ) -> io::Result<Ended> {
        let words = memory_file("probe-words", b"")?;
        let stderr = open_for_append(&own_path(&words))?;
        let console = open_for_append(&own_path(&words))?;
        let mut arguments = command::bare(self.tried, &self.programs.version, 32);
        let mut option = |flag: &str, value: &str| arguments.extend([flag, value].map(OsString::from));
        option("-m", "256");
        option("-add-fd", &format!("fd={},set=1", console.as_raw_fd()));
        option("-chardev", "file,id=console,path=/dev/fdset/1,append=on");
        option("-serial", "chardev:console");
        option("-kernel", &command::reopened(kernel.as_raw_fd()));
        let mut descriptors = vec![OwnedFd::from(kernel), OwnedFd::from(console)];
        if let Some(initrd) = initrd {
            option("-initrd", &command::reopened(initrd.as_raw_fd()));
            descriptors.push(initrd.into());
        }
        arguments.extend_from_slice(more);
        let launch = Launch {
            program: self.programs.system.clone(),
            arguments,
            uid: self.uid,
            gid: kvm_group(self.uid),
            stderr,
            descriptors,
            max_file_bytes: MAX_PROBE_FILE,
        };
        let identity = tokio::task::spawn_blocking(|| launch.start())
            .await
            .map_err(io::Error::other)??;
        let Some(process) = identity.hold_child()? else {
            return Ok(Ended::Exit(None, spoken(&words)));
        };
        match timeout(deadline, process.exit_code()).await {
            Ok(code) => Ok(Ended::Exit(code?, spoken(&words))),
            Err(_) => {
                process.kill()?;
                drop(timeout(KILL_DEADLINE, process.ended()).await);
                Ok(Ended::TooLate)
            }
        }
    }
}

fn why(code: Option<i32>, words: &str) -> String {
    let code = code.map_or_else(|| " by a signal".to_owned(), |code| format!(" with code {code}"));
    let last: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
    let last: String = last
        .last()
        .copied()
        .unwrap_or_default()
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    if last.is_empty() {
        code
    } else {
        format!("{code}: {last}")
    }
}

fn own_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn spoken(words: &File) -> String {
    String::from_utf8_lossy(&fs::read(own_path(words)).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Were the tiny guest broken, KVM would be refused on every host and nobody would notice.
    #[tokio::test]
    async fn the_tiny_guest_ends_where_the_accelerator_works() {
        if !rustix::process::geteuid().is_root()
            || !std::path::Path::new("/usr/bin/qemu-system-x86_64").exists()
        {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "the probe's test needs root and QEMU"
            );
            println!("SKIP: the probe's test needs root and QEMU");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let prober = Prober {
            programs: Programs::find(None, &dir.path().join("qemu-version.json"))
                .await
                .unwrap(),
            uid: 3_099_999,
            kept_path: dir.path().join("accelerator.json"),
            tried: Accelerator::Tcg,
        };
        prober.try_tiny().await.unwrap();
        assert!(prober.find_out(None).await.kvm);
    }
}
