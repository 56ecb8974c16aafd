//! Real jobs in really booted VMs: see `tests/`. Needs root, QEMU, tun, and a mirror for the first template build.
