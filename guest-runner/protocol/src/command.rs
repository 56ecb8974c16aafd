//! Commands that an operator runs in a guest: the order that the host pushes, and the frames that then flow both ways.
//!
//! ```text
//!   runner                                        host                        operator
//!     │ GET  /guest/v1/commands       (stays open)  │                             │
//!     ├────────────────────────────────────────────►│ ◄── POST …/commands ────────┤
//!     │ ◄──────────── one line per CommandOrder ────┤                             │
//!     │ POST /guest/v1/commands/<id>                │                             │
//!     ├── Output, Error, Exit ─────────────────────►│ ── the same bytes ─────────►│
//!     │ ◄─────────────────── Input, Resize ─────────┤ ◄── the same bytes ─────────┤
//! ```
//!
//! The host copies bytes and reads none. Both ends bound what the other may announce.

use serde::{Deserialize, Serialize};

/// `GET`, session required: one JSON [`CommandOrder`] a line, for as long as the session lasts. Empty lines mean nothing.
pub const COMMANDS_PATH: &str = "/guest/v1/commands";
/// `POST` below this prefix: frames both ways until either side ends. 404: nobody waits for it any more.
pub const COMMANDS_PREFIX: &str = "/guest/v1/commands/";

/// Largest payload of one frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;
const HEADER: usize = 5;

/// Who a command runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandUser {
    /// The agent's user, with the agent's environment.
    #[default]
    Agent,
    /// The guest's root.
    Root,
}

/// Size and kind of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
    /// What `TERM` shall be.
    pub kind: String,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandOrder {
    /// Names it on the way back: hexadecimal.
    pub id: String,
    /// Program and arguments. Without any: the user's login shell.
    pub words: Vec<String>,
    /// Who runs it.
    #[serde(default)]
    pub user: CommandUser,
    /// Where; the repository, or the home directory, when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// Run it on a terminal.
    #[serde(default)]
    pub terminal: Option<Terminal>,
}

/// What flows once a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the command's standard input.
    Input(Vec<u8>),
    /// Its standard input ends.
    InputEnd,
    /// The terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
    /// From its standard output, or its terminal.
    Output(Vec<u8>),
    /// From its standard error.
    Error(Vec<u8>),
    /// It ended with this status; 128+n when signal n ended it. The last frame.
    Exit(u8),
    /// It could not be run; why. The last frame.
    Failed(String),
}

/// What cannot be a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_PAYLOAD`].
    #[error("A frame announces {0} bytes, more than one may have")]
    TooLong(usize),
    /// Not a kind of this version, or not its payload.
    #[error("A frame of kind {0} has no meaning")]
    Unknown(u8),
}

impl Frame {
    /// The bytes. Payloads are cut at [`MAX_PAYLOAD`]: whoever has more makes more frames.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let size;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Input(bytes) => (1, bytes),
            Self::InputEnd => (2, &[]),
            Self::Resize { rows, columns } => {
                let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
                size = [a, b, c, d];
                (3, &size)
            }
            Self::Output(bytes) => (4, bytes),
            Self::Error(bytes) => (5, bytes),
            Self::Exit(code) => (6, std::slice::from_ref(code)),
            Self::Failed(text) => (7, text.as_bytes()),
        };
        let payload = payload.get(..MAX_PAYLOAD).unwrap_or(payload);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        match (kind, payload) {
            (1, bytes) => Ok(Self::Input(bytes.to_vec())),
            (2, []) => Ok(Self::InputEnd),
            (3, &[a, b, c, d]) => Ok(Self::Resize {
                rows: u16::from_be_bytes([a, b]),
                columns: u16::from_be_bytes([c, d]),
            }),
            (4, bytes) => Ok(Self::Output(bytes.to_vec())),
            (5, bytes) => Ok(Self::Error(bytes.to_vec())),
            (6, &[code]) => Ok(Self::Exit(code)),
            (7, bytes) => Ok(Self::Failed(String::from_utf8_lossy(bytes).into_owned())),
            (kind, _) => Err(FrameError::Unknown(kind)),
        }
    }
}

/// Makes frames of bytes, however they were cut. Holds one frame at most, and what came with it.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
    at: usize,
}

impl FrameReader {
    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// What arrived is none: nothing that follows can be read either.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((&[kind, a, b, c, d], rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame::decode(kind, payload)?;
        self.at += HEADER + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_however_they_were_cut() {
        let frames = [
            Frame::Input(b"ls\n".to_vec()),
            Frame::InputEnd,
            Frame::Resize {
                rows: 24,
                columns: 300,
            },
            Frame::Output(vec![0; MAX_PAYLOAD]),
            Frame::Error(Vec::new()),
            Frame::Exit(137),
            Frame::Failed("no such program".to_owned()),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 3, 4096, bytes.len()] {
            let mut reader = FrameReader::default();
            let mut read = Vec::new();
            for chunk in bytes.chunks(size) {
                reader.push(chunk);
                while let Some(frame) = reader.next_frame().unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, frames, "in pieces of {size}");
        }
    }

    #[test]
    fn a_lying_peer_is_not_believed() {
        for (bytes, error) in [
            (&[4, 0, 1, 0, 1][..], FrameError::TooLong(65_537)),
            (&[9, 0, 0, 0, 0][..], FrameError::Unknown(9)),
            (&[3, 0, 0, 0, 1, 7][..], FrameError::Unknown(3)),
            (&[6, 0, 0, 0, 0][..], FrameError::Unknown(6)),
            (&[4, 0xff, 0xff, 0xff, 0xff][..], FrameError::TooLong(0xffff_ffff)),
        ] {
            let mut reader = FrameReader::default();
            reader.push(bytes);
            assert_eq!(reader.next_frame(), Err(error));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic_or_hold_more_than_a_frame(
            chunks in proptest::collection::vec(proptest::collection::vec(0u8..9, 0..200), 0..40)
        ) {
            let mut reader = FrameReader::default();
            for chunk in chunks {
                reader.push(&chunk);
                loop {
                    match reader.next_frame() {
                        Ok(Some(frame)) => {
                            let mut again = FrameReader::default();
                            again.push(&frame.encode());
                            proptest::prop_assert_eq!(again.next_frame(), Ok(Some(frame)));
                        }
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                proptest::prop_assert!(reader.bytes.len() <= reader.at + HEADER + MAX_PAYLOAD + 200);
            }
        }
    }
}
