//! Hands a descriptor to the reactor.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers for reading and writing. Must be called within a runtime.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "tokio has no safe way to watch a descriptor of its owner's"
    )]
    // SAFETY: An OwnedFd is open and stays the same descriptor for as long as it exists; the AsyncFd owns it, and
    // SerialPort, the only user, neither moves it out nor replaces it.
    let registered = unsafe { AsyncFd::register(descriptor) };
    registered.map_err(io::Error::from)
}
