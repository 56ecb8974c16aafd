//! A builder that is killed: before the first program it calls, at each when that has done all of its work, and at
//! every step that it tells of. Nothing half is taken for an image, and the next build makes the very same one.
//!
//! The builder is this test program once more, with `a_builder` as its only test.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::*;
use crate::cloud;
use crate::cloud::tests::{Manners, Server, published};
use crate::download::Source;

/// Where the builder finds its stage, and what it builds.
const STAGE: &str = "AGENTLAB_TEST_STAGE";
const STORE: &str = "AGENTLAB_TEST_STORE";
const IMAGE: &str = "AGENTLAB_TEST_IMAGE";
const KILL: i32 = 9;

/// Counts calls, and kills whoever called at the one that `halt` names.
const PROGRAM: &str = r#"read -r halt moment <"$stage/halt"
n=$(($(cat "$stage/calls") + 1))
echo $n >"$stage/calls"
[ "$n $moment" = "$halt before" ] && kill -KILL $PPID && exec sleep 600
[ "$n" = "$halt" ] || exec "$real" "$@"
"$real" "$@"
kill -KILL $PPID
exec sleep 600"#;

/// Where a builder dies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Moment {
    Never,
    BeforeCall(usize),
    AfterCall(usize),
    /// As soon as it has told of this step.
    Step(String),
}

/// What all builders of a test share.
struct Theatre {
    lab: Lab,
    /// Address and checksum of an image to start from.
    image: Option<(Server, String)>,
}

impl Theatre {
    fn open(from_image: bool) -> Self {
        let lab = Lab::new();
        let image = from_image.then(|| {
            let bytes = published(&lab);
            let sha256 = fingerprint::of_bytes(&bytes);
            (Server::start(vec![("cloud.qcow2", bytes)], Manners::Good), sha256)
        });
        fs::create_dir(lab.dir.path().join("halting")).unwrap();
        let stage = lab.dir.path().display().to_string();
        for name in [
            "mmdebstrap",
            "mke2fs",
            "debugfs",
            "tar",
            "curl",
            "e2fsck",
            "qemu-img",
        ] {
            let real = if name == "mmdebstrap" {
                lab.tools.mmdebstrap.display().to_string()
            } else {
                format!("$(PATH=$PATH:/usr/sbin:/sbin command -v {name})")
            };
            lab.stand_in(
                &format!("halting/{name}"),
                &format!("stage={stage} real={real}\n{PROGRAM}"),
            );
        }
        Self { lab, image }
    }

    fn store(&self, name: &str) -> TemplateStore {
        TemplateStore::open(&self.lab.dir.path().join(name))
    }

    /// How the builder ended, and what it said.
    fn build(&self, store: &TemplateStore, moment: &Moment) -> (ExitStatus, Vec<String>) {
        let stage = self.lab.dir.path();
        let halt = match moment {
            Moment::BeforeCall(number) => format!("{number} before\n"),
            Moment::AfterCall(number) => format!("{number} after\n"),
            Moment::Never | Moment::Step(_) => "0 never\n".to_owned(),
        };
        fs::write(stage.join("halt"), halt).unwrap();
        fs::write(stage.join("calls"), "0\n").unwrap();
        let mut builder = Command::new(std::env::current_exe().unwrap());
        builder
            .args([
                "--exact",
                "assembly::tests::killed::a_builder",
                "--ignored",
                "--nocapture",
            ])
            .env("TMPDIR", stage)
            .env(STAGE, stage)
            .env(STORE, store.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some((server, sha256)) = &self.image {
            builder.env(IMAGE, format!("{} {sha256}", server.url("cloud.qcow2")));
        }
        follow(builder.spawn().unwrap(), moment)
    }

    fn calls(&self) -> usize {
        let text = fs::read_to_string(self.lab.dir.path().join("calls")).unwrap();
        text.trim().parse().unwrap()
    }
}

fn follow(mut builder: Child, moment: &Moment) -> (ExitStatus, Vec<String>) {
    let mut said = Vec::new();
    for line in BufReader::new(builder.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if *moment == Moment::Step(line.clone()) {
            builder.kill().unwrap();
        }
        said.push(line);
    }
    (builder.wait().unwrap(), said)
}

/// Every file that is kept between builds, with its hash.
fn kept(store: &TemplateStore) -> BTreeMap<String, FileRecord> {
    hash_all(&store.dir().join(store::CACHE)).unwrap()
}

fn dies_everywhere(from_image: bool) {
    let theatre = Theatre::open(from_image);
    let whole = theatre.store("whole");
    let (status, said) = theatre.build(&whole, &Moment::Never);
    assert!(status.success(), "{said:#?}");
    let (expected, _) = whole.list().unwrap();
    let (image, names, cache) = (
        &expected[0].manifest.id,
        read_dir(whole.dir()).unwrap(),
        kept(&whole),
    );
    let calls = 1..=theatre.calls();
    assert!(*calls.end() >= 4, "{calls:?}");
    let steps = said
        .into_iter()
        .filter(|line| line.starts_with("  "))
        .map(Moment::Step);
    let moments = std::iter::once(Moment::BeforeCall(1)).chain(calls.map(Moment::AfterCall));
    for (number, moment) in moments.chain(steps).enumerate() {
        let store = theatre.store(&format!("store{number}"));
        let (status, said) = theatre.build(&store, &moment);
        if !matches!(moment, Moment::Step(_)) {
            assert_eq!(status.signal(), Some(KILL), "{moment:?}: {said:#?}");
        }
        // Whatever stands there is whole: an image at the very last, and what was fetched.
        let (images, damaged) = store.list().unwrap();
        assert!(damaged.is_empty(), "{moment:?}: {damaged:?}");
        for found in &images {
            assert_eq!(store.verify(found).unwrap(), [], "{moment:?}");
        }
        for (name, file) in kept(&store) {
            assert!(
                name.ends_with(".part") || cache.get(&name) == Some(&file),
                "{moment:?}: {name}"
            );
        }
        let (status, said) = theatre.build(&store, &Moment::Never);
        assert!(status.success(), "{moment:?}: {said:#?}");
        let built = store.find("demo-proxmox").unwrap();
        assert_eq!(&built.manifest.id, image, "{moment:?}");
        assert_eq!(store.verify(&built).unwrap(), [], "{moment:?}");
        assert_eq!(read_dir(store.dir()).unwrap(), names, "{moment:?}");
        assert_eq!(kept(&store), cache, "{moment:?}");
        fs::remove_dir_all(store.dir()).unwrap();
    }
}

#[test]
fn wherever_a_builder_is_killed_nothing_half_stands_and_the_next_build_makes_the_same_image() {
    dies_everywhere(false);
}

#[test]
fn wherever_a_builder_is_killed_a_published_image_is_fetched_and_changed_as_if_it_were_not() {
    dies_everywhere(true);
}

#[test]
#[ignore = "the process that the others kill"]
fn a_builder() {
    let said = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (stage, store) = (said(STAGE).unwrap(), said(STORE).unwrap());
    let mut lab = Lab::new();
    let tool = |name: &str| stage.join("halting").join(name);
    lab.tools = Toolbox {
        mmdebstrap: tool("mmdebstrap"),
        mke2fs: tool("mke2fs"),
        debugfs: tool("debugfs"),
        tar: tool("tar"),
        npm: tool("npm"),
        curl: tool("curl"),
        e2fsck: tool("e2fsck"),
        qemu_img: tool("qemu-img"),
        ..Toolbox::default()
    };
    let mut recipe = crate::recipe::parse(RECIPE, "r", Path::new("."))
        .unwrap()
        .in_shape(Shape::Proxmox);
    recipe.size_mb = 16;
    let order = Order {
        recipe: &recipe,
        runner: &lab.runner,
        mirror: None,
        force: false,
        tools: &lab.tools,
        home_owner: (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
    };
    let store = TemplateStore::open(&store);
    let mut progress = Progress::new(true);
    match said(IMAGE) {
        None => build(&store, &order, &mut progress),
        Some(image) => {
            let (url, sha256) = image.to_str().and_then(|text| text.split_once(' ')).unwrap();
            let source = Source::new(url, Some(sha256), None).unwrap();
            cloud::build(&store, &order, (&source, true), &mut progress)
        }
    }
    .unwrap();
}
