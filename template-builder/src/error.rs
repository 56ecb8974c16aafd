//! What can go wrong, in sentences that say where, why and what next.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TemplateError>;

/// Failure of a template command.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The recipe is not one; `at` is `file:line:column`.
    #[error("{at}: {problem}")]
    Recipe {
        /// `file:line:column`, or the file alone where no position is known.
        at: String,
        /// What is wrong there.
        problem: String,
        /// What was probably meant.
        hint: Option<String>,
    },
    /// No recipe by that name or path.
    #[error("No recipe `{wanted}`: it is neither a file nor one of the built-in recipes ({known})")]
    UnknownRecipe {
        /// As it was typed.
        wanted: String,
        /// Names of the built-in ones.
        known: String,
        /// The nearest of them.
        hint: Option<String>,
    },
    /// The runner cannot be baked in.
    #[error("{problem}")]
    Runner {
        /// What is wrong with it, with its path.
        problem: String,
        /// How to get a good one.
        hint: String,
    },
    /// A program failed, with its own last words.
    #[error("{program} failed ({status}):\n{words}")]
    ToolFailed {
        /// Its name.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines it printed that matter.
        words: String,
        /// What to try.
        hint: Option<String>,
    },
    /// A program is not installed.
    #[error("`{program}` is not installed")]
    ToolMissing {
        /// Its name.
        program: String,
        /// How to install it.
        hint: String,
    },
    /// The tree that was bootstrapped is not what we can make an image of.
    #[error("The root tree {problem}")]
    Tree {
        /// What is missing or wrong in it.
        problem: String,
    },
    /// Another image stands for the same VMID.
    #[error("VMID {vmid} already stands for template `{holder}` in {}, so `{wanted}` cannot have it", store.display())]
    VmidTaken {
        /// The VMID.
        vmid: u32,
        /// Who has it.
        holder: String,
        /// Who wants it.
        wanted: String,
        /// In which store.
        store: PathBuf,
    },
    /// No image by that name, VMID or id.
    #[error("No template `{wanted}` in {}", store.display())]
    NotFound {
        /// As it was typed.
        wanted: String,
        /// Where was looked.
        store: PathBuf,
        /// What there is.
        hint: Option<String>,
    },
    /// A manifest cannot be understood.
    #[error("{} is not a manifest we understand: {problem}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// The caller lacks a right.
    #[error("{problem}")]
    Permission {
        /// What is not allowed.
        problem: String,
        /// How it would be.
        hint: String,
    },
    /// What the configuration, or the command line, says of a node.
    #[error("{problem}")]
    Settings {
        /// What is wrong with it.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The node, or the way to it.
    #[error(transparent)]
    Node(#[from] agentlab_backend::BackendError),
    /// Somebody wanted us to end.
    #[error("Interrupted: what was begun on the node is taken back")]
    Interrupted,
    /// It failed, and what it left could not be taken back either.
    #[error("{error}\nWhat it left could not be taken back: {reason}")]
    LeftBehind {
        /// The number it was to have.
        vmid: String,
        /// What its description says of the run.
        mark: String,
        /// Why it failed.
        error: Box<TemplateError>,
        /// Why it stays.
        reason: String,
    },
    /// The operating system refused.
    #[error("Cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

impl TemplateError {
    /// What to try next, where we know.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe { hint, .. }
            | Self::UnknownRecipe { hint, .. }
            | Self::ToolFailed { hint, .. }
            | Self::NotFound { hint, .. } => hint.clone(),
            Self::Runner { hint, .. } | Self::ToolMissing { hint, .. } | Self::Permission { hint, .. } => {
                Some(hint.clone())
            }
            Self::VmidTaken { .. } => Some(
                "give the recipe another `vmid`, or release that one with `agentlab-template remove`"
                    .to_owned(),
            ),
            Self::Manifest { .. } => {
                Some("`agentlab-template gc` clears images that cannot be read and have no name".to_owned())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space or choose another --store; nothing half-made was left".to_owned())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root, or choose a --store that is yours".to_owned())
            }
            Self::Settings { hint, .. } => hint.clone(),
            Self::Node(error) => error.hint().map(str::to_owned),
            Self::LeftBehind { vmid, mark, .. } => Some(format!(
                "the next `agentlab-template build` with --storage into this store tries again; by hand it is VM {vmid} if its \
                 description says `agentlab-build: {mark}`"
            )),
            Self::Tree { .. } | Self::Io { .. } | Self::Interrupted => None,
        }
    }
}

/// Names file and intention of an I/O error where it happens.
pub(crate) trait During<T> {
    /// `doing` is a verb: `read`, `create`, `lock`.
    fn during(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| TemplateError::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// The candidate nearest to a misspelt word, when one is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
