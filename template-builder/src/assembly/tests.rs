//! Whole builds with a stand-in for mmdebstrap: everything else, mke2fs and tar included, is real.

mod killed;

use super::*;
use crate::manifest::{DISK, INITRD, KERNEL, WHOLE_DISK};
use crate::runner::smallest_program;
use crate::store::read_dir;
use crate::tree::Tree;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// A lab with a store and a stand-in that answers with a tiny root tree, and counts how often it was asked.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) tools: Toolbox,
    pub(crate) runner: Runner,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(&{
            let path = dir.path().join("tree");
            fs::create_dir(&path).unwrap();
            path
        })
        .unwrap();
        let base = "/usr/lib/modules/6.12-test";
        for (path, text) in [
            ("/etc/passwd", "root:x:0:0::/root:/bin/bash\n"),
            ("/etc/group", "root:x:0:\n"),
            ("/etc/shadow", "root:*:1::::::\n"),
            ("/etc/gshadow", "root:*::\n"),
            ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("/boot/vmlinuz-6.12-test", "kernel"),
            ("/usr/bin/busybox", "busybox"),
            ("/boot/core.img", &"core".repeat(9000)),
            ("/usr/lib/os-release", "ID=debian\nVERSION_CODENAME=trixie\n"),
            (&format!("{base}/modules.dep"), "kernel/virtio_blk.ko:\n"),
            (
                &format!("{base}/modules.builtin"),
                "a/virtio_net.ko\na/qemu_fw_cfg.ko\na/virtio-rng.ko\na/virtio_scsi.ko\na/sd_mod.ko\na/virtio_console.ko\n",
            ),
            (&format!("{base}/kernel/virtio_blk.ko"), "\x7fELF module"),
            (
                "/var/lib/dpkg/status",
                "Package: git\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2\n",
            ),
        ] {
            tree.write(path, text.as_bytes(), 0o644).unwrap();
        }
        let boot_sector = [[0; 510].as_slice(), &[0x55, 0xaa]].concat();
        tree.write("/boot/boot.img", &boot_sector, 0o644).unwrap();
        let lab = Self {
            tools: Toolbox {
                mmdebstrap: dir.path().join("mmdebstrap"),
                ..Toolbox::default()
            },
            runner: runner(b"one"),
            dir,
        };
        let source = lab.dir.path().display().to_string();
        // Asked as `mmdebstrap ... SUITE TAR`: the last argument is where the tree goes.
        lab.stand_in(
            "mmdebstrap",
            &format!(
                "echo x >>{source}/asked; for last; do :; done; exec tar -C {source}/tree -cf \"$last\" ."
            ),
        );
        lab
    }

    pub(crate) fn stand_in(&self, name: &str, script: &str) {
        // Installed by a child: while another test begins a process, that may hold open what this process writes, and
        // what is open for writing cannot be run.
        let draft = self.dir.path().join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        let installed = std::process::Command::new("install")
            .args([draft, self.dir.path().join(name)])
            .status();
        assert!(installed.unwrap().success());
    }

    pub(crate) fn store(&self) -> TemplateStore {
        TemplateStore::open(&self.dir.path().join("store"))
    }

    fn build(&self, recipe: &str, force: bool) -> Result<Outcome> {
        self.build_for(Shape::Local, recipe, force)
    }

    pub(crate) fn build_for(&self, shape: Shape, recipe: &str, force: bool) -> Result<Outcome> {
        let recipe = crate::recipe::parse(recipe, "r", Path::new(".")).unwrap();
        let mut recipe = recipe.in_shape(shape);
        // Smaller than a recipe may ask for: hashing the disk is most of such a build.
        recipe.size_mb = 16;
        let home_owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let order = Order {
            recipe: &recipe,
            runner: &self.runner,
            mirror: None,
            force,
            tools: &self.tools,
            home_owner,
        };
        build(&self.store(), &order, &mut Progress::new(false))
    }

    fn built(&self, recipe: &str) -> Template {
        match self.build(recipe, false).unwrap() {
            Outcome::Built(template) => template,
            Outcome::Unchanged(_) => panic!("nothing was built"),
        }
    }

    fn asked(&self) -> usize {
        fs::read_to_string(self.dir.path().join("asked"))
            .unwrap_or_default()
            .lines()
            .count()
    }
}

fn runner(mark: &[u8]) -> Runner {
    let bytes = [smallest_program(1).as_slice(), mark].concat();
    Runner {
        path: PathBuf::from("/nonexistent/runner"),
        sha256: fingerprint::of_bytes(&bytes),
        bytes,
    }
}

pub(crate) const RECIPE: &str = "name = \"demo\"\n";

#[test]
fn a_build_publishes_a_sound_image_that_its_name_and_vmid_lead_to() {
    let lab = Lab::new();
    let template = lab.built(RECIPE);
    let store = lab.store();
    assert_eq!(read_dir(&template.dir).unwrap(), [INITRD, MANIFEST, DISK, KERNEL]);
    assert_eq!(store.find_by_vmid(9000).unwrap().unwrap(), template);
    assert_eq!(store.find("demo").unwrap(), template);
    assert_eq!(store.find(&template.manifest.id[..6]).unwrap(), template);
    assert_eq!(store.verify(&template).unwrap(), []);
    assert!(
        template
            .manifest
            .kernel
            .command_line
            .starts_with("root=/dev/vda rw")
    );
    for name in [DISK, KERNEL, INITRD, MANIFEST] {
        let mode = fs::metadata(template.dir.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(mode, 0o444, "{name}");
    }
    assert_eq!(
        read_dir(store.dir()).unwrap().len(),
        4,
        "only the image, by-name, .cache and .lock"
    );
}

#[test]
fn an_unchanged_recipe_builds_nothing_and_a_new_runner_needs_no_bootstrap() {
    let mut lab = Lab::new();
    let first = lab.built(RECIPE);
    let again = lab.build("# only a comment\nname = \"demo\"\n", false).unwrap();
    assert!(matches!(again, Outcome::Unchanged(template) if template == first));
    lab.runner = runner(b"two");
    let second = lab.built(RECIPE);
    assert_eq!(lab.asked(), 1);
    assert!(second.manifest.id != first.manifest.id && first.dir.join(DISK).exists());
    assert_eq!(lab.store().find("demo").unwrap(), second);
    lab.build(RECIPE, true).unwrap();
    assert_eq!(lab.asked(), 2);
}

#[test]
fn the_same_recipe_and_runner_give_the_same_content_whenever_it_is_built() {
    for shape in [Shape::Local, Shape::Proxmox] {
        let [one, two] = [Lab::new(), Lab::new()].map(|lab| {
            let Outcome::Built(template) = lab.build_for(shape, RECIPE, false).unwrap() else {
                panic!("nothing was built")
            };
            // When the file system was last written, at a second's precision.
            let mut written = [0; 4];
            let root = if shape == Shape::Local {
                0
            } else {
                crate::disk::ROOT_OFFSET
            };
            fs::File::open(template.dir.join(shape.disk_file()))
                .unwrap()
                .read_exact_at(&mut written, root + 1024 + 0x30)
                .unwrap();
            assert_eq!(i64::from(u32::from_le_bytes(written)), EPOCH, "{shape}");
            template.manifest
        });
        assert_eq!((one.files, one.id), (two.files, two.id), "{shape}");
    }
}

#[test]
fn a_disk_that_boots_by_itself_stands_beside_the_local_image_of_the_same_recipe() {
    let lab = Lab::new();
    let local = lab.built(RECIPE);
    let Outcome::Built(whole) = lab.build_for(Shape::Proxmox, RECIPE, false).unwrap() else {
        panic!("nothing was built")
    };
    assert_eq!(read_dir(&whole.dir).unwrap(), [WHOLE_DISK, MANIFEST]);
    assert_eq!(whole.manifest.name, "demo-proxmox");
    // The VMID is one of Proxmox VE's; here it stands for the local image.
    assert_eq!(lab.store().find("9000").unwrap(), local);
    let disk = format!(
        "{}?offset={}",
        whole.dir.join(WHOLE_DISK).display(),
        crate::disk::ROOT_OFFSET
    );
    let inside = |command: &str| {
        let listing = lab.dir.path().join("listing");
        let debugfs = std::process::Command::new("/sbin/debugfs")
            .args(["-R", command, &disk])
            .stdout(fs::File::create(&listing).unwrap())
            .status();
        assert!(debugfs.unwrap().success());
        fs::read_to_string(&listing).unwrap()
    };
    let started_with = inside("cat /boot/grub/grub.cfg");
    assert!(
        started_with.starts_with("linux /boot/vmlinuz rw "),
        "{started_with}"
    );
    assert_eq!(inside("cat /boot/vmlinuz"), "kernel");
    assert!(inside("cat /boot/initrd.img").contains("/sys/class/scsi_disk/"));
    assert!(!inside("ls /boot").contains("core.img"));
    assert!(inside("ls /etc/systemd/system/agentlab.target.wants").contains("qemu-guest-agent.service"));
}

#[test]
fn a_failing_step_leaves_only_the_kept_root_tree() {
    let mut lab = Lab::new();
    lab.stand_in(
        "mke2fs",
        "echo 'mke2fs: No space left on device while writing' >&2; echo half >\"$0.img\"; exit 1",
    );
    lab.tools.mke2fs = lab.dir.path().join("mke2fs");
    let error = lab.build(RECIPE, false).unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(error.hint().unwrap().contains("nothing half-made was left"));
    assert_eq!(
        read_dir(lab.store().dir()).unwrap(),
        [".cache", ".lock", "by-name"]
    );
    assert_eq!(lab.store().list().unwrap().0, []);
}

#[test]
fn an_unreachable_mirror_speaks_in_apts_own_words_and_nothing_is_kept() {
    let lab = Lab::new();
    lab.stand_in(
        "mmdebstrap",
        "echo 'I: running apt-get update...'; echo \"E: Failed to fetch http://m.invalid/InRelease  Could not resolve 'm.invalid'\" >&2; exit 25",
    );
    let error = lab.build(RECIPE, false).unwrap_err();
    assert!(
        error.to_string().contains("Could not resolve 'm.invalid'"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--mirror"));
    assert_eq!(
        read_dir(&lab.store().dir().join(store::CACHE)).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn a_dead_builds_leftovers_are_cleared_by_the_next_build() {
    let lab = Lab::new();
    lab.store().create().unwrap();
    let left = lab.store().dir().join(".building-dead/tree");
    fs::create_dir_all(&left).unwrap();
    lab.built(RECIPE);
    assert!(!left.exists());
}

#[test]
fn the_store_stays_locked_until_a_dead_builds_program_has_ended_too() {
    let lab = Lab::new();
    let store = lab.store();
    store.create().unwrap();
    let lock = store.lock().unwrap();
    let mut program = std::process::Command::new("sleep")
        .arg("600")
        .stdin(lock.share().unwrap())
        .spawn()
        .unwrap();
    drop(lock);
    assert!(store.try_lock().unwrap().is_none());
    program.kill().unwrap();
    program.wait().unwrap();
    // A child that another test is just beginning may still have the descriptor, but not for ever.
    drop(store.lock().unwrap());
}

#[test]
fn two_builds_at_once_make_one_image() {
    let lab = Lab::new();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| lab.build(RECIPE, false).unwrap()))
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Built(_)))
            .count(),
        1
    );
    assert_eq!(lab.asked(), 1);
}

#[test]
fn a_vmid_that_another_template_stands_for_is_refused_before_any_work() {
    let lab = Lab::new();
    lab.built(RECIPE);
    let error = lab.build("name = \"other\"\n", false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("VMID 9000 already stands for template `demo`"),
        "{error}"
    );
    assert_eq!(lab.asked(), 1);
}

#[test]
fn verify_names_every_file_that_changed_is_gone_or_does_not_belong() {
    let lab = Lab::new();
    let template = lab.built(RECIPE);
    let rewrite = |name: &str, text: &str| {
        fs::remove_file(template.dir.join(name)).unwrap();
        fs::write(template.dir.join(name), text).unwrap();
    };
    rewrite(KERNEL, "kernex");
    rewrite(INITRD, "short");
    fs::remove_file(template.dir.join(DISK)).unwrap();
    fs::write(template.dir.join("extra"), "").unwrap();
    let differences = lab.store().verify(&template).unwrap();
    let found: Vec<(&str, bool)> = [
        (INITRD, "bytes long"),
        (DISK, "No such file"),
        (KERNEL, "SHA-256"),
        ("extra", "not in"),
    ]
    .iter()
    .map(|(file, part)| {
        (
            *file,
            differences
                .iter()
                .any(|one| one.file == *file && one.problem.contains(part)),
        )
    })
    .collect();
    assert!(found.iter().all(|(_, said)| *said), "{differences:?}");
    assert_eq!(differences.len(), 4);
}

/// A tarball as npm makes them, whose hash is the returned one, and a stand-in for npm that brings it.
fn npm_package(lab: &mut Lab, text: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let dir = lab.dir.path().join("npm");
    fs::create_dir_all(dir.join("package/bin")).unwrap();
    fs::write(dir.join("package/bin/tool"), text).unwrap();
    let tar = std::process::Command::new("tar")
        .args(["-czf", "tool.tgz", "package"])
        .current_dir(&dir)
        .status();
    assert!(tar.unwrap().success());
    let source = lab.dir.path().display().to_string();
    lab.stand_in(
        "npm-stand-in",
        &format!(
            "echo \"$*\" >> {source}/npm-asked\nwhile [ \"$1\" != --pack-destination ]; do shift; done\n\
             cp {source}/npm/tool.tgz \"$2/tool-1.2.3.tgz\""
        ),
    );
    lab.tools.npm = lab.dir.path().join("npm-stand-in");
    let hash = sha2::Sha512::digest(fs::read(dir.join("tool.tgz")).unwrap());
    base64::engine::general_purpose::STANDARD.encode(hash)
}

fn npm_recipe(hash: &str) -> String {
    format!(
        "name = \"demo\"\n[[npm]]\npackage = \"@x/tool\"\nversion = \"1.2.3\"\nintegrity = \"sha512-{hash}\"\n\
         directory = \"tool\"\nprograms = {{ tool = \"bin/tool\" }}\n"
    )
}

#[test]
fn a_pinned_package_is_fetched_once_and_recorded_and_another_one_fails_the_build() {
    let mut lab = Lab::new();
    let hash = npm_package(&mut lab, "#!/bin/sh\n");
    let recipe = npm_recipe(&hash);
    let template = lab.built(&recipe);
    let [npm] = template.manifest.npm.as_slice() else {
        panic!("{:?}", template.manifest.npm)
    };
    assert_eq!((npm.package.as_str(), npm.version.as_str()), ("@x/tool", "1.2.3"));
    let disk = template.dir.join(DISK).display().to_string();
    let listing = lab.dir.path().join("listing");
    let debugfs = std::process::Command::new("/sbin/debugfs")
        .args(["-R", "stat /usr/local/bin/tool", &disk])
        .stdout(fs::File::create(&listing).unwrap())
        .status();
    assert!(debugfs.unwrap().success());
    let shown = fs::read_to_string(&listing).unwrap();
    assert!(shown.contains("/opt/agentlab/tool/bin/tool"), "{shown}");
    lab.build(&recipe, true).unwrap();
    let asked = fs::read_to_string(lab.dir.path().join("npm-asked")).unwrap();
    assert_eq!(asked.lines().count(), 1, "kept from last time: {asked}");
    assert!(
        asked.contains("--ignore-scripts") && asked.trim().ends_with("-- @x/tool@1.2.3"),
        "{asked}"
    );

    npm_package(&mut lab, "#!/bin/sh\necho other\n");
    let other = npm_recipe(&hash.replace(&hash[..4], "AAAA"));
    let error = lab.build(&other, true).unwrap_err().to_string();
    assert!(error.contains("another one came"), "{error}");
}
