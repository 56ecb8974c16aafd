//! A template store whose kernels have a few dozen bytes: they write to the serial port and then halt, reset, or
//! write on for ever.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use crate::suite::{HELLO, TEMPLATE};

/// Writes its greeting, then resets the machine.
pub(crate) const RESETS: u32 = 9001;
/// Writes its greeting again and again.
pub(crate) const FLOODS: u32 = 9002;

const HALT: &[u8] = &[0xf4, 0xeb, 0xfd]; // hlt; jmp to it
const RESET: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4]; // mov dx, 0xcf9; mov al, 6; out dx, al; hlt

/// A multiboot kernel: its greeting byte by byte to COM1, then `after`, or the greeting again.
fn kernel(after: Option<&[u8]>) -> Vec<u8> {
    const MAGIC: u32 = 0x1BAD_B002;
    const FLAGS: u32 = 1 << 16;
    const LOAD: u32 = 0x0010_0000;
    const HEADER: u32 = 32;
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let header = [MAGIC, FLAGS, checksum, LOAD, LOAD, 0, 0, LOAD + HEADER];
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    let start = code.len();
    for byte in HELLO.iter().chain(b"\n") {
        code.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    match after {
        Some(after) => code.extend(after),
        None => {
            let back = i32::try_from(start).unwrap() - i32::try_from(code.len() + 5).unwrap();
            code.push(0xe9); // jmp to the greeting
            code.extend(back.to_le_bytes());
        }
    }
    header
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(code)
        .collect()
}

fn template(store: &Path, name: &str, vmid: u32, kernel: &[u8]) {
    let id = format!("{vmid:064x}");
    let dir = store.join(&id);
    fs::create_dir_all(&dir).unwrap();
    let disk_bytes = 64 * 1024 * 1024;
    fs::File::create(dir.join("root.ext4"))
        .unwrap()
        .set_len(disk_bytes)
        .unwrap();
    fs::write(dir.join("vmlinuz"), kernel).unwrap();
    fs::set_permissions(dir.join("vmlinuz"), fs::Permissions::from_mode(0o444)).unwrap();
    let manifest = json!({
        "format": 1, "name": name, "vmid": vmid, "id": id, "runner": { "version": "0.1.0" },
        "kernel": { "command_line": "console=ttyS0 panic=-1" },
        "files": { "root.ext4": { "size_bytes": disk_bytes }, "vmlinuz": { "size_bytes": kernel.len() } },
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    fs::create_dir_all(store.join("by-name")).unwrap();
    symlink(Path::new("..").join(&id), store.join("by-name").join(name)).unwrap();
}

pub(crate) fn store(dir: &Path) {
    template(dir, "tiny", TEMPLATE, &kernel(Some(HALT)));
    template(dir, "resets", RESETS, &kernel(Some(RESET)));
    template(dir, "floods", FLOODS, &kernel(None));
}
