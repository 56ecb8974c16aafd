//! One suite for every back end: what the traits promise, asked of each of them.
//!
//! ```text
//!   suite.rs      the promises, generic over a rig; power.rs those of power, disks.rs and volumes.rs of what is kept
//!   fake.rs       the rig of the fake                      always runs
//!   proxmox.rs    the rig of the REST API                  always runs, against a stand-in
//!   shell.rs      the rig of qm, pvesh and pvesm           always runs, against programs of its own
//!   publish.rs    templates, over both of the latter
//!   genuine.rs    the rig of a node of the reader's own        by `make pve-contract`, and ignored otherwise
//!   qemu/         the rig of real QEMU processes, and what only they can get wrong      root and QEMU
//! ```
//!
//! Without root or QEMU the second half prints SKIP; with `CI=true` it fails instead.

#[cfg(test)]
mod disks;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod genuine;
#[cfg(test)]
mod power;
#[cfg(test)]
mod proxmox;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod qemu;
#[cfg(test)]
mod shell;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod volumes;

#[cfg(test)]
suite::contract!(fake_keeps, crate::fake::FakeRig::open());
#[cfg(test)]
suite::contract!(qemu_keeps, crate::qemu::QemuRig::open());
#[cfg(test)]
suite::contract!(
    proxmox_8_keeps,
    crate::proxmox::ProxmoxRig::open(pve_sim::Version::V8)
);
#[cfg(test)]
suite::contract!(
    proxmox_9_keeps,
    crate::proxmox::ProxmoxRig::open(pve_sim::Version::V9)
);
#[cfg(test)]
suite::contract!(shell_8_keeps, crate::shell::ShellRig::open(pve_sim::Version::V8));
#[cfg(test)]
suite::contract!(shell_9_keeps, crate::shell::ShellRig::open(pve_sim::Version::V9));
#[cfg(test)]
suite::contract!(genuine a_genuine_node_keeps, crate::genuine::GenuineRig::open());
