//! Answers for people.

use std::fmt::Write;
use std::time::Duration;

use agentlab_api::Vmid;

use crate::gc::{self, Removal};
use crate::progress::Step;
use crate::store::{Difference, Template};

/// Digits of an id that people see; `find` takes as few as four.
const SHORT: usize = 12;

fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

pub(super) fn built(
    template: &Template,
    word: &str,
    published: Option<(Vmid, &str)>,
    (steps, seconds): (&[(Step, Duration)], f64),
) -> String {
    let manifest = &template.manifest;
    let mut text = String::new();
    for (step, took) in steps {
        let _infallible = writeln!(text, "  {:>7.2} s  {step}", took.as_secs_f64());
    }
    let _infallible = writeln!(
        text,
        "{} {} (VMID {}): {word} in {seconds:.2} s, {} in {}",
        manifest.name,
        short(&manifest.id),
        manifest.vmid,
        size(gc::bytes_on_disk(&template.dir)),
        template.dir.display()
    );
    if let Some((vmid, storage)) = published {
        let _infallible = writeln!(text, "VM {vmid} on storage {storage} is a template of it now");
    }
    text
}

pub(super) fn list(templates: &[Template]) -> String {
    let header = [
        "NAME", "VMID", "ID", "SUITE", "RUNNER", "KERNEL", "SIZE", "CREATED", "",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for template in templates {
        let manifest = &template.manifest;
        rows.push([
            manifest.name.clone(),
            manifest.vmid.to_string(),
            short(&manifest.id).to_owned(),
            manifest.suite.clone(),
            manifest.runner.version.clone().unwrap_or_else(|| "?".to_owned()),
            manifest.kernel.version.clone(),
            size(gc::bytes_on_disk(&template.dir)),
            manifest.created.clone(),
            if template.current {
                String::new()
            } else {
                "superseded".to_owned()
            },
        ]);
    }
    table(&rows)
}

pub(super) fn show(template: &Template) -> String {
    let manifest = &template.manifest;
    let mut rows = vec![
        ["name".to_owned(), manifest.name.clone()],
        ["vmid".to_owned(), manifest.vmid.to_string()],
        ["id".to_owned(), manifest.id.clone()],
        [
            "state".to_owned(),
            if template.current { "current" } else { "superseded" }.to_owned(),
        ],
        ["directory".to_owned(), template.dir.display().to_string()],
        ["created".to_owned(), manifest.created.clone()],
        [
            "suite".to_owned(),
            format!("{} ({})", manifest.suite, manifest.architecture),
        ],
        ["kernel".to_owned(), manifest.kernel.version.clone()],
        ["command line".to_owned(), manifest.kernel.command_line.clone()],
        [
            "runner".to_owned(),
            manifest
                .runner
                .version
                .clone()
                .unwrap_or_else(|| "version unknown".to_owned()),
        ],
        ["runner sha256".to_owned(), manifest.runner.sha256.clone()],
        ["recipe sha256".to_owned(), manifest.recipe_sha256.clone()],
        ["on disk".to_owned(), size(gc::bytes_on_disk(&template.dir))],
    ];
    for (name, record) in &manifest.files {
        rows.push([
            name.clone(),
            format!("{}  {}", record.sha256, size(record.size_bytes)),
        ]);
    }
    rows.push(["packages".to_owned(), manifest.packages.len().to_string()]);
    let packages = manifest
        .packages
        .iter()
        .map(|package| ["".to_owned(), format!("{} {}", package.name, package.version)]);
    rows.extend(packages);
    table(&rows)
}

pub(super) fn verified(template: &Template, differences: &[Difference]) -> String {
    let manifest = &template.manifest;
    let name = format!("{} {}", manifest.name, short(&manifest.id));
    if differences.is_empty() {
        return format!("sound    {name}\n");
    }
    let mut text = format!("damaged  {name} in {}\n", template.dir.display());
    for difference in differences {
        let _infallible = writeln!(text, "         {} {}", difference.file, difference.problem);
    }
    text
}

pub(super) fn removals(removals: &[Removal], dry_run: bool) -> String {
    if removals.is_empty() {
        return "Nothing to remove\n".to_owned();
    }
    let mut text = String::new();
    let verb = if dry_run { "would remove" } else { "removed" };
    for removal in removals {
        let (path, why, size) = (removal.path.display(), removal.why, size(removal.bytes));
        let _infallible = writeln!(text, "{verb} {path} ({size}): {why}");
    }
    text
}

/// Columns two spaces apart, each as wide as its widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _infallible = write!(line, "{cell:<width$}  ", width = width(column));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::example;

    #[test]
    fn a_list_lines_up_and_names_what_is_superseded() {
        let template = |name: &str, current| Template {
            manifest: example(name, 9000),
            dir: "/nonexistent".into(),
            current,
        };
        let text = list(&[template("demo", true), template("a-longer-name", false)]);
        let columns: Vec<usize> = text
            .lines()
            .map(|line| line.find("9000").or(line.find("VMID")).unwrap())
            .collect();
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.lines().nth(2).unwrap().ends_with("superseded"));
        assert!(text.lines().all(|line| line == line.trim_end()));
    }
}
