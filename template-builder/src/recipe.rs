//! The recipe: what goes into an image. Strict: a key nobody enforces is an error at its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::error::{During, Result, TemplateError, nearest};
use crate::fingerprint::Fingerprint;
use crate::npm::NpmPackage;
use crate::shape::Shape;

/// Recipes that need no file, as `(name, text)`.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("agents", include_str!("../../packaging/recipes/agents.toml")),
    ("demo", include_str!("../../packaging/recipes/demo.toml")),
    (
        "debian-13",
        include_str!("../../packaging/recipes/debian-13.toml"),
    ),
];

/// VMID that a template stands for when its recipe names none.
pub const DEFAULT_VMID: u32 = 9000;
const DEFAULT_SUITE: &str = "trixie";
const DEFAULT_SIZE_MB: u32 = 4096;
/// Largest file that a recipe places; it is held in memory.
const MAX_SOURCE_BYTES: u64 = 256 << 20;
/// Most characters of a message.
const MOST_SHOWN: usize = 1000;

/// A recipe that has been checked, with the content of every file it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Its name, and the image's.
    pub name: String,
    /// For whom the image is made. Not the recipe's to say: whoever builds says it.
    pub shape: Shape,
    /// The VMID that the image stands for.
    pub vmid: u32,
    /// Debian suite.
    pub suite: String,
    /// Packages asked for, sorted, each once.
    pub packages: Vec<String>,
    /// Units masked besides those of [`crate::tuning`].
    pub masked_units: Vec<String>,
    /// Units and generators that [`crate::tuning`] would mask and that stay.
    pub kept_units: Vec<String>,
    /// Files to place.
    pub files: Vec<RecipeFile>,
    /// Units to place and start.
    pub units: Vec<RecipeUnit>,
    /// Packages of npm.
    pub npm: Vec<NpmPackage>,
    /// Runner, when the recipe names one.
    pub runner: Option<PathBuf>,
    /// Size of the root file system in MiB.
    pub size_mb: u32,
    /// Appended to the kernel command line.
    pub kernel_arguments: Vec<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    /// Where, in the guest.
    pub path: String,
    /// Mode bits.
    pub mode: u32,
    /// What.
    pub content: Vec<u8>,
}

/// One systemd unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeUnit {
    /// Its file name.
    pub name: String,
    /// Its text.
    pub content: Vec<u8>,
    /// Started at boot.
    pub enabled: bool,
}

impl Recipe {
    /// Hash of everything the recipe decides. Comments, order of packages and where its files lay do not count.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut print = Fingerprint::of("agentlab recipe")
            .with("name", self.name.as_bytes())
            .with("vmid", &self.vmid.to_be_bytes())
            .with("suite", self.suite.as_bytes())
            .with_all("packages", &self.packages)
            .with_all("masked_units", &self.masked_units)
            .with_all("kept_units", &self.kept_units)
            .with("size_mb", &self.size_mb.to_be_bytes())
            .with_all("kernel_command_line", &self.kernel_arguments);
        for file in &self.files {
            print = print
                .with(&file.path, &file.content)
                .with("mode", &file.mode.to_be_bytes());
        }
        for unit in &self.units {
            print = print
                .with(&unit.name, &unit.content)
                .with("enabled", &[u8::from(unit.enabled)]);
        }
        for package in &self.npm {
            print = print
                .with(&package.directory, package.integrity.as_bytes())
                .with("programs", format!("{:?}", package.programs).as_bytes());
        }
        // A local image has the hash that it had before there were shapes.
        match self.shape {
            Shape::Local => print.finish(),
            shape => print.with("shape", shape.as_str().as_bytes()).finish(),
        }
    }

    /// The same recipe for a shape of image. Each shape has images of its own beside those of the others, so that the
    /// name says it.
    #[must_use]
    pub fn in_shape(mut self, shape: Shape) -> Self {
        if shape != Shape::Local {
            self.name = format!("{}-{shape}", self.name);
        }
        self.shape = shape;
        self
    }

    /// The whole kernel command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        let own = self.kernel_arguments.iter().map(String::as_str);
        let all: Vec<&str> = self.shape.command_line().iter().copied().chain(own).collect();
        all.join(" ")
    }
}

/// Finds a recipe: a built-in one by its name, anything else by path.
///
/// # Errors
/// When there is none, or it is not right.
pub fn load(wanted: &str) -> Result<Recipe> {
    let path = Path::new(wanted);
    if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == wanted) {
        return parse(text, &format!("{name}.toml"), Path::new("."));
    }
    if !path.is_file() {
        let names = || BUILT_IN.iter().map(|(name, _)| *name);
        return Err(TemplateError::UnknownRecipe {
            wanted: wanted.to_owned(),
            known: names().collect::<Vec<_>>().join(", "),
            hint: nearest(wanted, names()).map(|name| format!("did you mean `{name}`?")),
        });
    }
    let text = fs::read_to_string(path).during("read", path)?;
    parse(&text, wanted, path.parent().unwrap_or(Path::new(".")))
}

/// Reads and checks a recipe. `shown` names it in errors; relative paths in it start at `base`.
///
/// # Errors
/// With file, line and column of the first thing that is not right.
pub fn parse(text: &str, shown: &str, base: &Path) -> Result<Recipe> {
    let source = Source { text, shown };
    let written: Written = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    source.check(written, base)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Spanned<String>,
    vmid: Option<Spanned<u32>>,
    suite: Option<Spanned<String>>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    #[serde(default)]
    masked_units: Vec<Spanned<String>>,
    #[serde(default)]
    kept_units: Vec<Spanned<String>>,
    #[serde(default)]
    files: Vec<WrittenFile>,
    #[serde(default)]
    units: Vec<WrittenUnit>,
    #[serde(default)]
    npm: Vec<Spanned<NpmPackage>>,
    runner: Option<PathBuf>,
    size_mb: Option<Spanned<u32>>,
    #[serde(default)]
    kernel_command_line: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    path: Spanned<String>,
    mode: Option<Spanned<String>>,
    content: Option<String>,
    source: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUnit {
    name: Spanned<String>,
    content: Option<String>,
    source: Option<Spanned<PathBuf>>,
    enabled: Option<bool>,
}

struct Source<'a> {
    text: &'a str,
    shown: &'a str,
}

impl Source<'_> {
    fn at(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{}:{line}:{column}", self.shown)
    }

    fn wrong(&self, offset: usize, problem: String) -> TemplateError {
        TemplateError::Recipe {
            at: self.at(offset),
            problem: shown(&problem),
            hint: None,
        }
    }

    /// The parser's words; for a key nobody knows, ours, with the nearest that somebody knows.
    fn syntax(&self, error: &toml::de::Error) -> TemplateError {
        let at = error
            .span()
            .map_or_else(|| self.shown.to_owned(), |span| self.at(span.start));
        let mut quoted = error.message().split('`').skip(1).step_by(2);
        if error.message().starts_with("unknown field")
            && let Some(key) = quoted.next()
        {
            let known: Vec<&str> = quoted.collect();
            let hint = nearest(key, known.iter().copied()).map_or_else(
                || format!("known keys: {}", known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            return TemplateError::Recipe {
                at,
                problem: shown(&format!("unknown key `{key}`")),
                hint: Some(shown(&hint)),
            };
        }
        TemplateError::Recipe {
            at,
            problem: shown(error.message()),
            hint: None,
        }
    }

    fn check(&self, written: Written, base: &Path) -> Result<Recipe> {
        let vmid = written.vmid.map_or(Ok(DEFAULT_VMID), |vmid| {
            self.within(&vmid, 100..=999_999_999, "a VMID is between 100 and 999999999")
        })?;
        let size_mb = written.size_mb.map_or(Ok(DEFAULT_SIZE_MB), |size| {
            self.within(&size, 512..=1_048_576, "`size_mb` is between 512 and 1048576")
        })?;
        let suite = written.suite.map_or(Ok(DEFAULT_SUITE.to_owned()), |suite| {
            self.word(suite, is_name, "a suite is a code name such as `trixie`")
        })?;
        let mut packages = self.words(written.packages, is_package, "not the name of a Debian package")?;
        packages.sort_unstable();
        packages.dedup();
        Ok(Recipe {
            name: self.word(
                written.name,
                is_name,
                "a name has lower-case letters, digits, `.` and `-`, at most 63",
            )?,
            shape: Shape::Local,
            vmid,
            suite,
            packages,
            masked_units: self.words(written.masked_units, is_unit, "not the name of a unit")?,
            kept_units: self.words(written.kept_units, is_unit, "not the name of a unit or generator")?,
            files: written
                .files
                .into_iter()
                .map(|file| self.file(file, base))
                .collect::<Result<_>>()?,
            units: written
                .units
                .into_iter()
                .map(|unit| self.unit(unit, base))
                .collect::<Result<_>>()?,
            npm: self.npm(written.npm)?,
            runner: written.runner.map(|path| base.join(path)),
            size_mb,
            kernel_arguments: self.words(
                written.kernel_command_line,
                is_argument,
                "a kernel argument is one printable word without quotes",
            )?,
        })
    }

    fn npm(&self, written: Vec<Spanned<NpmPackage>>) -> Result<Vec<NpmPackage>> {
        written
            .into_iter()
            .map(|package| match package.get_ref().fault() {
                Some(fault) => Err(self.wrong(package.span().start, fault.to_owned())),
                None => Ok(package.into_inner()),
            })
            .collect()
    }

    fn within(&self, value: &Spanned<u32>, range: std::ops::RangeInclusive<u32>, rule: &str) -> Result<u32> {
        let number = *value.get_ref();
        if range.contains(&number) {
            return Ok(number);
        }
        Err(self.wrong(value.span().start, format!("{number}: {rule}")))
    }

    fn word(&self, value: Spanned<String>, fits: fn(&str) -> bool, rule: &str) -> Result<String> {
        if fits(value.get_ref()) {
            return Ok(value.into_inner());
        }
        Err(self.wrong(
            value.span().start,
            format!("`{}`: {rule}", value.get_ref().escape_debug()),
        ))
    }

    fn words(&self, values: Vec<Spanned<String>>, fits: fn(&str) -> bool, rule: &str) -> Result<Vec<String>> {
        values
            .into_iter()
            .map(|value| self.word(value, fits, rule))
            .collect()
    }

    fn content(
        &self,
        (offset, what): (usize, &str),
        (content, source): (Option<String>, Option<Spanned<PathBuf>>),
        base: &Path,
    ) -> Result<Vec<u8>> {
        match (content, source) {
            (Some(content), None) => Ok(content.into_bytes()),
            (None, Some(source)) => {
                let path = base.join(source.get_ref());
                read_source(&path).map_err(|error| {
                    self.wrong(
                        source.span().start,
                        format!("cannot read {}: {error}", path.display()),
                    )
                })
            }
            (Some(_), Some(_)) | (None, None) => {
                Err(self.wrong(offset, format!("{what} needs either `content` or `source`")))
            }
        }
    }

    fn file(&self, written: WrittenFile, base: &Path) -> Result<RecipeFile> {
        let offset = written.path.span().start;
        let mode = match &written.mode {
            None => 0o644,
            Some(text) => u32::from_str_radix(text.get_ref(), 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| {
                    self.wrong(
                        text.span().start,
                        format!("`{}`: a mode is octal, such as \"0644\"", text.get_ref()),
                    )
                })?,
        };
        let content = self.content((offset, "a file"), (written.content, written.source), base)?;
        let path = self.word(
            written.path,
            is_guest_path,
            "a path is absolute and has no `.` or `..` in it",
        )?;
        Ok(RecipeFile { path, mode, content })
    }

    fn unit(&self, written: WrittenUnit, base: &Path) -> Result<RecipeUnit> {
        let offset = written.name.span().start;
        let content = self.content((offset, "a unit"), (written.content, written.source), base)?;
        let name = self.word(written.name, is_unit, "a unit has a suffix, such as `.service`")?;
        Ok(RecipeUnit {
            name,
            content,
            enabled: written.enabled.unwrap_or(true),
        })
    }
}

/// In one line and not too long: texts of whoever wrote the recipe are part of it, and a terminal must not obey them.
fn shown(message: &str) -> String {
    let mut shown = String::new();
    for letter in message.chars().take(MOST_SHOWN) {
        if letter.is_control() {
            shown.extend(letter.escape_debug());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// A regular file of a sensible size: a device has no end, and a pipe may have no writer.
fn read_source(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > MAX_SOURCE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_SOURCE_BYTES} bytes; put it into a package"
        )));
    }
    fs::read(path)
}

fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
}

fn is_package(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    text.len() >= 2
        && text.bytes().all(inner)
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
}

fn is_unit(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:\\".contains(&byte);
    text.len() <= 255 && text.bytes().all(inner) && text.contains(['.', '-']) && !text.starts_with('.')
}

fn is_argument(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'')
}

fn is_guest_path(text: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    text.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(plain))
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
