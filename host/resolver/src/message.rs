//! What daemon and resolver say to each other over their line: frames of JSON, each with its length before it.
//!
//! The resolver is not trusted: it reads what strangers wrote. Whatever it asks for, the daemon checks again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::budget::Limits;
use crate::judge::Why;

/// A thousand names of the longest kind, and some air.
const LARGEST: u32 = 1 << 20;
/// Addresses that one answer opens, at most; the rest of them is left out of the answer and stays closed.
pub const MOST_ADDRESSES: usize = 32;

/// What the resolver is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToResolver {
    /// First, and once.
    Start {
        /// Of each guest.
        limits: Limits,
        /// Whom to ask; those of the file when there are none.
        upstreams: Vec<SocketAddr>,
        /// As `resolv.conf(5)` has it.
        resolv_conf: PathBuf,
        /// Where it listens: no answer may lead there, and no upstream is there.
        bridge: Ipv4Addr,
    },
    /// A guest may ask from here on, or may ask something else.
    Guest {
        /// Who.
        address: Ipv4Addr,
        /// Names of its allowlist; anything when absent.
        names: Option<Vec<String>>,
    },
    /// A guest may not ask any more.
    Forget {
        /// Who.
        address: Ipv4Addr,
    },
    /// What became of a wish to open addresses.
    Opened {
        /// Of the wish.
        id: u64,
        /// What became of it.
        outcome: Opening,
    },
}

/// What became of a wish to open addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// They are open.
    Open,
    /// One of them is the host's own, or in a network of it: nothing is open.
    Own,
    /// Nothing is open, for another reason.
    Closed,
}

/// What the resolver has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromResolver {
    /// Whom it asks; said first, and when it changes.
    Upstreams {
        /// Whom.
        list: Vec<SocketAddr>,
        /// Why none of them answers, while that is so.
        failing: Option<String>,
    },
    /// Asks for addresses to be opened to a guest; the answer that names them waits.
    Open {
        /// Repeated in what becomes of it.
        id: u64,
        /// To whom.
        guest: Ipv4Addr,
        /// Names of its allowlist that stand for them, as they stand there: each opens its own ports.
        names: Vec<String>,
        /// Which.
        addresses: Vec<Ipv4Addr>,
        /// For how long.
        seconds: u32,
    },
    /// A guest got no answer.
    Denied {
        /// Who.
        guest: Ipv4Addr,
        /// To which question: printable, and short.
        question: String,
        /// Why.
        why: Why,
    },
}

/// Writes one message.
///
/// # Errors
/// The line is closed, or the message too large for it.
pub async fn send<T: Serialize + Sync>(line: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= LARGEST)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message is too large"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    line.write_all(&frame).await
}

/// Reads one message; `None` at the end. Not to be cancelled: a half-read message is lost.
///
/// # Errors
/// The line broke, or what came is no message.
pub async fn receive<T: DeserializeOwned>(line: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match line.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length);
    if length > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is too large",
        ));
    }
    let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    line.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}
