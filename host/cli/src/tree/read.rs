//! Reads an archive as it comes, in pieces of any size.

use super::{BLOCK, Entry, Kind, LONGEST_NAME, padding};

/// Where entries go. Every entry's bytes follow it, then [`Receive::end`].
pub(crate) trait Receive {
    /// Why one goes no further.
    type Error: From<TarError>;
    /// An entry begins.
    fn begin(&mut self, entry: Entry) -> Result<(), Self::Error>;
    /// Some of its bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// It is whole.
    fn end(&mut self) -> Result<(), Self::Error>;
}

/// Why something is no archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TarError {
    #[error("a header does not add up")]
    Checksum,
    #[error("a number in a header is none")]
    Number,
    #[error("a name is longer than {LONGEST_NAME} bytes")]
    Name,
    #[error("it ends in the middle")]
    Cut,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    Header,
    /// A name that did not fit into its header; true for the target of a link.
    Long {
        target: bool,
        text: Vec<u8>,
        left: u64,
        pad: usize,
    },
    Body {
        left: u64,
        pad: usize,
    },
    /// After the end, whatever comes.
    Over,
}

/// The place in an archive.
#[derive(Debug)]
pub(crate) struct Reader {
    state: State,
    block: Vec<u8>,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            name: None,
            target: None,
        }
    }
}

impl Reader {
    /// Takes the next bytes.
    pub(crate) fn push<R: Receive>(&mut self, mut bytes: &[u8], to: &mut R) -> Result<(), R::Error> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Over => return Ok(()),
                State::Header => {
                    let wanted = BLOCK - self.block.len();
                    let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
                    self.block.extend_from_slice(now);
                    bytes = rest;
                    if self.block.len() == BLOCK {
                        let block = std::mem::take(&mut self.block);
                        self.state = self.header(&block, to)?;
                    }
                }
                State::Long {
                    target,
                    text,
                    left,
                    pad,
                } => {
                    if *left > 0 {
                        let (now, rest) = split(bytes, *left);
                        text.extend_from_slice(now);
                        *left -= length(now);
                        bytes = rest;
                    } else {
                        let (skipped, rest) = bytes.split_at((*pad).min(bytes.len()));
                        *pad -= skipped.len();
                        bytes = rest;
                    }
                    if *left == 0 && *pad == 0 {
                        let text = up_to_nul(text).to_vec();
                        if *target {
                            self.target = Some(text);
                        } else {
                            self.name = Some(text);
                        }
                        self.state = State::Header;
                    }
                }
                State::Body { left, pad } => {
                    if *left > 0 {
                        let (now, rest) = split(bytes, *left);
                        to.bytes(now)?;
                        *left -= length(now);
                        bytes = rest;
                        if *left == 0 {
                            to.end()?;
                        }
                    } else {
                        let (skipped, rest) = bytes.split_at((*pad).min(bytes.len()));
                        *pad -= skipped.len();
                        bytes = rest;
                    }
                    if *left == 0 && *pad == 0 {
                        self.state = State::Header;
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing more comes.
    pub(crate) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::Over => Ok(()),
            State::Header | State::Long { .. } | State::Body { .. } => Err(TarError::Cut),
        }
    }

    fn header<R: Receive>(&mut self, block: &[u8], to: &mut R) -> Result<State, R::Error> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(State::Over);
        }
        check(block)?;
        let field = |at: usize, length: usize| block.get(at..at + length).unwrap_or_default();
        let size = number(field(124, 12))?;
        let flag = block.get(156).copied().unwrap_or_default();
        if matches!(flag, b'L' | b'K') {
            if size > LONGEST_NAME + 1 {
                return Err(TarError::Name.into());
            }
            return Ok(State::Long {
                target: flag == b'K',
                text: Vec::new(),
                left: size,
                pad: padding(size),
            });
        }
        let kind = match flag {
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Directory,
            b'2' => Kind::Link(
                self.target
                    .take()
                    .unwrap_or_else(|| up_to_nul(field(157, 100)).to_vec()),
            ),
            other => Kind::Other(other),
        };
        self.target = None;
        let entry = Entry {
            name: self.name.take().unwrap_or_else(|| name(block)),
            kind,
            size,
            mode: u32::try_from(number(field(100, 8))? & 0o7777).unwrap_or_default(),
            // Before the epoch is as good as at it.
            modified: number(field(136, 12)).unwrap_or_default(),
        };
        to.begin(entry)?;
        if size == 0 {
            to.end()?;
            return Ok(State::Header);
        }
        Ok(State::Body {
            left: size,
            pad: padding(size),
        })
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// At most `left` bytes, and the rest.
fn split(bytes: &[u8], left: u64) -> (&[u8], &[u8]) {
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    bytes.split_at(left.min(bytes.len()))
}

fn up_to_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// POSIX's archives have a second field for what stands before a slash; GNU's use its place for other things.
fn name(block: &[u8]) -> Vec<u8> {
    let field = |at: usize, length: usize| up_to_nul(block.get(at..at + length).unwrap_or_default());
    let (name, prefix) = (field(0, 100), field(345, 155));
    if block.get(257..263) == Some(b"ustar\0") && !prefix.is_empty() {
        [prefix, name].join(&b'/')
    } else {
        name.to_vec()
    }
}

fn check(block: &[u8]) -> Result<(), TarError> {
    let said = number(block.get(148..156).unwrap_or_default()).map_err(|_| TarError::Checksum)?;
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    if sum == said {
        Ok(())
    } else {
        Err(TarError::Checksum)
    }
}

/// Octal digits between blanks and NULs, or GNU's binary form.
fn number(field: &[u8]) -> Result<u64, TarError> {
    if field.first() == Some(&0x80) {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        if high.iter().skip(1).any(|byte| *byte != 0) {
            return Err(TarError::Number);
        }
        return Ok(low.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)));
    }
    let text = up_to_nul(field);
    let text = std::str::from_utf8(text)
        .map_err(|_| TarError::Number)?
        .trim_matches(' ');
    if text.is_empty() {
        return Ok(0);
    }
    if !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(TarError::Number);
    }
    u64::from_str_radix(text, 8).map_err(|_| TarError::Number)
}
