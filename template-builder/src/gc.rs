//! What may go: decided from facts, in one pure function, and done only under the store's lock.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{During, Result};
use crate::manifest::Manifest;
use crate::npm::NpmPackage;
use crate::store::{BY_NAME, CACHE, TemplateStore, is_id, read_dir};

/// Something that `gc` removes, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// What it is.
    pub path: PathBuf,
    /// Why it goes.
    pub why: Why,
    /// Bytes on disk that become free.
    pub bytes: u64,
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// An image that no name leads to.
    Unnamed,
    /// A name that leads nowhere.
    Dangling,
    /// A root tree that no image which stays was made from.
    StaleTree,
    /// A package of npm that no image which stays has.
    StalePackage,
    /// A published image that no template which stays was made from.
    StaleImage,
    /// Work of a build that died.
    Leftover,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unnamed => "no name leads to it",
            Self::Dangling => "leads to no image",
            Self::StaleTree => "no image was made from it",
            Self::StalePackage => "no image has it",
            Self::StaleImage => "no template was made from it",
            Self::Leftover => "left by a build that died",
        })
    }
}

/// An image, as far as `gc` cares.
#[derive(Debug, Clone)]
struct Image {
    id: String,
    /// Names of what is kept and it was made from; none when the manifest cannot be read.
    made_from: Vec<String>,
    in_use: bool,
}

/// What lies in a store.
#[derive(Debug, Clone, Default)]
struct Inventory {
    images: Vec<Image>,
    /// `(name, id)`.
    names: Vec<(String, String)>,
    /// Names in the directory of what is kept.
    kept: Vec<String>,
    leftovers: Vec<String>,
}

/// Paths relative to the store.
fn plan(inventory: &Inventory) -> Vec<(PathBuf, Why)> {
    let named = |id: &str| inventory.names.iter().any(|(_, target)| target == id);
    let stays = |image: &&Image| image.in_use || named(&image.id);
    let mut going = Vec::new();
    for image in inventory.images.iter().filter(|image| !stays(image)) {
        going.push((PathBuf::from(&image.id), Why::Unnamed));
    }
    for (name, id) in &inventory.names {
        if !inventory.images.iter().any(|image| image.id == *id) {
            going.push((Path::new(BY_NAME).join(name), Why::Dangling));
        }
    }
    let needed: Vec<&String> = inventory
        .images
        .iter()
        .filter(stays)
        .flat_map(|image| &image.made_from)
        .collect();
    for name in inventory.kept.iter().filter(|name| !needed.contains(name)) {
        if let Some(why) = stale(name) {
            going.push((Path::new(CACHE).join(name), why));
        }
    }
    going.extend(
        inventory
            .leftovers
            .iter()
            .map(|name| (PathBuf::from(name), Why::Leftover)),
    );
    going
}

/// Why something kept goes when nothing needs it; nothing when only somebody else can have put it there.
fn stale(name: &str) -> Option<Why> {
    let (stem, kind) = name.split_once('.')?;
    let is_hash = |digits| stem.len() == digits && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    match kind {
        "tar" if is_id(stem) => Some(Why::StaleTree),
        "tgz" if is_hash(128) => Some(Why::StalePackage),
        "image" if is_id(stem) => Some(Why::StaleImage),
        "part" if is_id(stem) => Some(Why::Leftover),
        _ => None,
    }
}

fn made_from(manifest: &Manifest) -> Vec<String> {
    let packages = manifest.npm.iter().filter_map(NpmPackage::sha512);
    let first = ["tar", "image"].map(|kind| format!("{}.{kind}", manifest.tree_key));
    first
        .into_iter()
        .chain(packages.map(|hash| format!("{hash}.tgz")))
        .collect()
}

fn take_inventory(store: &TemplateStore) -> Result<Inventory> {
    let mut inventory = Inventory {
        names: store.names()?,
        ..Inventory::default()
    };
    let (templates, damaged) = store.list()?;
    for template in &templates {
        inventory.images.push(Image {
            id: file_name(&template.dir),
            made_from: made_from(&template.manifest),
            in_use: store.in_use(&template.dir)?,
        });
    }
    for (dir, _) in &damaged {
        inventory.images.push(Image {
            id: file_name(dir),
            made_from: Vec::new(),
            in_use: store.in_use(dir)?,
        });
    }
    inventory.kept = read_dir(&store.dir().join(CACHE))?;
    inventory.leftovers = leftovers(store)?;
    Ok(inventory)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Work directories of builds. Whoever holds the lock knows that their builds are dead.
pub(crate) fn leftovers(store: &TemplateStore) -> Result<Vec<String>> {
    let names = read_dir(store.dir())?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with(crate::store::BUILDING))
        .collect())
}

/// Says what may go, and removes it unless `dry_run`. The caller holds the lock.
///
/// # Errors
/// When something cannot be looked at or removed; what went before it stays gone.
pub fn collect(store: &TemplateStore, dry_run: bool) -> Result<Vec<Removal>> {
    let mut removals = Vec::new();
    for (path, why) in plan(&take_inventory(store)?) {
        let path = store.dir().join(path);
        let bytes = bytes_on_disk(&path);
        if !dry_run {
            remove(&path)?;
        }
        removals.push(Removal { path, why, bytes });
    }
    Ok(removals)
}

/// Removes a file, link or directory. A directory is renamed first, so that half an image never stands under its id.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let seen = fs::symlink_metadata(path).during("look at", path)?;
    if !seen.is_dir() {
        return fs::remove_file(path).during("remove", path);
    }
    let dying = path.with_file_name(format!("{}dying-{}", crate::store::BUILDING, file_name(path)));
    let (from, to) = if file_name(path).starts_with(crate::store::BUILDING) {
        (path, path)
    } else {
        (path, dying.as_path())
    };
    fs::rename(from, to).during("set aside", from)?;
    fs::remove_dir_all(to).during("remove", to)
}

/// Bytes that a file or directory takes on disk; holes take none.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = walkdir::WalkDir::new(path)
        .follow_links(false)
        .into_iter()
        .filter_map(std::result::Result::ok);
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|seen| seen.blocks().saturating_mul(512))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{self, MANIFEST};

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn image(digit: char, tree: char, in_use: bool) -> Image {
        Image {
            id: id(digit),
            made_from: vec![format!("{}.tar", id(tree)), format!("{}.tgz", id(tree).repeat(2))],
            in_use,
        }
    }

    #[test]
    fn named_and_used_images_stay_with_what_they_were_made_from() {
        let inventory = Inventory {
            images: vec![
                image('a', '1', false),
                image('b', '2', true),
                image('c', '3', false),
                Image {
                    id: id('d'),
                    made_from: Vec::new(),
                    in_use: false,
                },
            ],
            names: vec![("demo".to_owned(), id('a')), ("lost".to_owned(), id('f'))],
            kept: ['1', '2', '3', '4']
                .into_iter()
                .flat_map(|digit| {
                    [
                        format!("{}.tar", id(digit)),
                        format!("{}.tgz", id(digit).repeat(2)),
                    ]
                })
                .chain([
                    "notes.txt".to_owned(),
                    format!("{}.part", id('5')),
                    format!("{}.image", id('6')),
                ])
                .collect(),
            leftovers: vec![".building-x".to_owned()],
        };
        let tree = |digit| Path::new(CACHE).join(format!("{}.tar", id(digit)));
        let package = |digit| Path::new(CACHE).join(format!("{}.tgz", id(digit).repeat(2)));
        assert_eq!(
            plan(&inventory),
            [
                (PathBuf::from(id('c')), Why::Unnamed),
                (PathBuf::from(id('d')), Why::Unnamed),
                (PathBuf::from("by-name/lost"), Why::Dangling),
                (tree('3'), Why::StaleTree),
                (package('3'), Why::StalePackage),
                (tree('4'), Why::StaleTree),
                (package('4'), Why::StalePackage),
                (Path::new(CACHE).join(format!("{}.part", id('5'))), Why::Leftover),
                (
                    Path::new(CACHE).join(format!("{}.image", id('6'))),
                    Why::StaleImage
                ),
                (PathBuf::from(".building-x"), Why::Leftover),
            ]
        );
        assert_eq!(plan(&Inventory::default()), []);
    }

    #[test]
    fn a_dry_run_says_the_same_and_removes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = TemplateStore::open(dir.path());
        store.create().unwrap();
        let old = dir.path().join(id('c'));
        fs::create_dir(&old).unwrap();
        let bytes = manifest::to_json(&manifest::example("demo", 9000)).unwrap();
        fs::write(old.join(MANIFEST), bytes).unwrap();
        fs::write(old.join(manifest::DISK), "disk").unwrap();
        fs::create_dir(dir.path().join(".building-9")).unwrap();
        fs::write(dir.path().join("notes.txt"), "not ours").unwrap();

        let planned = collect(&store, true).unwrap();
        assert!(old.exists());
        assert_eq!(collect(&store, false).unwrap(), planned);
        assert_eq!(
            planned.iter().map(|removal| removal.why).collect::<Vec<_>>(),
            [Why::Unnamed, Why::Leftover]
        );
        assert_eq!(read_dir(dir.path()).unwrap(), [".cache", "by-name", "notes.txt"]);
    }

    #[test]
    fn an_unnamed_image_that_a_machine_uses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = TemplateStore::open(dir.path());
        store.create().unwrap();
        let image = dir.path().join(id('c'));
        fs::create_dir(&image).unwrap();
        let bytes = manifest::to_json(&manifest::example("demo", 9000)).unwrap();
        fs::write(image.join(MANIFEST), bytes).unwrap();
        fs::write(image.join(manifest::DISK), "disk").unwrap();
        let open = fs::File::open(image.join(manifest::DISK)).unwrap();
        assert_eq!(collect(&store, true).unwrap(), []);
        drop(open);
        assert_eq!(collect(&store, true).unwrap().len(), 1);
        fs::hard_link(image.join(manifest::DISK), dir.path().join("machine")).unwrap();
        assert_eq!(collect(&store, true).unwrap(), []);
    }
}
