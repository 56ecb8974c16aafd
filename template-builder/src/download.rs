//! Images that others publish: fetched by address, gone on with where a connection broke off, and believed only once
//! their checksum is the one that was named.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{During, Result, TemplateError};
use crate::fingerprint;
use crate::store::{CACHE, TemplateStore};
use crate::tool::{Call, Workshop};

/// How often a download is gone on with that brings something each time.
const MOST_ATTEMPTS: u32 = 20;
/// Largest list of checksums that is read.
const LARGEST_LIST: u64 = 4 << 20;

/// Where an image is, and why what comes from there is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    url: String,
    checksum: Checksum,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Checksum {
    Sha256(String),
    /// A list as `sha256sum` writes it, with a line for the image's name.
    ListAt(String),
}

fn wrong(problem: String, hint: &str) -> TemplateError {
    TemplateError::Settings {
        problem,
        hint: Some(hint.to_owned()),
    }
}

impl Source {
    /// # Errors
    /// The address is none, there is not exactly one checksum, or one that proves nothing.
    pub fn new(url: &str, sha256: Option<&str>, sha256_url: Option<&str>) -> Result<Self> {
        let named = is_address(url, &["https://", "http://"]) && !file_name(url).is_empty();
        if !named {
            return Err(wrong(
                format!("--image-url `{}` is no address of a file", url.escape_debug()),
                "it begins with https:// or http:// and ends with the name of a qcow2 or raw image",
            ));
        }
        let checksum = match (sha256, sha256_url) {
            (Some(text), None) => Checksum::Sha256(digest(text).ok_or_else(|| {
                wrong(
                    format!("--image-sha256 `{}` is no SHA-256", text.escape_debug()),
                    "it has 64 hexadecimal digits",
                )
            })?),
            (None, Some(list)) if is_address(list, &["https://", "http://127.0.0.1:", "http://[::1]:"]) => {
                Checksum::ListAt(list.to_owned())
            }
            (None, Some(list)) => {
                return Err(wrong(
                    format!("--image-sha256-url `{}` cannot be believed", list.escape_debug()),
                    "a checksum proves nothing when whoever changes the image can change it too: use https://, or \
                     --image-sha256 with the digits",
                ));
            }
            (None, None) | (Some(_), Some(_)) => {
                return Err(wrong(
                    "--image-url needs either --image-sha256 or --image-sha256-url".to_owned(),
                    "an image whose checksum nobody names could be anything",
                ));
            }
        };
        Ok(Self {
            url: url.to_owned(),
            checksum,
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its file's name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        file_name(&self.url)
    }

    /// The checksum: the one that was named, or the list's.
    pub(crate) fn sha256(&self, workshop: &Workshop<'_>) -> Result<String> {
        match &self.checksum {
            Checksum::Sha256(sha256) => Ok(sha256.clone()),
            Checksum::ListAt(url) => {
                let path = workshop.scratch.join("checksums");
                curl(workshop, url, &path, Resume::No)?;
                let text = fs::read_to_string(&path).during("read", &path)?;
                find_in_list(&text, self.name()).ok_or_else(|| {
                    wrong(
                        format!("{url} has no SHA-256 of `{}`", self.name()),
                        "name the list that belongs to the image, such as SHA256SUMS beside it",
                    )
                })
            }
        }
    }

    /// The image's file, fetched unless it is kept from last time. What is at the returned path has that checksum.
    pub(crate) fn fetch(
        &self,
        workshop: &Workshop<'_>,
        store: &TemplateStore,
        sha256: &str,
    ) -> Result<PathBuf> {
        let kept = kept_path(store.dir(), sha256);
        if kept.is_file() && fingerprint::of_file(&kept)?.0 == sha256 {
            return Ok(kept);
        }
        // Kept when we die, so that the next build goes on with it.
        let partial = partial_path(&kept);
        let was_begun = partial.exists();
        self.download(workshop, &partial)?;
        let (mut found, _) = fingerprint::of_file(&partial)?;
        if found != sha256 && was_begun {
            // What was there may be the start of an older image of that address.
            fs::remove_file(&partial).during("remove", &partial)?;
            self.download(workshop, &partial)?;
            (found, _) = fingerprint::of_file(&partial)?;
        }
        if found != sha256 {
            fs::remove_file(&partial).during("remove", &partial)?;
            return Err(wrong(
                format!("{} has SHA-256 {found}, and {sha256} was named for it", self.url),
                "it is another image than was meant, or was changed on the way; nothing of it was looked at",
            ));
        }
        File::open(&partial)
            .and_then(|file| file.sync_all())
            .during("flush", &partial)?;
        fs::rename(&partial, &kept).during("keep the image as", &kept)?;
        Ok(kept)
    }

    /// Goes on for as long as each attempt brings something.
    fn download(&self, workshop: &Workshop<'_>, partial: &Path) -> Result<()> {
        let length = || fs::metadata(partial).map_or(0, |seen| seen.len());
        let mut before = length();
        for _ in 1..MOST_ATTEMPTS {
            let Err(error) = curl(workshop, &self.url, partial, Resume::Yes) else {
                return Ok(());
            };
            let words = error.to_string();
            if before > 0 && CANNOT_RESUME.iter().any(|sign| words.contains(sign)) {
                fs::remove_file(partial).during("remove", partial)?;
            } else if length() <= before {
                return Err(error);
            }
            before = length();
        }
        curl(workshop, &self.url, partial, Resume::Yes)
    }
}

/// curl's words when a server gives no part of a file (33), or the part begins behind the file's end (416).
const CANNOT_RESUME: [&str; 3] = ["curl: (33)", "curl: (36)", "error: 416"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resume {
    Yes,
    No,
}

fn curl(workshop: &Workshop<'_>, url: &str, into: &Path, resume: Resume) -> Result<()> {
    let mut arguments: Vec<String> = [
        // First: nothing of root's own configuration.
        "--disable",
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--max-redirs",
        "8",
        "--proto",
        "=http,https",
        "--proto-redir",
        "=http,https",
        "--connect-timeout",
        "30",
        "--speed-limit",
        "1000",
        "--speed-time",
        "60",
    ]
    .map(str::to_owned)
    .to_vec();
    match resume {
        Resume::Yes => arguments.extend(["--continue-at", "-"].map(str::to_owned)),
        Resume::No => arguments.extend(["--max-filesize".to_owned(), LARGEST_LIST.to_string()]),
    }
    arguments.extend(["--output".to_owned(), into.display().to_string()]);
    arguments.extend(["--url".to_owned(), url.to_owned()]);
    Call {
        program: &workshop.tools.curl,
        package: "curl",
        arguments,
        environment: Vec::new(),
    }
    .run(workshop)
}

/// What of it is there, until all of it is.
pub(crate) fn partial_path(kept: &Path) -> PathBuf {
    kept.with_extension("part")
}

/// Where a verified image is kept.
pub(crate) fn kept_path(store: &Path, sha256: &str) -> PathBuf {
    store.join(CACHE).join(format!("{sha256}.image"))
}

fn is_address(url: &str, starts: &[&str]) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\{}".contains(&byte);
    starts.iter().any(|start| url.starts_with(start)) && url.bytes().all(plain)
}

/// The last part of the path.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let (_, rest) = path.split_once("://").unwrap_or(("", path));
    rest.rsplit_once('/').map_or("", |(_, name)| name)
}

fn digest(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

/// `<digest>  name` or `<digest> *name`, as `sha256sum` writes it; or a file of the digest alone.
fn find_in_list(text: &str, name: &str) -> Option<String> {
    let mut named = text.lines().filter_map(|line| {
        let (first, rest) = line.trim().split_once([' ', '\t'])?;
        let rest = rest.trim_start().trim_start_matches('*').trim_start_matches("./");
        (rest == name).then(|| digest(first))?
    });
    named.next().or_else(|| digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_checksum_that_proves_something_is_refused() {
        let url = "https://cloud.example/debian.qcow2";
        let digits = "a".repeat(64);
        assert!(Source::new(url, Some(&digits), None).is_ok());
        assert!(Source::new(url, None, Some("https://cloud.example/SHA256SUMS")).is_ok());
        for (url, sha256, list) in [
            (url, None, None),
            (
                url,
                Some(digits.as_str()),
                Some("https://cloud.example/SHA256SUMS"),
            ),
            (url, Some("abc"), None),
            (url, None, Some("http://cloud.example/SHA256SUMS")),
            ("file:///etc/shadow", Some(&digits), None),
            ("https://cloud.example/", Some(&digits), None),
            ("https://cloud.example/a b", Some(&digits), None),
        ] {
            let error = Source::new(url, sha256, list).unwrap_err();
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn a_list_is_read_as_sha256sum_writes_it_and_only_the_very_name_counts() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let list = format!("{one}  other.qcow2\n{two} *debian.qcow2\n");
        assert_eq!(find_in_list(&list, "debian.qcow2"), Some(two.clone()));
        assert_eq!(find_in_list(&list, "ebian.qcow2"), None);
        assert_eq!(find_in_list(&format!("{one}\n"), "debian.qcow2"), Some(one));
        assert_eq!(find_in_list("<html>404</html>", "debian.qcow2"), None);
    }
}
