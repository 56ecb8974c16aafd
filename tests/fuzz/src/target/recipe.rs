//! Recipes of template images.

use std::path::Path;

use agentlab_template::TemplateError;
use agentlab_template::recipe::{BUILT_IN, parse};

use super::{Outcome, Target};
use crate::properties::{fit_to_print, inside, text};

pub(super) const TARGET: Target = Target {
    name: "recipe",
    seeds,
    words: &[
        "name = \"a\"\n",
        "vmid = ",
        "suite = ",
        "packages = [",
        "\"git\"",
        "[[files]]\n",
        "[[units]]\n",
        "path = \"/etc/x\"\n",
        "mode = \"0644\"\n",
        "content = \"\"\n",
        "source = \"",
        "enabled = true\n",
        "\"\"\"",
        "'''",
        "\\u0000",
        "\\u001b",
        "\u{1b}",
        "\r\n",
        "\u{feff}",
        "[",
        "{",
        "a.b.c.d",
        "1979-05-27T07:32:00Z",
        "inf",
        "/../",
        "\u{e9}",
        "size_mb = ",
        "kernel_command_line = [\"",
    ],
    run,
    longest: 8_192,
    base_bytes: 1 << 20,
    bytes_per_byte: 1_024,
    inputs: 2_500,
};

const LABEL: &str = "r.toml";
/// Relative sources lead nowhere.
const BASE: &str = "/nonexistent";

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<String> = BUILT_IN.iter().map(|(_, text)| (*text).to_owned()).collect();
    seeds.extend(
        [
            "name = \"a\"\n[[files]]\npath = \"/etc/x\"\nmode = \"0600\"\ncontent = \"x\"\n",
            "name = \"a\"\n[[files]]\npath = \"/etc/x\"\nsource = \"y\"\n",
            // A device has no end.
            "name = \"a\"\n[[files]]\npath = \"/etc/x\"\nsource = \"/dev/zero\"\n",
            "name = \"a\"\n[[units]]\nname = \"a.service\"\nsource = \"/\"\n",
            "name = \"a\"\nvmid = 9001\nsuite = \"trixie\"\nsize_mb = 512\nkernel_command_line = [\"quiet\"]\nkept_units = [\"a.service\"]\nrunner = \"r\"\n",
            "nmae = \"a\"\n",
        ]
        .map(str::to_owned),
    );
    seeds.push("a = ".to_owned() + &"[".repeat(8_000));
    seeds.push("a.".repeat(4_000) + "b = 1\n");
    seeds.push("a = ".to_owned() + &"{b = ".repeat(1_600));
    seeds.into_iter().map(String::into_bytes).collect()
}

fn run(input: &[u8]) -> Outcome {
    let text = text(input);
    match parse(&text, LABEL, Path::new(BASE)) {
        Ok(recipe) => {
            assert!(recipe.packages.is_sorted() && recipe.packages.iter().all(|one| !one.starts_with('-')));
            for file in &recipe.files {
                assert!(file.path.starts_with('/') && !file.path.split('/').any(|part| part == ".."));
                assert!(file.mode <= 0o7777);
            }
            assert!(recipe.units.iter().all(|unit| !unit.name.contains('/')));
            let commented = parse(&format!("{text}\n# a comment\n"), LABEL, Path::new(BASE));
            assert_eq!(
                commented.ok().map(|other| other.digest()),
                Some(recipe.digest()),
                "a comment makes another image of it"
            );
            Outcome::accepted(format!(
                "{} files {} units",
                recipe.files.len(),
                recipe.units.len()
            ))
        }
        Err(error) => refused(&text, &error),
    }
}

fn refused(text: &str, error: &TemplateError) -> Outcome {
    fit_to_print(&error.to_string());
    error.hint().iter().for_each(|hint| fit_to_print(hint));
    let message = error.to_string();
    // The one refusal for which the TOML reader knows no place.
    if message == format!("{LABEL}: recursion limit") {
        return Outcome::refused(message);
    }
    let Some(place) = message
        .strip_prefix(LABEL)
        .and_then(|rest| rest.strip_prefix(':'))
    else {
        panic!("an error does not begin with its file: {message}")
    };
    let mut numbers = place.splitn(3, ':').map(str::parse);
    let (Some(Ok(line)), Some(Ok(column))) = (numbers.next(), numbers.next()) else {
        panic!("an error names no place: {message}")
    };
    inside(text, line, column, &message);
    // A path makes no difference.
    let words = message.split("cannot read").next().unwrap_or_default();
    Outcome::refused(words)
}
