//! How the daemon is linked.

/// Addresses that the loader has to put right take 24 bytes each in the usual table, and all of it is read, and stays
/// resident, at every start. In the packed one (glibc 2.36) they take a few bits.
fn main() {
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
