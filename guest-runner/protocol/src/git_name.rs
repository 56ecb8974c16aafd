//! Names by which git knows its own directory, as every file system has them. A guest chooses names; neither the host nor
//! a command that writes them may make a directory of git's of one.

/// What a file system makes of a name that ignores characters nobody sees, what follows a colon, and dots and spaces at
/// the end.
#[must_use]
pub fn seen_by_git(part: &str) -> String {
    let visible: String = part
        .chars()
        .filter(|c| {
            !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
        })
        .collect();
    let name = visible.split(':').next().unwrap_or_default();
    name.trim_end_matches(['.', ' ']).to_owned()
}

/// Whether some file system makes `.git` of a name: also by ignoring case, or by its short form.
#[must_use]
pub fn is_git_directory(part: &str) -> bool {
    let name = seen_by_git(part);
    name.eq_ignore_ascii_case(".git") || name.eq_ignore_ascii_case("git~1")
}
