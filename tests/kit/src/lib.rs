//! Vocabulary that every test tier shares: a lab with a real daemon in a network namespace of its own, the real CLI
//! beside it, and a look at everything that must be gone in the end.
//!
//! ```text
//!   Lab ── dir/            data, run, profiles, config.yaml
//!       ── namespace       held by a process of its own, so that a killed daemon's VMs keep their network
//!       ── agentlabd       started with nsenter; stop, kill -9 and start again at will
//!       ── agentlab(..)    the CLI as a user runs it
//! ```

mod idle_daemon;
mod internet;
mod lab;
mod leftovers;
mod login;
mod namespace;
mod origin;
mod repository;
mod requirement;
mod template;
mod terminal;

pub use idle_daemon::idle_daemon;
pub use internet::Internet;
pub use lab::{Lab, Ran};
pub use login::{LOGIN_VMID, ORIGIN_ADDRESS, SshServer, login_image};
pub use namespace::Namespace;
pub use origin::{Identity, Origin};
pub use repository::{Repository, job_run};
pub use requirement::{Missing, root_tier, vm_tier};
pub use template::{binaries_dir, runner_path, template_image, template_image_in, template_store};
pub use terminal::{CTRL_C, Left, Terminal};
