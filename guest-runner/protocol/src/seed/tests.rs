//! The documented seed, and seeds that are none.

use proptest::prelude::*;

use super::*;

/// The seed of docs/protocol.md, vector 1.
fn documented() -> Seed {
    Seed {
        vmid: 1000,
        sandbox: *b"\x01\x93\x00\x11\x22\x33\x74\x44\x85\x55\x66\x77\x88\x99\xaa\xbb",
        hostname: "agentlab-1000".to_owned(),
        address: Ipv4Addr::new(10, 77, 3, 232),
        prefix: 16,
        gateway: Ipv4Addr::new(10, 77, 0, 1),
        bootstrap: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8844),
        artifacts: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8846),
        token: Secret32::new([0x11; 32]),
        spki_sha256: [0x22; 32],
        channels: vec![SeedChannel::Serial, SeedChannel::Tls],
        clock: 1_800_000_000,
    }
}

const DOCUMENT: &str = include_str!("../../../../docs/protocol.md");

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The document wraps its vectors; compared without white space.
fn document_holds(vector: &str) -> bool {
    DOCUMENT.split_whitespace().collect::<String>().contains(vector)
}

#[test]
fn the_document_shows_the_bytes_this_crate_writes() {
    let bytes = documented().encode().unwrap();
    let text = documented().to_text().unwrap();
    assert!(document_holds(&hexadecimal(&bytes)), "{}", hexadecimal(&bytes));
    assert!(document_holds(&text), "{text}");
    assert_eq!(Seed::decode(&bytes).unwrap(), documented());
    assert_eq!(Seed::from_text(&format!(" {text}==\n")).unwrap(), documented());
}

#[test]
fn the_longest_seed_fits_an_smbios_field() {
    let channels = vec![SeedChannel::Serial, SeedChannel::Vsock, SeedChannel::Tls];
    let longest = Seed {
        hostname: "x".repeat(63),
        channels,
        ..documented()
    };
    assert!(longest.encode().unwrap().len() <= MAX_SEED_BYTES);
    assert!(longest.to_text().unwrap().len() <= 400);
    assert_eq!(Seed::decode(&longest.encode().unwrap()).unwrap(), longest);
}

#[test]
fn every_single_damaged_byte_is_noticed() {
    let bytes = documented().encode().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(Seed::decode(&damaged).is_err(), "byte {at}");
        assert!(Seed::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn padding_behind_a_seed_is_ignored() {
    let mut bytes = documented().encode().unwrap();
    bytes.extend_from_slice(&[0xff; 40]);
    assert_eq!(Seed::decode(&bytes).unwrap(), documented());
}

#[test]
fn a_later_version_is_named_and_a_later_field_or_channel_skipped() {
    let bytes = documented().encode().unwrap();
    let mut later = bytes.clone();
    later[5] = 2;
    assert_eq!(Seed::decode(&later), Err(SeedError::Version(2)));

    // Channel 9 before TLS, and five unknown bytes before the checksum.
    let mut longer = bytes[..bytes.len() - 5].to_vec();
    longer.extend_from_slice(&[9, 3, 1, 2, 3, 4, 5]);
    longer[33] = 3;
    let total = u16::try_from(longer.len() + 4).unwrap();
    longer[6..8].copy_from_slice(&total.to_be_bytes());
    let checksum = crc32fast::hash(&longer);
    longer.extend_from_slice(&checksum.to_be_bytes());
    assert_eq!(Seed::decode(&longer).unwrap(), documented());
}

#[test]
fn a_seed_that_cannot_work_is_not_written() {
    for hostname in ["", "-a", "a-", "a.b", "a b", "\u{e4}", &"x".repeat(64)] {
        let seed = Seed {
            hostname: hostname.to_owned(),
            ..documented()
        };
        assert!(
            matches!(seed.encode(), Err(SeedError::Hostname(_))),
            "{hostname:?}"
        );
    }
    for prefix in [0, 31, 32, 255] {
        assert_eq!(
            Seed {
                prefix,
                ..documented()
            }
            .encode(),
            Err(SeedError::Prefix(prefix))
        );
    }
    for channels in [vec![], vec![SeedChannel::Tls, SeedChannel::Tls]] {
        assert_eq!(
            Seed {
                channels,
                ..documented()
            }
            .encode(),
            Err(SeedError::Channels)
        );
    }
}

#[test]
fn a_printed_seed_shows_no_token() {
    let printed = format!("{:?}", documented());
    assert!(
        printed.contains("token: [redacted]") && !printed.contains("17, 17"),
        "{printed}"
    );
}

proptest! {
    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Seed::decode(&bytes);
    }

    #[test]
    fn decoding_never_panics_behind_a_right_checksum(mut bytes in proptest::collection::vec(any::<u8>(), 127..300)) {
        let total = bytes.len();
        bytes[..4].copy_from_slice(&SEED_MAGIC);
        bytes[4..6].copy_from_slice(&SEED_VERSION.to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
        let checksum = crc32fast::hash(&bytes[..total - 4]);
        bytes[total - 4..].copy_from_slice(&checksum.to_be_bytes());
        let _ = Seed::decode(&bytes);
    }

    #[test]
    fn text_decoding_never_panics(text in ".{0,700}") {
        let _ = Seed::from_text(&text);
    }

    #[test]
    fn what_is_written_is_read(
        vmid in any::<u32>(), sandbox in any::<[u8; 16]>(), token in any::<[u8; 32]>(), pin in any::<[u8; 32]>(),
        hostname in "[a-zA-Z0-9]([a-z0-9-]{0,61}[a-z0-9])?", addresses in any::<[u32; 4]>(), ports in any::<[u16; 2]>(),
        prefix in 1u8..=30, clock in any::<u64>(), order in 0usize..6,
    ) {
        use SeedChannel::{Serial, Tls, Vsock};
        let [address, gateway, bootstrap, artifacts] = addresses.map(Ipv4Addr::from);
        let channels =
            [vec![Serial], vec![Tls], vec![Serial, Tls], vec![Tls, Vsock], vec![Vsock, Serial, Tls], vec![Serial, Vsock, Tls]];
        let seed = Seed {
            vmid, sandbox, hostname, address, prefix, gateway, clock,
            bootstrap: SocketAddrV4::new(bootstrap, ports[0]),
            artifacts: SocketAddrV4::new(artifacts, ports[1]),
            token: Secret32::new(token),
            spki_sha256: pin,
            channels: channels[order].clone(),
        };
        prop_assert_eq!(Seed::decode(&seed.encode().unwrap()).unwrap(), seed.clone());
        prop_assert_eq!(Seed::from_text(&seed.to_text().unwrap()).unwrap(), seed);
    }
}
