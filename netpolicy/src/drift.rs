//! A difference between what should stand and what stands.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One difference, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The object, as in `inet agentlab chain forward rule 2` or `net.ipv4.ip_forward`.
    pub object: String,
    /// What is wrong with it.
    pub found: String,
}

impl Drift {
    /// A difference of an object.
    #[cfg_attr(
        not(feature = "kernel"),
        allow(dead_code, reason = "only the kernel half can see a difference")
    )]
    pub(crate) fn new(object: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            found: found.into(),
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.found)
    }
}
