//! A job's log: one JSON line per record. The byte offset after a line is the record's id, so that a reader resumes
//! without an index. Each line ends with its number, so that the file itself says how far it is: whatever is appended
//! again, after a crash or a lost answer, stands there once.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use agentlab_api::{LogRecord, LogStream};
use jiff::Timestamp;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::beneath::Place;

/// Bytes one read looks at, at most; one record longer than that is still returned.
const READ_BYTES: u64 = 1 << 20;

/// Ends the last line of a log that reached its bound. No text can imitate it: quotes in it are escaped.
const TRUNCATED_TAIL: &[u8] = b",\"truncated\":true}\n";
/// Begins the end of every other line, with the same certainty.
const PIECE_TAIL: &str = ",\"piece\":";
/// Longest such end: the beginning, twenty digits, a brace and the line's own end.
const PIECE_TAIL_BYTES: usize = PIECE_TAIL.len() + 22;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    time: Timestamp,
    stream: LogStream,
    text: String,
    /// The writer's number of the record; always the last field but for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    piece: Option<u64>,
    /// Set on the marker that says the bound was reached; always the last field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Appends those of the records, numbered from `first`, that are not there yet. Returns the new end of the log.
pub(super) fn append(
    root: &OwnedFd,
    place: &Place,
    (first, records): (u64, &[(LogStream, String)]),
    now: Timestamp,
    max_bytes: u64,
) -> io::Result<u64> {
    // The directory is made again if somebody removed it.
    drop(place.parent(root, true)?);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
    let (mut file, size) = place.open(root, flags)?.ok_or(io::ErrorKind::NotFound)?;
    let size = cut_torn_tail(&file, size)?;
    if is_truncated(&file, size)? {
        return Ok(size);
    }
    let next = last_piece(&file, size)?.map_or(0, |last| last.saturating_add(1));
    let mut block = Vec::new();
    let numbered = (first..).zip(records).skip_while(|(piece, _)| *piece < next);
    for (piece, (stream, text)) in numbered {
        let line = encode(&Line {
            time: now,
            stream: *stream,
            text: text.clone(),
            piece: Some(piece),
            truncated: false,
        })?;
        if size + length(&block) + length(&line) > max_bytes {
            let text = format!("Output beyond {max_bytes} bytes is not kept.\n");
            block.extend(encode(&Line {
                time: now,
                stream: LogStream::Runner,
                text,
                piece: None,
                truncated: true,
            })?);
            break;
        }
        block.extend(line);
    }
    file.write_all(&block)?;
    Ok(size + length(&block))
}

/// Whole records after `after`. A last line without its end is not there yet.
pub(super) fn read(
    root: &OwnedFd,
    place: &Place,
    after: u64,
    max_records: usize,
) -> io::Result<Vec<LogRecord>> {
    let Some((mut file, size)) = place.open(root, OFlags::RDONLY)? else {
        return Ok(Vec::new());
    };
    if after >= size {
        return Ok(Vec::new());
    }
    file.seek(SeekFrom::Start(after))?;
    let mut reader = BufReader::new(file.take(size - after));
    let (mut offset, mut records, mut line) = (after, Vec::new(), Vec::new());
    while records.len() < max_records && offset - after < READ_BYTES {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        offset += length(&line);
        // A line that does not parse was begun before the offset given, or was damaged by a power cut.
        if let Ok(Line {
            time, stream, text, ..
        }) = serde_json::from_slice(&line)
        {
            records.push(LogRecord {
                offset,
                time,
                stream,
                text,
            });
        }
    }
    Ok(records)
}

/// Removes a last line that a crash left without its end, and returns the size that remains.
fn cut_torn_tail(file: &File, size: u64) -> io::Result<u64> {
    let mut end = size;
    let mut chunk = [0u8; 4096];
    while end > 0 {
        let start = end.saturating_sub(4096);
        let part = &mut chunk[..usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(part, start)?;
        if let Some(newline) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + u64::try_from(newline).unwrap_or(0) + 1;
            break;
        }
        end = start;
    }
    if end < size {
        file.set_len(end)?;
    }
    Ok(end)
}

fn is_truncated(file: &File, size: u64) -> io::Result<bool> {
    let mut tail = [0u8; TRUNCATED_TAIL.len()];
    match size.checked_sub(length(&tail)) {
        Some(start) => file
            .read_exact_at(&mut tail, start)
            .map(|()| tail == TRUNCATED_TAIL),
        None => Ok(false),
    }
}

/// The number that the last line carries.
fn last_piece(file: &File, size: u64) -> io::Result<Option<u64>> {
    let mut tail = [0u8; PIECE_TAIL_BYTES];
    let length = usize::try_from(size).unwrap_or(usize::MAX).min(tail.len());
    let tail = &mut tail[..length];
    file.read_exact_at(tail, size.saturating_sub(self::length(tail)))?;
    // The beginning may cut a character of the text in two.
    let tail = String::from_utf8_lossy(tail);
    let number = tail
        .rsplit_once(PIECE_TAIL)
        .and_then(|(_, rest)| rest.strip_suffix("}\n"));
    Ok(number.and_then(|number| number.parse().ok()))
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
