//! Builds template images: a recipe in, a directory of files that a hypervisor can boot out.
//!
//! ```text
//!   recipe.toml ──► Recipe ──► rootfs   mmdebstrap, or its tar kept from last time
//!   agent-runner ─► Runner        │
//!                                 ▼
//!                              strip    what would make two machines the same one
//!                                 ▼
//!                              bake     runner, its unit, the agent user, the boot tuning
//!                                 ▼
//!                              image    root.ext4 (mke2fs -d), vmlinuz, initrd.img, manifest.json
//!                                 ▼
//!                              store    <store>/<id>/ appears whole or not at all; by-name/<name> moves to it
//! ```
//!
//! Nothing is mounted, no loop device is used and nothing runs inside the tree: every change to it is made by this
//! crate through [`tree::Tree`], which cannot be led out of it by a symbolic link. What packages run is run while
//! mmdebstrap makes the tree, and by [`install`] in a copy of an image that others made.

pub mod account;
pub mod assembly;
pub mod bake;
pub mod cloud;
pub mod command;
mod debugfs;
pub mod disk;
pub mod download;
pub mod error;
pub mod fingerprint;
pub mod gc;
mod image;
pub mod initrd;
mod install;
pub mod kernel;
pub mod manifest;
pub mod npm;
mod overlay;
mod partition;
pub mod progress;
pub mod publish;
pub mod recipe;
pub mod rootfs;
pub mod runner;
pub mod shape;
pub mod store;
pub mod strip;
pub mod tool;
pub mod tree;
pub mod tuning;

pub use error::{Result, TemplateError};
