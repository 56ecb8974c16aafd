//! Both ends of the framed line against noise: whatever came before, who knocks next is heard.

use std::time::Duration;

use agentlab_channel::{Acceptor, FramedStream, connect};
use agentlab_protocol::frame::{FLUSH_BYTES, FrameKind, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::timeout;

use super::frame::kind;
use super::{Outcome, Target};
use crate::input::Input;

pub(super) const TARGET: Target = Target {
    name: "channel",
    seeds,
    words: &["\u{0}\u{0}\u{0}\u{0}", "AL\u{1}"],
    run,
    longest: 6_000,
    base_bytes: 256 << 10,
    bytes_per_byte: 64,
    inputs: 350,
};

/// By the paused clock: it costs nothing, and whoever hangs is found at once.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_NOISE: usize = 40_000;
const GREETING: &[u8] = b"is anybody there?";

fn seeds() -> Vec<Vec<u8>> {
    // Orders of `noise`: kind, connection, length, payload.
    let exchange = b"\x40\x04\x01\x00\x00\x06\x01\x00\x05hello\x06\x01\x00\x05again\x07\x01\x00\x00".to_vec();
    let replaced = b"\x10\x04\x01\x00\x00\x04\x02\x00\x00\x06\x01\x00\x03old\x08\x02\x00\x00".to_vec();
    let mut frames = vec![0xff, 0, 0, 0, 60];
    encode(FrameKind::Syn, 9, b"", &mut frames);
    encode(FrameKind::Data, 9, b"raw bytes", &mut frames);
    vec![
        exchange,
        replaced,
        frames,
        b"\x01\x00\x00\x00\x08nonsense".to_vec(),
    ]
}

fn run(input: &[u8]) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let Ok(runtime) = runtime else {
        panic!("no runtime")
    };
    runtime.block_on(async {
        let (room, noise) = noise(input);
        let heard = match timeout(PATIENCE, host_hears_noise(room, &noise)).await {
            Ok(heard) => heard,
            Err(_) => panic!("a host does not notice the end of its line"),
        };
        if timeout(PATIENCE, guest_after_noise(room, &noise)).await.is_err() {
            panic!("after this noise no guest is heard any more");
        }
        if timeout(PATIENCE, guest_hears_noise(room, &noise)).await.is_err() {
            panic!("a guest that heard this noise does not get through");
        }
        let bits = usize::BITS - heard.echoed.leading_zeros();
        let words = [
            "connection ".repeat(heard.connections.min(8)),
            "echo ".repeat(usize::try_from(bits).unwrap_or(0)),
            "ended ".repeat(heard.ended.min(8)),
        ];
        Outcome {
            accepted: heard.connections > 0,
            words: words.concat(),
        }
    })
}

/// How much the line holds, and what is on it: frames of any kind, and raw bytes.
fn noise(input: &[u8]) -> (usize, Vec<u8>) {
    let mut script = Input::new(input);
    let room = usize::from(script.byte()) * 64 + 64;
    let mut noise = Vec::new();
    while !script.is_empty() {
        let order = script.byte();
        let connection = u32::from(script.byte());
        let length = usize::from(script.short());
        match order {
            0..=3 => noise.extend_from_slice(script.take(length)),
            // With the zeroes that belong before it, or without.
            4 => {
                noise.resize(noise.len() + FLUSH_BYTES, 0);
                encode(FrameKind::Syn, connection, b"", &mut noise);
            }
            _ => {
                let kind = kind(order.wrapping_sub(4));
                let payload = if kind == FrameKind::Data {
                    script.take(length)
                } else {
                    b""
                };
                encode(kind, connection, payload, &mut noise);
            }
        }
        if noise.len() > MAX_NOISE {
            break;
        }
    }
    (room, noise)
}

/// What a host met on its line.
#[derive(Debug, Default)]
struct Heard {
    connections: usize,
    /// Bytes said back.
    echoed: usize,
    /// Streams that came to an end before a next one began.
    ended: usize,
}

async fn host_hears_noise(room: usize, noise: &[u8]) -> Heard {
    let (ours, theirs) = duplex(room);
    let (heard, ()) = tokio::join!(serve(Acceptor::new(ours)), async {
        drop(make_noise(theirs, noise).await);
    });
    heard
}

async fn guest_after_noise(room: usize, noise: &[u8]) {
    let (ours, theirs) = duplex(room);
    tokio::join!(serve(Acceptor::new(ours)), async {
        greet(make_noise(theirs, noise).await).await;
    });
}

async fn guest_hears_noise(room: usize, noise: &[u8]) {
    let (ours, theirs) = duplex(room);
    tokio::join!(
        async {
            let ours = make_noise(ours, noise).await;
            serve(Acceptor::new(ours)).await
        },
        greet(theirs)
    );
}

/// A guest that asks and wants its own words back.
async fn greet(line: DuplexStream) {
    let Ok(mut stream) = connect(line).await else {
        panic!("a guest gave up knocking")
    };
    let mut heard = vec![0; GREETING.len()];
    let exchange = async {
        stream.write_all(GREETING).await?;
        stream.flush().await?;
        stream.read_exact(&mut heard).await
    };
    if let Err(error) = exchange.await {
        panic!("a guest that was let in is cut off: {error}");
    }
    assert_eq!(heard, GREETING, "a guest hears somebody else's words");
}

/// Writes all of it, reading meanwhile what comes back, as a line without flow control would.
async fn make_noise(line: DuplexStream, noise: &[u8]) -> DuplexStream {
    let (mut reader, mut writer): (ReadHalf<_>, WriteHalf<_>) = split(line);
    let mut scratch = [0; 1024];
    let mut rest = noise;
    while !rest.is_empty() {
        tokio::select! {
            written = writer.write(rest) => {
                let Ok(written) = written else { break };
                rest = rest.get(written..).unwrap_or_default();
            }
            read = reader.read(&mut scratch) => {
                if !matches!(read, Ok(1..)) {
                    break;
                }
            }
        }
    }
    reader.unsplit(writer)
}

/// A host that says back what it hears, one guest after the other, until the line ends.
async fn serve(mut acceptor: Acceptor<DuplexStream>) -> Heard {
    let mut current = None;
    let mut heard = Heard::default();
    loop {
        tokio::select! {
            next = acceptor.next() => match next {
                Ok(Some(stream)) => {
                    heard.connections += 1;
                    current = Some(stream);
                }
                Ok(None) | Err(_) => return heard,
            },
            () = echo(current.as_mut(), &mut heard.echoed), if current.is_some() => {
                heard.ended += 1;
                current = None;
            }
        }
    }
}

async fn echo(stream: Option<&mut FramedStream<DuplexStream>>, echoed: &mut usize) {
    let Some(stream) = stream else { return };
    let mut words = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut words).await {
        *echoed += count;
        let words = words.get(..count).unwrap_or_default();
        if stream.write_all(words).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}
