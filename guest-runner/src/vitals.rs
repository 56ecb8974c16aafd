//! How this machine is, read from `/proc`. What cannot be read is zero: it is for people, and decides nothing.

use std::path::Path;
use std::time::Duration;

use agentlab_protocol::message::Vitals;

/// Jiffies of `/proc/stat` are hundredths of a second wherever programs look.
const TICK: Duration = Duration::from_millis(10);

/// All but how quiet the agent is. `work` names the disk that counts.
#[must_use]
pub fn read(work: &Path) -> Vitals {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory = text("/proc/meminfo");
    let (disk_total_bytes, disk_free_bytes) = disk(work);
    Vitals {
        load_hundredths: load(&text("/proc/loadavg")),
        memory_total_bytes: field(&memory, "MemTotal:").saturating_mul(1024),
        memory_available_bytes: field(&memory, "MemAvailable:").saturating_mul(1024),
        disk_total_bytes,
        disk_free_bytes,
        oom_kills: oom_kills(),
        processes: processes(),
        quiet_seconds: 0,
    }
}

/// Processes that the kernel has killed for want of memory.
#[must_use]
pub fn oom_kills() -> u64 {
    field(
        &std::fs::read_to_string("/proc/vmstat").unwrap_or_default(),
        "oom_kill",
    )
}

/// How long all processors together have been busy.
#[must_use]
pub fn busy() -> Duration {
    busy_of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// Size of a file system and what is free of it for everybody, in bytes.
#[must_use]
pub fn disk(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map_or((0, 0), |seen| {
        let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
        (bytes(seen.f_blocks), bytes(seen.f_bavail))
    })
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`
fn busy_of(stat: &str) -> Duration {
    let line = stat.lines().next().unwrap_or_default();
    let counted = line.split_whitespace().skip(1).enumerate();
    let ticks = counted
        // Idle, waiting for a disk, stolen by others; and what is counted twice.
        .filter(|(index, _)| !matches!(index, 3 | 4 | 7 | 8 | 9))
        .filter_map(|(_, number)| number.parse::<u32>().ok())
        .fold(0, u32::saturating_add);
    TICK.saturating_mul(ticks)
}

/// `0.52 0.40 0.30 1/120 4711`
fn load(loadavg: &str) -> u32 {
    let first = loadavg.split_whitespace().next().unwrap_or_default();
    let (whole, part) = first.split_once('.').unwrap_or((first, "0"));
    let whole: u32 = whole.parse().unwrap_or(0);
    let part: u32 = part.parse().unwrap_or(0);
    whole.saturating_mul(100).saturating_add(part.min(99))
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .find(|rest| rest.starts_with([' ', '\t']))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn processes() -> u32 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let count = entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(load("1.52 0.40 0.30 1/120 4711\n"), 152);
        assert_eq!(load(""), 0);
        let memory = "MemTotal:        1000 kB\nMemTotalX:  5 kB\nMemAvailable:    400 kB\n";
        assert_eq!(
            (field(memory, "MemTotal:"), field(memory, "MemAvailable:")),
            (1000, 400)
        );
        assert_eq!(field("oom_kill_all 3\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(
            busy_of("cpu  100 10 40 9999 8888 5 5 777 30 3\ncpu0 1 1\n"),
            Duration::from_millis(1600)
        );
        assert_eq!(busy_of("nonsense"), Duration::ZERO);
    }

    #[test]
    fn this_machine_has_memory_a_disk_and_processes() {
        let seen = read(Path::new("/"));
        assert!(seen.memory_total_bytes > seen.memory_available_bytes, "{seen:?}");
        assert!(seen.disk_total_bytes > 0 && seen.processes > 0, "{seen:?}");
    }
}
