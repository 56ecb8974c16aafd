//! A cloud image, and who publishes it: over a line that breaks once.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentlab_testkit::runner_path;
use anyhow::{Context as _, Result, ensure};

const IMAGE: &str = "debian-13-generic-amd64.qcow2";
const CHECKSUMS: &str = "SHA256SUMS";

/// A cloud image, made at the first call and found by later runs while its recipe is the same, with its checksum in a list
/// beside it: their directory.
pub(crate) fn image() -> Result<PathBuf> {
    let maker = Path::new(env!("CARGO_MANIFEST_DIR")).join("cloud-image");
    let target = runner_path();
    let target = target.ancestors().nth(2).context("target directory")?;
    let dir = target.join("cloud-image");
    let is_newer = |one: &Path, other: &Path| -> Result<bool> {
        Ok(std::fs::metadata(one)?.mtime() >= std::fs::metadata(other)?.mtime())
    };
    let list = dir.join(CHECKSUMS);
    if list.exists() && is_newer(&list, &maker)? {
        return Ok(dir);
    }
    std::fs::create_dir_all(&dir)?;
    for (program, argument) in [(maker.as_path(), IMAGE), (Path::new("sha256sum"), IMAGE)] {
        let output = Command::new(program)
            .arg(argument)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?
            .wait_with_output()?;
        ensure!(
            output.status.success(),
            "{} ended with {}",
            program.display(),
            output.status
        );
        if program != maker {
            std::fs::write(&list, output.stdout)?;
        }
    }
    Ok(dir)
}

/// Serves a directory until the test's process ends.
pub(crate) struct Publisher {
    address: String,
    /// Bytes of the image that went out.
    sent: Arc<AtomicU64>,
    length: u64,
}

impl Publisher {
    /// Whoever fetches the image loses the first connection in the middle.
    pub(crate) fn of(dir: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let length = std::fs::metadata(dir.join(IMAGE))?.len();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is the client's business.
                let _ = serve(stream, &dir, &counted);
            }
        });
        Ok(Self {
            address,
            sent,
            length,
        })
    }

    /// Addresses of the image and of the list.
    pub(crate) fn urls(&self) -> [String; 2] {
        [IMAGE, CHECKSUMS].map(|name| format!("{}/{name}", self.address))
    }

    /// Bytes of the image that went out, and how many it has.
    pub(crate) fn sent_of(&self) -> (u64, u64) {
        (self.sent.load(Ordering::SeqCst), self.length)
    }
}

fn serve(mut stream: TcpStream, dir: &Path, sent: &AtomicU64) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().context("no request")??;
    let name = first
        .split(' ')
        .nth(1)
        .context("no path")?
        .trim_start_matches('/')
        .to_owned();
    let mut from = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse()?;
        }
    }
    let mut file = std::fs::File::open(dir.join(&name))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from))?;
    let (status, part) = if from > 0 {
        (
            "206 Partial Content",
            format!("Content-Range: bytes {from}-{}/{length}\r\n", length - 1),
        )
    } else {
        ("200 OK", String::new())
    };
    let rest = length - from;
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{part}Content-Length: {rest}\r\nConnection: close\r\n\r\n"
    )?;
    let breaks = name == IMAGE && from == 0;
    let gone = std::io::copy(&mut file.take(if breaks { rest / 2 } else { rest }), &mut stream)?;
    if name == IMAGE {
        sent.fetch_add(gone, Ordering::SeqCst);
    }
    Ok(())
}
