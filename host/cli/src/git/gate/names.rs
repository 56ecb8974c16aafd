//! File names that make something run, or are obeyed, by name alone. Compared without case: some file systems do.

use super::RiskKind;

/// Names of a directory anywhere in the path: everything below counts.
const DIRECTORIES: &[(&str, RiskKind)] = &[
    (".git", RiskKind::GitConfig),
    (".githooks", RiskKind::Hook),
    (".git-hooks", RiskKind::Hook),
    (".husky", RiskKind::Hook),
    (".lefthook", RiskKind::Hook),
    (".agentlab", RiskKind::Agent),
    (".aider", RiskKind::Agent),
    (".claude", RiskKind::Agent),
    (".codex", RiskKind::Agent),
    (".continue", RiskKind::Agent),
    (".cursor", RiskKind::Agent),
    (".gemini", RiskKind::Agent),
    (".opencode", RiskKind::Agent),
    (".windsurf", RiskKind::Agent),
    (".devcontainer", RiskKind::Editor),
    (".fleet", RiskKind::Editor),
    (".idea", RiskKind::Editor),
    (".vscode", RiskKind::Editor),
    (".zed", RiskKind::Editor),
    (".direnv", RiskKind::Environment),
    (".buildkite", RiskKind::Pipeline),
    (".ci", RiskKind::Pipeline),
    (".circleci", RiskKind::Pipeline),
    (".forgejo", RiskKind::Pipeline),
    (".gitea", RiskKind::Pipeline),
    (".github", RiskKind::Pipeline),
    (".gitlab", RiskKind::Pipeline),
    (".woodpecker", RiskKind::Pipeline),
    (".cargo", RiskKind::Build),
    (".mvn", RiskKind::Build),
    (".yarn", RiskKind::Package),
];

/// Names of a file, wherever it is.
const FILES: &[(&str, RiskKind)] = &[
    (".overcommit.yml", RiskKind::Hook),
    (".pre-commit-config.yaml", RiskKind::Hook),
    (".pre-commit-hooks.yaml", RiskKind::Hook),
    ("lefthook.yml", RiskKind::Hook),
    ("lefthook.yaml", RiskKind::Hook),
    (".lintstagedrc", RiskKind::Hook),
    (".gitconfig", RiskKind::GitConfig),
    (".lfsconfig", RiskKind::GitConfig),
    (".gitattributes", RiskKind::Attributes),
    (".gitmodules", RiskKind::Submodule),
    (".aider.conf.yml", RiskKind::Agent),
    (".cursorrules", RiskKind::Agent),
    (".mcp.json", RiskKind::Agent),
    (".windsurfrules", RiskKind::Agent),
    ("agents.md", RiskKind::Agent),
    ("claude.local.md", RiskKind::Agent),
    ("claude.md", RiskKind::Agent),
    ("gemini.md", RiskKind::Agent),
    ("opencode.json", RiskKind::Agent),
    ("opencode.jsonc", RiskKind::Agent),
    (".dir-locals.el", RiskKind::Editor),
    (".exrc", RiskKind::Editor),
    (".nvim.lua", RiskKind::Editor),
    (".nvimrc", RiskKind::Editor),
    (".vimrc", RiskKind::Editor),
    (".bash_profile", RiskKind::Environment),
    (".bashrc", RiskKind::Environment),
    (".env", RiskKind::Environment),
    (".envrc", RiskKind::Environment),
    (".mise.toml", RiskKind::Environment),
    (".profile", RiskKind::Environment),
    (".tool-versions", RiskKind::Environment),
    (".zshrc", RiskKind::Environment),
    ("mise.toml", RiskKind::Environment),
    (".drone.yml", RiskKind::Pipeline),
    (".gitlab-ci.yml", RiskKind::Pipeline),
    (".travis.yml", RiskKind::Pipeline),
    ("appveyor.yml", RiskKind::Pipeline),
    ("azure-pipelines.yml", RiskKind::Pipeline),
    ("bitbucket-pipelines.yml", RiskKind::Pipeline),
    ("jenkinsfile", RiskKind::Pipeline),
    ("bsdmakefile", RiskKind::Build),
    ("build", RiskKind::Build),
    ("build.bazel", RiskKind::Build),
    ("build.rs", RiskKind::Build),
    ("build.xml", RiskKind::Build),
    ("build.zig", RiskKind::Build),
    ("cmakelists.txt", RiskKind::Build),
    ("configure", RiskKind::Build),
    ("configure.ac", RiskKind::Build),
    ("conftest.py", RiskKind::Build),
    ("dockerfile", RiskKind::Build),
    ("flake.nix", RiskKind::Build),
    ("gnumakefile", RiskKind::Build),
    ("gradlew", RiskKind::Build),
    ("gradlew.bat", RiskKind::Build),
    ("justfile", RiskKind::Build),
    (".justfile", RiskKind::Build),
    ("makefile", RiskKind::Build),
    ("meson.build", RiskKind::Build),
    ("mvnw", RiskKind::Build),
    ("noxfile.py", RiskKind::Build),
    ("pom.xml", RiskKind::Build),
    ("rakefile", RiskKind::Build),
    ("rust-toolchain", RiskKind::Build),
    ("rust-toolchain.toml", RiskKind::Build),
    ("shell.nix", RiskKind::Build),
    ("sitecustomize.py", RiskKind::Build),
    ("taskfile.yml", RiskKind::Build),
    ("tox.ini", RiskKind::Build),
    ("usercustomize.py", RiskKind::Build),
    ("vagrantfile", RiskKind::Build),
    ("workspace", RiskKind::Build),
    ("workspace.bazel", RiskKind::Build),
    (".npmrc", RiskKind::Package),
    (".pnpmfile.cjs", RiskKind::Package),
    (".yarnrc", RiskKind::Package),
    (".yarnrc.yml", RiskKind::Package),
    ("binding.gyp", RiskKind::Package),
    ("bunfig.toml", RiskKind::Package),
    ("gemfile", RiskKind::Package),
    ("pip.conf", RiskKind::Package),
    ("setup.cfg", RiskKind::Package),
    ("setup.py", RiskKind::Package),
    ("bun.lock", RiskKind::Lockfile),
    ("bun.lockb", RiskKind::Lockfile),
    ("cargo.lock", RiskKind::Lockfile),
    ("composer.lock", RiskKind::Lockfile),
    ("deno.lock", RiskKind::Lockfile),
    ("flake.lock", RiskKind::Lockfile),
    ("gemfile.lock", RiskKind::Lockfile),
    ("go.sum", RiskKind::Lockfile),
    ("npm-shrinkwrap.json", RiskKind::Lockfile),
    ("package-lock.json", RiskKind::Lockfile),
    ("pdm.lock", RiskKind::Lockfile),
    ("pipfile.lock", RiskKind::Lockfile),
    ("pnpm-lock.yaml", RiskKind::Lockfile),
    ("poetry.lock", RiskKind::Lockfile),
    ("uv.lock", RiskKind::Lockfile),
    ("yarn.lock", RiskKind::Lockfile),
];

/// Ends of a file's name.
const ENDINGS: &[(&str, RiskKind)] = &[
    (".code-workspace", RiskKind::Editor),
    (".cmake", RiskKind::Build),
    (".csproj", RiskKind::Build),
    (".gemspec", RiskKind::Package),
    (".gradle", RiskKind::Build),
    (".gradle.kts", RiskKind::Build),
    (".mk", RiskKind::Build),
    (".props", RiskKind::Build),
    (".pth", RiskKind::Build),
    (".targets", RiskKind::Build),
];

/// Beginnings of a file's name.
const BEGINNINGS: &[(&str, RiskKind)] = &[
    (".env.", RiskKind::Environment),
    (".lintstagedrc.", RiskKind::Hook),
    ("docker-compose", RiskKind::Build),
    ("dockerfile.", RiskKind::Build),
    ("makefile.", RiskKind::Build),
];

/// Whole paths.
const PATHS: &[(&str, RiskKind)] = &[("debian/rules", RiskKind::Build)];

/// What the name of a path makes of it.
pub(super) fn kind(path: &str) -> Option<RiskKind> {
    let path = path.to_lowercase();
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let of = |table: &[(&str, RiskKind)], fits: &dyn Fn(&str) -> bool| {
        table.iter().find(|(word, _)| fits(word)).map(|(_, kind)| *kind)
    };
    // A repository without a work tree, or a file that takes the place of a directory, counts as the directory.
    of(DIRECTORIES, &|word| {
        directories.split('/').any(|part| part == word) || name == word
    })
    .or_else(|| of(PATHS, &|word| path == word || path.ends_with(&format!("/{word}"))))
    .or_else(|| of(FILES, &|word| name == word))
    .or_else(|| of(ENDINGS, &|word| name.ends_with(word)))
    .or_else(|| of(BEGINNINGS, &|word| name.starts_with(word)))
}
