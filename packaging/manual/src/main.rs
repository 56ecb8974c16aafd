//! Writes the manual pages: `agentlab-manual DIRECTORY`. Not shipped.
//!
//! A program's page is its command line, so that page, `--help` and what is really parsed cannot differ. Each command
//! has a page of its own, named like git's: `agentlab job run` is agentlab-job-run(1).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Writes the manual pages of AgentLab.
#[derive(Parser)]
struct Arguments {
    /// Where to; each section gets a directory `man1`, `man8`
    directory: PathBuf,
}

/// A program and what its command line does not say.
struct Program {
    command: Command,
    section: &'static str,
    /// Its commands that are programs of their own, with pages of their own.
    elsewhere: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
    see_also: &'static [(&'static str, &'static str)],
}

fn programs() -> [Program; 4] {
    [
        Program {
            command: agentlab_cli::Arguments::command(),
            section: "1",
            elsewhere: &["net", "template"],
            files: &[
                (
                    "/run/agentlab/agentlabd.sock",
                    "Control socket. Members of the group agentlab may use it, which is as good as being root.",
                ),
                (
                    "/etc/agentlab/secrets",
                    "Bundles of secrets. /etc/agentlab/keys/age.key opens them.",
                ),
            ],
            see_also: &[
                ("agentlab-template", "1"),
                ("agentlab-net", "8"),
                ("agentlabd", "8"),
            ],
        },
        Program {
            command: agentlab_template::command::Arguments::command(),
            section: "1",
            elsewhere: &[],
            files: &[
                ("/var/lib/agentlab/templates", "Images."),
                (
                    "/usr/lib/agentlab/agent-runner",
                    "What is baked into each of them.",
                ),
                ("/usr/share/agentlab/recipes", "Recipes to start from."),
            ],
            see_also: &[("agentlab", "1"), ("agentlabd", "8"), ("mmdebstrap", "1")],
        },
        Program {
            command: agentlabd::Flags::command(),
            section: "8",
            elsewhere: &[],
            files: &[
                (
                    "/etc/agentlab/config.yaml",
                    "Configuration, mode 0600; each key stands in it with its default.",
                ),
                (
                    "/etc/agentlab/profiles",
                    "Profiles: what sandboxes are made of and what they may do.",
                ),
                ("/var/lib/agentlab", "Records, artifacts, VM disks and templates."),
                ("/run/agentlab/agentlabd.sock", "Control socket."),
            ],
            see_also: &[
                ("agentlab", "1"),
                ("agentlab-template", "1"),
                ("agentlab-net", "8"),
                ("systemctl", "1"),
            ],
        },
        Program {
            command: agentlab_netpolicy::command::Arguments::command(),
            section: "8",
            elsewhere: &[],
            files: &[
                ("/etc/agentlab/config.yaml", "What no option says."),
                (
                    "/etc/default/agentlab-net",
                    "Options of agentlab-net-seal.service, which closes every port before the network is up, and of \
                     agentlab-net.service, which applies the policy once it is.",
                ),
            ],
            see_also: &[("agentlab", "1"), ("agentlabd", "8"), ("nft", "8")],
        },
    ]
}

fn main() -> Result<()> {
    let directory = Arguments::parse().directory;
    for program in programs() {
        let mut command = program.command.clone().disable_help_subcommand(true);
        command.build();
        let pages = directory.join(format!("man{}", program.section));
        fs::create_dir_all(&pages).with_context(|| format!("making {}", pages.display()))?;
        write_pages(&program, &command, None, &pages)?;
    }
    Ok(())
}

/// The page of a command, and those of the commands below it.
fn write_pages(program: &Program, command: &Command, above: Option<&str>, pages: &Path) -> Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let path = pages.join(format!("{name}.{}", program.section));
    let page = page(program, command, &name, above)?;
    fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    let below = command
        .get_subcommands()
        .filter(|one| !one.is_hide_set() && !program.elsewhere.contains(&one.get_name()));
    for one in below {
        write_pages(program, one, Some(&name), pages)?;
    }
    Ok(())
}

/// Programs of their own stand in `see_also`, with their sections.
fn section_of(program: &Program, name: &str) -> &'static str {
    let known = program.see_also.iter().find(|(other, _)| *other == name);
    known.map_or(program.section, |(_, section)| section)
}

fn page(program: &Program, command: &Command, name: &str, above: Option<&str>) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(program.section)
        .source(format!("AgentLab {version}"))
        .manual("AgentLab");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    let mut rest = Roff::new();
    let mut below = command
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
        .peekable();
    if below.peek().is_some() {
        rest.control("SH", ["COMMANDS"]);
    }
    for one in below {
        let below_name = one.get_display_name().unwrap_or(one.get_name());
        rest.control("TP", []);
        rest.text([
            bold(below_name),
            roman(format!("({})", section_of(program, below_name))),
        ]);
        rest.text([roman(
            one.get_about().map(ToString::to_string).unwrap_or_default(),
        )]);
    }
    if let Some(words) = command.get_after_long_help().or(command.get_after_help()) {
        rest.control("SH", ["NOTES"]);
        rest.text([roman(words.to_string())]);
    }
    if above.is_none() {
        rest.control("SH", ["FILES"]);
        for (path, words) in program.files {
            rest.control("TP", []);
            rest.text([bold(*path)]);
            rest.text([roman(*words)]);
        }
    }
    rest.control("SH", ["SEE ALSO"]);
    let above = above.map(|name| (name, program.section));
    let mut references = Vec::new();
    for (name, section) in above.iter().chain(program.see_also) {
        if !references.is_empty() {
            references.push(roman(", "));
        }
        references.push(bold(*name));
        references.push(roman(format!("({section})")));
    }
    rest.text(references);
    rest.to_writer(&mut page)?;
    Ok(page)
}
