//! What a VM is born with, read by the runner from a carrier it does not trust.

use std::net::{Ipv4Addr, SocketAddrV4};

use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::{MAX_SEED_BYTES, SEED_MAGIC, SEED_VERSION, Seed, SeedChannel};

use super::{Outcome, Target};
use crate::properties::{fit_to_print, text};

pub(super) const TARGET: Target = Target {
    name: "seed",
    seeds,
    words: &["ALsd", "\u{0}\u{1}", "agentlab-1000", "=", "\u{0}"],
    run,
    longest: 1024,
    base_bytes: 256 << 10,
    bytes_per_byte: 64,
    inputs: 20_000,
};

fn example(hostname: &str, channels: Vec<SeedChannel>) -> Seed {
    let host = Ipv4Addr::new(10, 77, 0, 1);
    Seed {
        vmid: 1000,
        sandbox: *b"\x01\x93\x00\x11\x22\x33\x74\x44\x85\x55\x66\x77\x88\x99\xaa\xbb",
        hostname: hostname.to_owned(),
        address: Ipv4Addr::new(10, 77, 3, 232),
        prefix: 16,
        gateway: host,
        bootstrap: SocketAddrV4::new(host, 8844),
        artifacts: SocketAddrV4::new(host, 8846),
        token: Secret32::new([0x11; 32]),
        spki_sha256: [0x22; 32],
        channels,
        clock: 1_800_000_000,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        example("agentlab-1000", vec![SeedChannel::Serial, SeedChannel::Tls]),
        example(&"x".repeat(63), vec![SeedChannel::Tls]),
    ];
    let mut inputs: Vec<Vec<u8>> = seeds.iter().filter_map(|seed| seed.encode().ok()).collect();
    inputs.extend(
        seeds
            .iter()
            .filter_map(|seed| Some(seed.to_text().ok()?.into_bytes())),
    );
    let mut damaged = inputs.first().cloned().unwrap_or_default();
    damaged.truncate(100);
    inputs.push(damaged);
    // The body alone, as `with_checksum` completes it.
    inputs.extend(
        inputs
            .first()
            .and_then(|whole| whole.get(8..))
            .map(<[u8]>::to_vec),
    );
    inputs
}

fn run(input: &[u8]) -> Outcome {
    let raw = decoded(input);
    let repaired = decoded(&with_checksum(input));
    let outcome = match Seed::from_text(&text(input)) {
        Ok(seed) => {
            whole(&seed);
            Outcome::accepted("text")
        }
        Err(error) => {
            fit_to_print(&error.to_string());
            raw
        }
    };
    if outcome.accepted {
        return outcome;
    }
    Outcome {
        words: format!("{}\n{}", outcome.words, repaired.words),
        accepted: repaired.accepted,
    }
}

fn decoded(bytes: &[u8]) -> Outcome {
    match Seed::decode(bytes) {
        Ok(seed) => {
            let padded = [bytes, &[0xa5; 40]].concat();
            assert_eq!(
                Seed::decode(&padded).as_ref(),
                Ok(&seed),
                "padding changes a seed"
            );
            whole(&seed);
            Outcome::accepted("bytes")
        }
        Err(error) => {
            let message = error.to_string();
            fit_to_print(&message);
            Outcome::refused(message)
        }
    }
}

/// Whatever can be read can be written, and is read back the same.
fn whole(seed: &Seed) {
    let Ok(encoded) = seed.encode() else {
        panic!("a seed that was read cannot be written")
    };
    assert!(
        encoded.len() <= MAX_SEED_BYTES,
        "{} bytes fit no carrier",
        encoded.len()
    );
    assert_eq!(
        Seed::decode(&encoded).as_ref(),
        Ok(seed),
        "written and read back it is another"
    );
    let Ok(text) = seed.to_text() else {
        panic!("a seed has bytes and no text")
    };
    assert_eq!(Seed::from_text(&text).as_ref(), Ok(seed), "its text is another's");
    let other = Seed {
        token: Secret32::new([0; 32]),
        ..seed.clone()
    };
    assert_eq!(
        format!("{seed:?}"),
        format!("{other:?}"),
        "what is printed depends on the token"
    );
}

/// Header and checksum around a body, for mutations alone never find a right checksum.
fn with_checksum(body: &[u8]) -> Vec<u8> {
    let body = body.get(..MAX_SEED_BYTES - 12).unwrap_or(body);
    let mut bytes = SEED_MAGIC.to_vec();
    bytes.extend_from_slice(&SEED_VERSION.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(body.len() + 12).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(body);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    bytes
}
