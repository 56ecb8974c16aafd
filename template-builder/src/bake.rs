//! Puts into a stripped tree what makes it a template: runner, units, the agent's account, the tuning, the recipe's
//! own files. Order matters where two would write the same path: the recipe comes last and wins.

use serde::Serialize;

use crate::account::{AGENT_HOME, AGENT_ID, Accounts};
use crate::error::{Result, TemplateError};
use crate::recipe::Recipe;
use crate::tree::Tree;
use crate::tuning;

/// Where the guest can read what it was made from.
pub const TEMPLATE_FILE: &str = "/etc/agentlab/template.json";
const UNITS: &str = "/etc/systemd/system";

/// What is baked in besides the recipe.
#[derive(Debug)]
pub struct Baking<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The runner's program.
    pub runner: &'a [u8],
    /// Its hash.
    pub runner_sha256: &'a str,
    /// Its version, when it said one.
    pub runner_version: Option<&'a str>,
    /// Owner of the agent's home: uid and gid 1000, except where a test is not root.
    pub home_owner: (u32, u32),
}

/// `/etc/agentlab/template.json`.
#[derive(Debug, Serialize)]
struct TemplateFile<'a> {
    format: u32,
    name: &'a str,
    suite: &'a str,
    recipe_sha256: &'a str,
    runner_version: Option<&'a str>,
    runner_sha256: &'a str,
}

/// Bakes a tree.
///
/// # Errors
/// When the tree is not a Debian root tree or the file system refuses.
pub fn bake(tree: &Tree, baking: &Baking<'_>) -> Result<()> {
    let recipe = baking.recipe;
    runner(tree, baking)?;
    tune(tree, recipe)?;
    for (path, text) in recipe.shape.files() {
        tree.write(path, text.as_bytes(), 0o644)?;
    }
    for unit in recipe.shape.units() {
        tree.link(&wanted(tuning::TARGET, unit), &format!("../{unit}"))?;
    }
    recipe_files(tree, recipe, tuning::TARGET)
}

/// Bakes what goes into a system that somebody else has tuned for its own way to boot. The tree holds its account files
/// and `/etc/skel`, and nothing else of it.
///
/// # Errors
/// When an account of the system is in the way, or the file system refuses.
pub fn bake_into_foreign(tree: &Tree, baking: &Baking<'_>) -> Result<()> {
    runner(tree, baking)?;
    for (path, text) in tuning::FOREIGN_FILES {
        tree.write(path, text.as_bytes(), 0o644)?;
    }
    tree.link(
        &wanted(tuning::FOREIGN_TARGET, tuning::RUNNER_UNIT),
        &format!("../{}", tuning::RUNNER_UNIT),
    )?;
    // Empty and present: made anew at the first boot of each clone.
    tree.write("/etc/machine-id", b"", 0o444)?;
    recipe_files(tree, baking.recipe, tuning::FOREIGN_TARGET)
}

/// The runner, its unit, its account, and what says where they come from.
fn runner(tree: &Tree, baking: &Baking<'_>) -> Result<()> {
    let recipe = baking.recipe;
    tree.write(tuning::RUNNER_PATH, baking.runner, 0o755)?;
    tree.write(
        &format!("{UNITS}/{}", tuning::RUNNER_UNIT),
        tuning::RUNNER_SERVICE.as_bytes(),
        0o644,
    )?;
    accounts(tree)?;
    home(tree, baking.home_owner)?;
    let digest = recipe.digest();
    let about = TemplateFile {
        format: 1,
        name: &recipe.name,
        suite: &recipe.suite,
        recipe_sha256: &digest,
        runner_version: baking.runner_version,
        runner_sha256: baking.runner_sha256,
    };
    tree.write(TEMPLATE_FILE, &crate::manifest::to_json(&about)?, 0o644)
}

fn recipe_files(tree: &Tree, recipe: &Recipe, target: &str) -> Result<()> {
    for unit in &recipe.units {
        tree.write(&format!("{UNITS}/{}", unit.name), &unit.content, 0o644)?;
        if unit.enabled {
            tree.link(&wanted(target, &unit.name), &format!("../{}", unit.name))?;
        }
    }
    for file in &recipe.files {
        tree.write(&file.path, &file.content, file.mode)?;
    }
    Ok(())
}

/// The link by which a target starts a unit.
fn wanted(target: &str, unit: &str) -> String {
    format!("{UNITS}/{target}.wants/{unit}")
}

fn accounts(tree: &Tree) -> Result<()> {
    let read = |path: &str| {
        let lacking = || TemplateError::Tree {
            problem: format!("lacks {path}"),
        };
        tree.read(path)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .ok_or_else(lacking)
    };
    let accounts = Accounts {
        passwd: read("/etc/passwd")?,
        group: read("/etc/group")?,
        shadow: read("/etc/shadow")?,
        gshadow: read("/etc/gshadow")?,
    }
    .with_agent()?;
    // Written over and not replaced, so that owner (root:shadow) and mode stay what the distribution gave them.
    tree.rewrite("/etc/passwd", accounts.passwd.as_bytes())?;
    tree.rewrite("/etc/group", accounts.group.as_bytes())?;
    tree.rewrite("/etc/shadow", accounts.shadow.as_bytes())?;
    tree.rewrite("/etc/gshadow", accounts.gshadow.as_bytes())
}

fn home(tree: &Tree, owner: (u32, u32)) -> Result<()> {
    debug_assert_eq!(AGENT_ID, 1000);
    tree.make_dir(AGENT_HOME, 0o700)?;
    for name in tree.names("/etc/skel")? {
        if let Some(content) = tree.read(&format!("/etc/skel/{name}"))? {
            let path = format!("{AGENT_HOME}/{name}");
            tree.write(&path, &content, 0o644)?;
            tree.give(&path, owner)?;
        }
    }
    tree.give(AGENT_HOME, owner)
}

fn tune(tree: &Tree, recipe: &Recipe) -> Result<()> {
    for (path, text) in tuning::FILES {
        tree.write(path, text.as_bytes(), 0o644)?;
    }
    let kept = |name: &str| recipe.kept_units.iter().any(|keep| keep == name);
    let asked = recipe.masked_units.iter().map(String::as_str);
    for unit in tuning::MASKED_UNITS
        .into_iter()
        .chain(asked)
        .filter(|unit| !kept(unit))
    {
        tree.link(&format!("{UNITS}/{unit}"), "/dev/null")?;
    }
    for generator in tuning::MASKED_GENERATORS
        .into_iter()
        .filter(|generator| !kept(generator))
    {
        tree.link(
            &format!("/etc/systemd/system-generators/{generator}"),
            "/dev/null",
        )?;
    }
    tree.write(
        &format!("{UNITS}/{}", tuning::TARGET),
        tuning::TARGET_UNIT.as_bytes(),
        0o644,
    )?;
    tree.link(&format!("{UNITS}/default.target"), tuning::TARGET)?;
    // Grows the file system of a machine that got a larger disk than the template's.
    tree.link(
        &wanted(tuning::TARGET, "systemd-growfs-root.service"),
        "/usr/lib/systemd/system/systemd-growfs-root.service",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tree(path: &Path) -> Tree {
        let tree = Tree::open(path).unwrap();
        tree.write("/etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n", 0o644)
            .unwrap();
        tree.write("/etc/group", b"root:x:0:\n", 0o644).unwrap();
        tree.write("/etc/shadow", b"root:*:1:0:99999:7:::\n", 0o640)
            .unwrap();
        tree.write("/etc/gshadow", b"root:*::\n", 0o640).unwrap();
        tree.write("/etc/skel/.profile", b"# skel\n", 0o644).unwrap();
        tree
    }

    fn baked(recipe: &str) -> (tempfile::TempDir, Tree) {
        let host = tempfile::tempdir().unwrap();
        let tree = tree(host.path());
        let recipe = crate::recipe::parse(recipe, "r", Path::new(".")).unwrap();
        let owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let baking = Baking {
            recipe: &recipe,
            runner: b"runner",
            runner_sha256: "00",
            runner_version: Some("1.2.3"),
            home_owner: owner,
        };
        bake(&tree, &baking).unwrap();
        (host, tree)
    }

    #[test]
    fn a_baked_tree_has_runner_unit_account_and_its_own_description() {
        use std::os::unix::fs::PermissionsExt;
        let (host, tree) = baked("name = \"a\"\n");
        let text = |path: &str| String::from_utf8(tree.read(path).unwrap().unwrap()).unwrap();
        assert_eq!(text("/usr/lib/agentlab/agent-runner"), "runner");
        assert!(text("/etc/systemd/system/agent-runner.service").contains(tuning::RUNNER_PATH));
        assert!(text("/etc/passwd").contains("\nagent:x:1000:1000:"));
        assert_eq!(text("/home/agent/.profile"), "# skel\n");
        let shadow = std::fs::metadata(host.path().join("etc/shadow")).unwrap();
        assert_eq!(shadow.permissions().mode() & 0o7777, 0o640);
        let about: serde_json::Value = serde_json::from_str(&text(TEMPLATE_FILE)).unwrap();
        assert_eq!(
            (about["name"].as_str(), about["runner_version"].as_str()),
            (Some("a"), Some("1.2.3"))
        );
        let default = std::fs::read_link(host.path().join("etc/systemd/system/default.target")).unwrap();
        assert_eq!(default, Path::new("agentlab.target"));
    }

    #[test]
    fn a_recipe_masks_more_keeps_some_and_its_files_win() {
        let (host, _tree) = baked(
            "name = \"a\"\nmasked_units = [\"cron.service\"]\nkept_units = [\"systemd-logind.service\"]\n\
             [[units]]\nname = \"mine.service\"\ncontent = \"x\"\n\
             [[units]]\nname = \"idle.service\"\ncontent = \"x\"\nenabled = false\n\
             [[files]]\npath = \"/etc/hostname\"\ncontent = \"theirs\"\nmode = \"0600\"\n",
        );
        let units = host.path().join("etc/systemd/system");
        assert_eq!(
            std::fs::read_link(units.join("cron.service")).unwrap(),
            Path::new("/dev/null")
        );
        assert_eq!(
            std::fs::read_link(units.join("getty.target")).unwrap(),
            Path::new("/dev/null")
        );
        assert!(std::fs::symlink_metadata(units.join("systemd-logind.service")).is_err());
        assert!(std::fs::symlink_metadata(units.join("agentlab.target.wants/mine.service")).is_ok());
        assert!(std::fs::symlink_metadata(units.join("agentlab.target.wants/idle.service")).is_err());
        assert_eq!(
            std::fs::read(host.path().join("etc/hostname")).unwrap(),
            b"theirs"
        );
    }
}
