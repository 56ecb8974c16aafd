//! Tap devices: the one thing netlink cannot make.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::IfName;

const DEVICE: &str = "/dev/net/tun";

/// Makes a tap in the caller's network namespace, bound to nothing, and returns its only descriptor. It is not persistent: the link goes when the last copy of the
/// descriptor is closed, so that a crash leaves nothing behind.
pub fn create_tap(name: &IfName) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(DEVICE)?;
    let mut request = TapRequest {
        name: name.padded(),
        flags: FLAGS,
        unused: [0; 22],
    };
    set_interface(&device, &mut request)?;
    Ok(device.into())
}

/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: whole frames, without a prefix, with the header for offloads.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// `struct ifreq` as TUNSETIFF reads and writes it.
#[repr(C)]
struct TapRequest {
    name: [u8; IfName::SIZE],
    flags: u16,
    unused: [u8; 22],
}

#[expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]
fn set_interface(device: &std::fs::File, request: &mut TapRequest) -> io::Result<()> {
    const _: () = assert!(
        size_of::<TapRequest>() == size_of::<libc::ifreq>(),
        "the kernel copies a whole ifreq"
    );
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one ifreq, which `request` has the size of, and keeps
    // no pointer to it.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, std::ptr::from_mut(request)) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
