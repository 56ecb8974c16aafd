//! What a build tells whoever waits for it.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

/// Steps of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Another build holds the store.
    Wait,
    /// mmdebstrap makes a root tree.
    Bootstrap,
    /// Packages of npm come.
    Fetch,
    /// An image that others publish comes.
    Download,
    /// A root tree kept from last time is unpacked.
    Unpack,
    /// The image of others becomes a raw disk.
    Convert,
    /// Identity out, runner in.
    Bake,
    /// Packages go into an image of others.
    Install,
    /// The same in an image of others.
    Customise,
    /// Kernel and initrd.
    Kernel,
    /// The file system image.
    Image,
    /// Hashes and manifest.
    Hash,
    /// Everything flushed to disk and put in its place.
    Publish,
    /// A disk becomes a file that is smaller to send.
    Pack,
    /// A Proxmox VE node makes a template of it.
    Send,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "wait for another build",
            Self::Bootstrap => "bootstrap the root tree",
            Self::Fetch => "fetch packages of npm",
            Self::Download => "download and verify the image",
            Self::Unpack => "unpack the kept root tree",
            Self::Convert => "unpack the image",
            Self::Bake => "strip identity, bake the runner in",
            Self::Install => "install packages with the image's own apt",
            Self::Customise => "put the runner and the recipe into the image",
            Self::Kernel => "kernel and initrd",
            Self::Image => "file system image",
            Self::Hash => "hash and write the manifest",
            Self::Publish => "flush to disk and publish",
            Self::Pack => "pack the disk",
            Self::Send => "make the template on the node",
        })
    }
}

/// Takes the time of every step and says on stderr what goes on.
#[derive(Debug)]
pub struct Progress {
    aloud: bool,
    steps: Vec<(Step, Duration)>,
}

impl Progress {
    /// `aloud` prints a line per step to stderr.
    #[must_use]
    pub fn new(aloud: bool) -> Self {
        Self {
            aloud,
            steps: Vec::new(),
        }
    }

    /// Runs one step and keeps its time; a step that fails is not kept.
    pub(crate) fn step<T>(
        &mut self,
        step: Step,
        detail: &str,
        work: impl FnOnce() -> crate::Result<T>,
    ) -> crate::Result<T> {
        let begun = Instant::now();
        self.say(&format!(
            "  {step}{}{detail}",
            if detail.is_empty() { "" } else { ": " }
        ));
        let answer = work()?;
        self.steps.push((step, begun.elapsed()));
        Ok(answer)
    }

    /// Prints one line to stderr, when aloud. A closed stderr does not end a build.
    pub(crate) fn say(&self, line: &str) {
        if self.aloud {
            let _closed = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    /// Steps done so far, with what each took.
    #[must_use]
    pub fn steps(&self) -> &[(Step, Duration)] {
        &self.steps
    }
}
