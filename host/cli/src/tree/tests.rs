//! Against GNU tar, and against what a guest would rather send.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::unpack::{Tally, Unpack, UnpackError};
use super::*;

fn entry(name: &str, kind: Kind, size: u64) -> Entry {
    Entry {
        kind,
        ..Entry::plain(name, size)
    }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, body) in entries {
        bytes.extend(entry.header());
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len() + entry.padding(), 0);
    }
    bytes.extend(END);
    bytes
}

fn file<'a>(name: &str, body: &'a [u8]) -> (Entry, &'a [u8]) {
    (Entry::plain(name, u64::try_from(body.len()).unwrap()), body)
}

/// Unpacks in pieces of a size.
fn unpacked(bytes: &[u8], piece: usize, limit: u64) -> Result<(tempfile::TempDir, Tally), UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let mut unpack = Unpack::into(dir.path(), limit);
    let mut reader = Reader::default();
    for piece in bytes.chunks(piece) {
        reader.push(piece, &mut unpack)?;
    }
    reader.finish()?;
    Ok((dir, unpack.finish()?))
}

fn tar(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let done = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(done.status.success());
    done.stdout
}

fn listed(dir: &Path) -> Vec<String> {
    let (items, _) = pack::walk(dir).unwrap();
    items
        .iter()
        .map(|item| String::from_utf8(item.entry.name.clone()).unwrap())
        .collect()
}

#[test]
fn a_directory_survives_gnu_tar_both_ways() {
    let source = tempfile::tempdir().unwrap();
    let deep = source.path().join("d".repeat(120)).join("e".repeat(90));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("long"), "long").unwrap();
    std::fs::write(source.path().join("empty"), "").unwrap();
    std::fs::write(source.path().join("run.sh"), vec![7; 100_000]).unwrap();
    std::os::unix::fs::symlink("run.sh", source.path().join("link")).unwrap();
    let (items, packed) = pack::walk(source.path()).unwrap();
    assert_eq!((packed.files, packed.directories, packed.links), (3, 2, 1));
    let bodies: Vec<Vec<u8>> = items
        .iter()
        .map(|item| {
            if item.entry.kind == Kind::File {
                std::fs::read(&item.path).unwrap()
            } else {
                Vec::new()
            }
        })
        .collect();
    let entries: Vec<(Entry, &[u8])> = items
        .iter()
        .zip(&bodies)
        .map(|(item, body)| (item.entry.clone(), body.as_slice()))
        .collect();
    let target = tempfile::tempdir().unwrap();
    let there = target.path().display().to_string();
    tar(&["-C", &there, "-xof", "-"], &archive(&entries));
    assert_eq!(listed(target.path()), listed(source.path()));
    assert_eq!(
        std::fs::read(target.path().join("run.sh")).unwrap(),
        vec![7; 100_000]
    );

    let back = tar(&["-C", &there, "-cf", "-", "."], &[]);
    let (dir, tally) = unpacked(&back, 700, 1 << 20).unwrap();
    assert_eq!(listed(dir.path()), listed(source.path()));
    assert_eq!(
        (tally.files, tally.links, tally.bytes, tally.left_out_count),
        (3, 1, 100_004, 0)
    );
    assert_eq!(
        std::fs::read_link(dir.path().join("link")).unwrap(),
        PathBuf::from("run.sh")
    );
}

#[test]
fn what_would_land_elsewhere_or_be_obeyed_is_left_out_and_said() {
    let link = |name: &str, target: &str| (entry(name, Kind::Link(target.into()), 0), &b""[..]);
    let bytes = archive(&[
        file("good", b"good"),
        file("/etc/cron.d/x", b"bad"),
        file("../up", b"bad"),
        file("a/../../up", b"bad"),
        file("GOOD", b"bad"),
        file("repo/.git/config", b"bad"),
        file("repo/.git/hooks/pre-commit", b"bad"),
        file("a\nb", b"bad"),
        (entry("device", Kind::Other(b'3'), 0), b""),
        (entry("hard", Kind::Other(b'1'), 0), b""),
        link("absolute", "/etc/passwd"),
        link("above", "../../x"),
        link("sub/roundabout", "good/../../.."),
        link("sub/fine", "../good"),
        file("bare/HEAD", b"ref: refs/heads/main\n"),
    ]);
    let (dir, tally) = unpacked(&bytes, 512, 1 << 20).unwrap();
    assert_eq!(
        listed(dir.path()),
        ["bare", "good", "sub", "bare/HEAD.guest", "sub/fine"]
    );
    assert_eq!(std::fs::read(dir.path().join("good")).unwrap(), b"good");
    let told = tally.left_out.join("\n");
    for name in [
        "/etc/cron.d/x",
        "../up",
        "GOOD",
        "repo/.git",
        "device",
        "hard",
        "absolute",
        "above",
        "roundabout",
    ] {
        assert!(told.contains(name), "{name} is missing in {told}");
    }
    assert!(
        told.contains("agentlab job apply") && told.matches(".git").count() == 1,
        "{told}"
    );
}

#[test]
fn an_archive_that_is_too_large_or_cut_or_false_is_refused() {
    let large = archive(&[file("a", &[0; 600]), file("b", &[0; 600])]);
    assert!(matches!(
        unpacked(&large, 4096, 1000),
        Err(UnpackError::TooLarge(1000))
    ));
    // Announced only: nobody waits for the bytes to come.
    let announced = Entry::plain("huge", u64::MAX).header();
    assert!(matches!(
        unpacked(&announced, 512, 1000),
        Err(UnpackError::TooLarge(_))
    ));
    let whole = archive(&[file("a", b"abc")]);
    for end in [0, 100, 513, 1024] {
        let refused = unpacked(&whole[..end], 512, 1000);
        assert!(matches!(refused, Err(UnpackError::Tar(TarError::Cut))), "{end}");
    }
    let mut false_sum = whole.clone();
    false_sum[0] ^= 1;
    assert!(matches!(
        unpacked(&false_sum, 512, 1000),
        Err(UnpackError::Tar(TarError::Checksum))
    ));
    let endless = entry("././@LongLink", Kind::Other(b'L'), 1 << 40).header();
    assert!(matches!(
        unpacked(&endless, 512, u64::MAX),
        Err(UnpackError::Tar(TarError::Name))
    ));
    let twice = archive(&[file("a", b"1"), file("a/b", b"2")]);
    assert!(matches!(
        unpacked(&twice, 512, 1000),
        Err(UnpackError::Write { .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_pieces_make_no_difference(
        noise in proptest::collection::vec(any::<u8>(), 0..1500),
        at in 0usize..1500,
        piece in 1usize..700,
    ) {
        let mut bytes = archive(&[file("a/b", b"hello"), file("c", &[9; 700])]);
        let len = bytes.len();
        for (offset, byte) in noise.iter().enumerate().take(3) {
            bytes[(at + offset * 7) % len] = *byte;
        }
        for bytes in [&bytes, &noise] {
            let whole = unpacked(bytes, bytes.len().max(1), 1 << 16).map(|(dir, tally)| (listed(dir.path()), tally));
            let parts = unpacked(bytes, piece, 1 << 16).map(|(dir, tally)| (listed(dir.path()), tally));
            prop_assert_eq!(format!("{:?}", whole.is_ok()), format!("{:?}", parts.is_ok()));
            if let (Ok(whole), Ok(parts)) = (whole, parts) {
                prop_assert_eq!(whole, parts);
            }
        }
    }
}
