//! QEMU itself.
