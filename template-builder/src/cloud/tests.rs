//! Whole builds from an image that a server of the test's own publishes, with curl, qemu-img and e2fsprogs as they are.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;
use crate::assembly::tests::Lab;
use crate::disk::{self, BootLoader, ROOT_OFFSET};
use crate::download::{kept_path, partial_path};
use crate::fingerprint;
use crate::shape::Shape;
use crate::store::{CACHE, Template, read_dir};

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    Good,
    /// Each connection ends after so many bytes of the file.
    Cut(usize),
    /// Cut too, and whatever part is asked for, the whole begins.
    CutWithoutParts(usize),
}

/// Serves files by name until the test's process ends.
pub(crate) struct Server {
    address: String,
    /// From which byte each request wanted a file.
    asked: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    pub(crate) fn start(files: Vec<(&'static str, Vec<u8>)>, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that hangs up is the client's business.
                let _ = serve(stream.unwrap(), &files, manners, &noted);
            }
        });
        Self { address, asked }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    files: &[(&str, Vec<u8>)],
    manners: Manners,
    asked: &Mutex<Vec<usize>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap()?;
    let name = first
        .split([' ', '/'])
        .find(|word| !word.is_empty() && *word != "GET")
        .unwrap_or_default()
        .to_owned();
    let mut from = 0;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    asked.lock().unwrap().push(from);
    let Some((_, file)) = files.iter().find(|(known, _)| *known == name) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let (status, from) = match manners {
        Manners::CutWithoutParts(_) => ("200 OK", 0),
        Manners::Good | Manners::Cut(_) if from > 0 => ("206 Partial Content", from),
        Manners::Good | Manners::Cut(_) => ("200 OK", 0),
    };
    let rest = &file[from..];
    let part = format!(
        "Content-Range: bytes {from}-{}/{}\r\n",
        file.len() - 1,
        file.len()
    );
    let part = if from > 0 { part } else { String::new() };
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{part}Content-Length: {}\r\nConnection: close\r\n\r\n",
        rest.len()
    )?;
    let most = match manners {
        Manners::Good => rest.len(),
        Manners::Cut(most) => most.min(rest.len()),
        // Only the first time, or nobody ever got it.
        Manners::CutWithoutParts(most) if asked.lock().unwrap().len() == 1 => most.min(rest.len()),
        Manners::CutWithoutParts(_) => rest.len(),
    };
    stream.write_all(&rest[..most])
}

fn run(program: &str, arguments: &[&str]) -> String {
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A cloud image as its makers publish it: a table, a boot loader, the lab's tree as its root.
pub(crate) fn published(lab: &Lab) -> Vec<u8> {
    let at = |name: &str| lab.dir.path().join(name).display().to_string();
    let mut boot = vec![0; 512];
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    let loader = BootLoader {
        boot,
        core: vec![0; 2048],
    };
    disk::create(Path::new(&at("cloud.raw")), 16, &[9; 32], &loader).unwrap();
    let place = format!("offset={ROOT_OFFSET}");
    run(
        "/sbin/mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            &place,
            "-d",
            &at("tree"),
            &at("cloud.raw"),
            "16M",
        ],
    );
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-c",
            &at("cloud.raw"),
            &at("cloud.qcow2"),
        ],
    );
    fs::read(at("cloud.qcow2")).unwrap()
}

const RECIPE: &str = "name = \"mine\"\npackages = [\"git\"]\n[[files]]\npath = \"/etc/two words\"\ncontent = \"x\"\nmode = \"0600\"\n\
    [[units]]\nname = \"own.service\"\ncontent = \"y\"\n";

fn built(lab: &Lab, recipe: &str, source: &Source, customise: bool) -> Result<Template> {
    let recipe = crate::recipe::parse(recipe, "r", Path::new("."))
        .unwrap()
        .in_shape(Shape::Proxmox);
    let owner = rustix::process::geteuid().as_raw();
    let order = Order {
        recipe: &recipe,
        runner: &lab.runner,
        mirror: None,
        force: false,
        tools: &lab.tools,
        home_owner: (owner, rustix::process::getegid().as_raw()),
    };
    match build(
        &lab.store(),
        &order,
        (source, customise),
        &mut Progress::new(false),
    )? {
        Outcome::Built(template) | Outcome::Unchanged(template) => Ok(template),
    }
}

fn inside(template: &Template, command: &str) -> String {
    let disk = format!("{}?offset={ROOT_OFFSET}", template.dir.join(WHOLE_DISK).display());
    run("/sbin/debugfs", &["-R", command, &disk])
}

fn kept(lab: &Lab) -> Vec<String> {
    read_dir(&lab.store().dir().join(CACHE)).unwrap()
}

#[test]
fn a_published_image_gets_runner_account_and_recipe_and_keeps_all_else() {
    let lab = Lab::new();
    let image = published(&lab);
    let sha256 = fingerprint::of_bytes(&image);
    let list = format!("{sha256} *cloud.qcow2\n").into_bytes();
    let server = Server::start(vec![("cloud.qcow2", image), ("SHA256SUMS", list)], Manners::Good);
    let source = Source::new(&server.url("cloud.qcow2"), None, Some(&server.url("SHA256SUMS"))).unwrap();
    let template = built(&lab, RECIPE, &source, true).unwrap();
    assert_eq!(lab.store().verify(&template).unwrap(), []);
    let manifest = &template.manifest;
    assert_eq!(
        (manifest.name.as_str(), manifest.suite.as_str()),
        ("mine-proxmox", "trixie")
    );
    assert!(manifest.packages.iter().any(|package| package.name == "git"));
    let noted = manifest.source.as_ref().unwrap();
    assert!(noted.sha256 == sha256 && noted.customised);

    assert!(
        inside(&template, "cat /etc/passwd")
            .ends_with("\nagent:x:1000:1000:AgentLab agent:/home/agent:/bin/bash\n")
    );
    assert_eq!(
        inside(&template, "cat /boot/vmlinuz-6.12-test"),
        "kernel",
        "what was there stays"
    );
    assert!(inside(&template, "stat /usr/lib/agentlab/agent-runner").contains("Mode:  0755"));
    assert!(inside(&template, "stat \"/etc/two words\"").contains("Mode:  0600"));
    let started = inside(&template, "ls /etc/systemd/system/multi-user.target.wants");
    assert!(
        started.contains("agent-runner.service") && started.contains("own.service"),
        "{started}"
    );
    assert_eq!(inside(&template, "cat /etc/machine-id"), "");
    assert!(inside(&template, "stat /home/agent").contains("Mode:  0700"));

    let asked = server.asked().len();
    let again = built(&lab, RECIPE, &source, true).unwrap();
    assert_eq!(
        (again, server.asked().len()),
        (template, asked + 1),
        "only the list is read again"
    );
}

#[test]
fn a_connection_that_breaks_off_is_gone_on_with_and_a_server_without_parts_is_begun_anew() {
    let lab = Lab::new();
    let image = published(&lab);
    let (sha256, length) = (fingerprint::of_bytes(&image), image.len());
    for manners in [Manners::Cut(length / 3 + 1), Manners::CutWithoutParts(length / 2)] {
        let lab = Lab::new();
        let server = Server::start(vec![("cloud.qcow2", image.clone())], manners);
        let source = Source::new(&server.url("cloud.qcow2"), Some(&sha256), None).unwrap();
        built(&lab, RECIPE, &source, true).unwrap();
        let asked = server.asked();
        match manners {
            Manners::Cut(most) => assert_eq!(asked, [0, most, 2 * most]),
            Manners::CutWithoutParts(most) => assert_eq!(asked, [0, most, 0]),
            Manners::Good => {}
        }
    }
}

#[test]
fn what_a_dead_build_had_fetched_is_gone_on_with_and_what_is_not_of_the_image_is_fetched_anew() {
    let lab = Lab::new();
    let image = published(&lab);
    let sha256 = fingerprint::of_bytes(&image);
    let third = image.len() / 3;
    let wrong = vec![b'x'; third];
    for (left, asked) in [(&image[..third], vec![third]), (&wrong, vec![third, 0])] {
        let lab = Lab::new();
        let server = Server::start(vec![("cloud.qcow2", image.clone())], Manners::Good);
        let source = Source::new(&server.url("cloud.qcow2"), Some(&sha256), None).unwrap();
        let store = lab.store();
        let partial = partial_path(&kept_path(store.dir(), &sha256));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, left).unwrap();
        built(&lab, RECIPE, &source, true).unwrap();
        assert_eq!(server.asked(), asked);
    }
}

#[test]
fn what_has_another_checksum_is_never_looked_into_and_not_kept() {
    let lab = Lab::new();
    let server = Server::start(vec![("cloud.qcow2", published(&lab))], Manners::Good);
    let source = Source::new(&server.url("cloud.qcow2"), Some(&"0".repeat(64)), None).unwrap();
    let error = built(&lab, RECIPE, &source, true).unwrap_err();
    assert!(error.to_string().contains("was named for it"), "{error}");
    assert_eq!(kept(&lab), Vec::<String>::new());
    assert_eq!(lab.store().list().unwrap().0, []);

    let gone = Source::new(&server.url("other.qcow2"), Some(&"0".repeat(64)), None).unwrap();
    let error = built(&lab, RECIPE, &gone, true).unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
}

/// Stands in for the namespaces, and for apt in them: `unshare ... install SYSTEM SOURCES PACKAGE...`.
const APT: &str = r#"while [ "$1" != install ]; do shift; done
system=$2
{ echo "$3"; shift 3; echo "$*"; } >"$system/usr/bin/installed"
[ -e "$system/etc/passwd" ] || exit 9
case $* in *nowhere*) echo "E: Unable to locate package nowhere"; exit 100 ;; esac
echo 'mail:x:8:8::/var/mail:/bin/sh' >>"$system/etc/passwd"
mkdir -p "$system/var/log/apt" "$system/usr/lib/new"
echo noise >"$system/var/log/apt/history.log"
echo new >"$system/usr/lib/new/jq"
rm "$system/usr/bin/busybox"
printf '\nPackage: jq\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.7\n' >>"$system/var/lib/dpkg/status""#;

#[test]
fn packages_that_an_image_lacks_are_installed_and_all_that_they_change_is_in_it() {
    if !agentlab_testkit::root_tier() {
        return;
    }
    let mut lab = Lab::new();
    lab.stand_in("unshare", APT);
    lab.tools.unshare = lab.dir.path().join("unshare");
    let image = published(&lab);
    let sha256 = fingerprint::of_bytes(&image);
    let server = Server::start(vec![("cloud.qcow2", image)], Manners::Good);
    let source = Source::new(&server.url("cloud.qcow2"), Some(&sha256), None).unwrap();
    let error = built(&lab, "name = \"mine\"\npackages = [\"nowhere\"]\n", &source, true).unwrap_err();
    assert!(
        error.to_string().contains("Unable to locate package nowhere"),
        "{error}"
    );
    assert!(error.hint().is_some());
    assert_eq!(lab.store().list().unwrap().0, []);

    let recipe = "name = \"mine\"\npackages = [\"git\", \"jq\"]\n";
    let template = built(&lab, recipe, &source, true).unwrap();
    assert_eq!(
        inside(&template, "cat /usr/bin/installed"),
        "\njq\n",
        "git is there already"
    );
    assert_eq!(inside(&template, "cat /usr/lib/new/jq"), "new\n");
    assert!(!inside(&template, "ls /usr/bin").contains("busybox"));
    assert!(!inside(&template, "ls /var").contains("log"));
    let accounts = inside(&template, "cat /etc/passwd");
    assert!(
        accounts.contains("mail:x:8:") && accounts.contains("agent:x:1000:"),
        "{accounts}"
    );
    assert!(
        template
            .manifest
            .packages
            .iter()
            .any(|package| package.name == "jq")
    );
}

#[test]
fn a_bare_image_raw_as_it_may_be_is_taken_as_it_is() {
    let lab = Lab::new();
    published(&lab);
    let image = fs::read(lab.dir.path().join("cloud.raw")).unwrap();
    let sha256 = fingerprint::of_bytes(&image);
    let server = Server::start(vec![("cloud.raw", image)], Manners::Good);
    let source = Source::new(&server.url("cloud.raw"), Some(&sha256), None).unwrap();
    let bare = built(&lab, RECIPE, &source, false).unwrap();
    assert!(!inside(&bare, "cat /etc/passwd").contains("agent"));
    assert_eq!(bare.manifest.runner.version, None);
    assert!(!bare.manifest.source.as_ref().unwrap().customised);
    assert_eq!(bare.manifest.files[WHOLE_DISK].sha256, sha256);
}

#[test]
fn only_a_disk_that_stands_by_itself_is_unpacked() {
    let mut qcow2 = [0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    assert_eq!(format(&qcow2).unwrap(), "qcow2");
    assert_eq!(format(&[0; 512]).unwrap(), "raw");
    for (at, value) in [(15, 1), (35, 1), (79, 4)] {
        let mut bad = qcow2;
        bad[at] = value;
        assert!(
            format(&bad).unwrap_err().to_string().contains("another file"),
            "byte {at}"
        );
    }
    for magic in [b"\x1f\x8b".as_slice(), b"KDMV", b"\xfd7zXZ\0"] {
        assert!(format(magic).unwrap_err().hint().unwrap().contains("qcow2"));
    }
}
