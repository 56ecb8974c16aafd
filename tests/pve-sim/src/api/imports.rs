//! Files that come to a storage from outside: uploaded, or fetched by the node itself.

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

use crate::audit::origin_of;
use crate::call::{Call, Worker};
use crate::storage::{Import, Plugin};
use crate::wire::{Answer, Refusal};
use crate::world::World;

/// What both ways need to know of a file.
struct Wanted {
    storage: String,
    content: String,
    filename: String,
    checksum: Option<(String, String)>,
}

impl Wanted {
    fn volid(&self) -> String {
        format!("{}:{}/{}", self.storage, self.content, self.filename)
    }

    fn format(&self) -> &str {
        self.filename.rsplit('.').next().unwrap_or_default()
    }

    fn path(&self, world: &World) -> String {
        let root = world.storages.get(&self.storage).map(|storage| &storage.path);
        let dir = match self.content.as_str() {
            "iso" => "template/iso",
            "vztmpl" => "template/cache",
            other => other,
        };
        format!("{}/{dir}/{}", root.map_or("", String::as_str), self.filename)
    }
}

/// `refused`: why a storage that is no directory, or has not this kind of content, takes no such file.
fn wanted(call: &Call, no_files: &str, no_content: &str) -> Result<Wanted, Refusal> {
    let (storage, content) = (call.need("storage"), call.need("content"));
    let (plugin, held) = {
        let world = call.world();
        let found = world.storages.get(&storage);
        let found = found.ok_or_else(|| Refusal::died(format!("storage '{storage}' does not exist")))?;
        (found.plugin, found.content.contains(&content))
    };
    if plugin != Plugin::Dir {
        return Err(Refusal::died(format!(
            "can't upload to storage type '{}'{no_files}",
            plugin.name()
        )));
    }
    let filename = normal(&call.need("filename"));
    let endings: (&[&str], &str) = match content.as_str() {
        "iso" => (&["iso", "img"], "wrong file extension"),
        "vztmpl" => (&["tar.gz", "tar.xz", "tar.zst"], "wrong file extension"),
        _ => (
            &["ova", "qcow2", "raw", "vmdk"],
            "invalid filename or wrong extension",
        ),
    };
    let (endings, refusal) = endings;
    if !endings.iter().any(|ending| {
        filename
            .strip_suffix(ending)
            .and_then(|stem| stem.strip_suffix('.'))
            .is_some_and(|stem| !stem.is_empty())
    }) {
        return Err(Refusal::parameter("filename", refusal));
    }
    if !held {
        return Err(Refusal::died(format!("storage '{storage}' {no_content}")));
    }
    Ok(Wanted {
        storage,
        content,
        filename,
        checksum: call.text("checksum-algorithm").zip(call.text("checksum")),
    })
}

/// A file's name as it is stored.
fn normal(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    last.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

pub(crate) fn upload(call: &Call) -> Answer {
    let content = call.need("content");
    let wanted = wanted(call, "", &format!("does not support '{content}' content"))?;
    let Some(file) = call.upload.clone() else {
        return Err(Refusal::died("missing temporary file name"));
    };
    let from = call.need("tmpfilename");
    call.fork("imgcopy", "", move |worker| async move {
        worker.log(format!("starting file import from: {from}"));
        store(&worker, &wanted, &file).await?;
        worker.log("finished file import successfully");
        Ok(())
    })
}

pub(crate) fn download(call: &Call) -> Answer {
    let content = call.need("content");
    let wanted = wanted(
        call,
        ", not a file based storage!",
        &format!("is not configured for content-type '{content}'"),
    )?;
    if call.text("compression").is_some() && content != "iso" {
        return Err(Refusal::died(format!(
            "decompression not supported for {content}"
        )));
    }
    let url = call.need("url");
    call.fork("download", &wanted.filename.clone(), move |worker| async move {
        let (path, is_there, file) = {
            let world = worker.world();
            let is_there = world.imports.contains_key(&wanted.volid());
            (wanted.path(&world), is_there, world.downloads.get(&url).cloned())
        };
        worker.log(format!("downloading {url} to {path}"));
        if is_there {
            return Err(format!("refusing to override existing file '{path}'"));
        }
        let file = file.ok_or("download failed: exit code 4")?;
        store(&worker, &wanted, &file).await?;
        worker.log(format!("download of '{url}' finished"));
        Ok(())
    })
}

/// Whatever was there under the name before is written over.
async fn store(worker: &Worker, wanted: &Wanted, file: &Bytes) -> Result<(), String> {
    worker.pass(300).await;
    if let Some((algorithm, expected)) = &wanted.checksum {
        let found = checksum(algorithm, file)?;
        if !found.eq_ignore_ascii_case(expected) {
            return Err(format!("checksum mismatch: got '{found}' != expect '{expected}'"));
        }
        worker.log("calculating checksum...OK, checksum verified");
    }
    let size = if wanted.content == "import" {
        virtual_size(wanted.format(), file)?
    } else {
        u64::try_from(file.len()).unwrap_or_default()
    };
    let path = wanted.path(&worker.world());
    worker.log(format!("target file: {path}"));
    let mut world = worker.world();
    let import = Import {
        content: wanted.content.clone(),
        format: wanted.format().to_owned(),
        size,
        created: world.seconds(),
        origin: origin_of(&worker.who),
    };
    world.imports.insert(wanted.volid(), import);
    let now = world.now;
    world
        .audit
        .change(now, &worker.who, &wanted.volid(), None, "import");
    Ok(())
}

fn checksum(algorithm: &str, file: &[u8]) -> Result<String, String> {
    Ok(match algorithm {
        "sha224" => hex::encode(Sha224::digest(file)),
        "sha256" => hex::encode(Sha256::digest(file)),
        "sha384" => hex::encode(Sha384::digest(file)),
        "sha512" => hex::encode(Sha512::digest(file)),
        other => return Err(format!("the stand-in cannot calculate {other}")),
    })
}

/// What a guest will see of an image that is not trusted: it may not point at other files of the node.
fn virtual_size(format: &str, file: &[u8]) -> Result<u64, String> {
    const QCOW2: &[u8] = b"QFI\xfb";
    let length = u64::try_from(file.len()).unwrap_or_default();
    let number = |at: usize| {
        let bytes = file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes)
    };
    match format {
        "qcow2" if !file.starts_with(QCOW2) => Err("Image is not in qcow2 format".into()),
        "qcow2" if number(8) != Some(0) => Err("backing file not allowed for untrusted image".into()),
        "qcow2" => number(24).ok_or_else(|| "Image is not in qcow2 format".into()),
        "vmdk" if !file.starts_with(b"KDMV") => Err("Image is not in vmdk format".into()),
        _ => Ok(length),
    }
}

/// How a list shows a file.
pub(crate) fn entry(volid: &str, import: &Import) -> Value {
    serde_json::json!({
        "volid": volid, "content": import.content, "format": import.format, "size": import.size,
        "ctime": import.created,
    })
}
