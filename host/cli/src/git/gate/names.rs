//! File names that make something run, or are obeyed, by name alone. Compared as the most forgiving file system would.

use icu_normalizer::DecomposingNormalizer;

use super::RiskKind::{
    self, Agent, Attributes, Build, Editor, Environment, GitConfig, Hook, Lockfile, Package, Pipeline,
    Submodule,
};
use crate::terminal::is_invisible;

/// Names, apart by spaces.
type Table = &'static [(RiskKind, &'static str)];

/// Of a directory anywhere in the path: everything below counts.
const DIRECTORIES: Table = &[
    (GitConfig, ".git"),
    (Hook, ".git-hooks .githooks .husky .lefthook"),
    (
        Agent,
        ".agent .agentlab .agents .aider .amazonq .augment .claude .cline .clinerules .codex .continue .crush .cursor
         .factory .gemini .goose .junie .kilocode .kiro .openhands .opencode .qwen .roo .trae .windsurf",
    ),
    (
        Editor,
        ".bloop .bsp .devcontainer .fleet .helix .idea .idx .nova .nvim .run .settings .theia .vim .vs .vscode .zed",
    ),
    (Environment, ".direnv .devbox .mise .pixi .rtx"),
    (
        Pipeline,
        ".azure-pipelines .azuredevops .buildkite .builds .ci .circleci .dagger .forgejo .gitea .github .gitlab .harness
         .jenkins .pipelines .semaphore .teamcity .tekton .woodpecker .zuul.d zuul.d",
    ),
    (Build, ".cargo .config .meson .mvn buildsrc"),
    (Package, ".bundle .npm .pnpm .yarn"),
];

/// Of a file, wherever it is.
const FILES: Table = &[
    (
        Hook,
        "applypatch-msg commit-msg fsmonitor-watchman post-applypatch post-checkout post-commit post-index-change
         post-merge post-receive post-rewrite post-update pre-applypatch pre-auto-gc pre-commit pre-merge-commit pre-push
         pre-rebase pre-receive prepare-commit-msg proc-receive push-to-checkout reference-transaction sendemail-validate
         .captainhook.json .gitlint .huskyrc .lintstagedrc .local-overcommit.yml .overcommit.yml .pre-commit-config.yaml
         .pre-commit-config.yml .pre-commit-hooks.yaml .simple-git-hooks.json captainhook.json grumphp.yml prek.toml",
    ),
    (GitConfig, ".gitconfig .lfsconfig"),
    (Attributes, ".gitattributes"),
    (Submodule, ".gitmodules"),
    (
        Agent,
        ".aider.conf.yml .claude.json .cursorrules .goosehints .mcp.json .roomodes .rules .windsurfrules agent.md
         agents.md agents.override.md claude.local.md claude.md crush.json gemini.md mcp.json
         opencode.json opencode.jsonc qwen.md skill.md",
    ),
    (
        Editor,
        ".ccls .clangd .dir-locals-2.el .dir-locals.el .exrc .gitpod.dockerfile .gitpod.yml .gvimrc .hie-bios .kakrc
         .lsp.json .luarc.json .luarc.jsonc .lvimrc .merlin .neoconf.json .nvim.lua .nvimrc .project .replit .vimrc
         .ycm_extra_conf.py compile_commands.json compile_flags.txt hie.yaml pyrightconfig.json",
    ),
    (
        Environment,
        ".autoenv .bash_login .bash_logout .bash_profile .bashrc .cshrc .curlrc .env .envrc .gdbinit .ghci .go-version
         .iex.exs .inputrc .irbrc .java-version .kshrc .lldbinit .login .mise.toml .netrc .node-version .nvmrc .ocamlinit .pdbrc
         .profile .pryrc .psqlrc .python-version .rprofile .renviron .rtx.toml .ruby-version .screenrc .sdkmanrc
         .sqliterc .tcshrc .terraform-version .terraformrc .tmux.conf .tool-versions .wgetrc .zlogin .zprofile .zshenv
         .zshrc devbox.json mise.toml",
    ),
    (
        Pipeline,
        ".appveyor.yml .build.yml .cirrus.star .cirrus.yml .ci-operator.yaml .codecov.yml .drone.jsonnet .drone.star
         .drone.yaml .drone.yml .gitlab-ci.yaml .gitlab-ci.yml .goreleaser.yaml .goreleaser.yml .mergify.yml
         .packit.yaml .readthedocs.yaml .readthedocs.yml .releaserc .renovaterc .travis.yml .woodpecker.yaml
         .woodpecker.yml .zuul.yaml action.yaml action.yml appveyor.yml azure-pipelines.yaml azure-pipelines.yml
         bitbucket-pipelines.yml bitrise.yml buildspec.yml cloudbuild.json cloudbuild.yaml codefresh.yml codemagic.yaml
         dagger.json dangerfile earthfile fastfile fly.toml jenkinsfile netlify.toml procfile render.yaml renovate.json
         skaffold.yaml tiltfile vercel.json wercker.yml zuul.yaml",
    ),
    (
        Build,
        ".babelrc .bazelrc .bazelversion .coveragerc .eslintrc .eslintrc.json .eslintrc.yaml .eslintrc.yml .flake8
         .justfile .mocharc.json .mocharc.yml .mypy.ini .nycrc .prettierrc .pylintrc .pytest.ini .pytest.toml .rspec .rubocop.yml .stylelintrc .swcrc
         aclocal.m4 ant.xml autogen.sh bootstrap bootstrap.sh brakefile bsdmakefile buck build build.bazel build.boot
         build.mill build.ninja build.pl build.py build.rs build.sbt build.sc build.sh build.xml build.zig build.zig.zon
         cabal.project capfile cmakelists.txt cmakepresets.json cmakeuserpresets.json compose.yaml compose.yml conanfile.py
         conanfile.txt configure configure.ac configure.in conftest.py containerfile default.nix
         deps.edn devenv.nix dist.ini dockerfile dodo.py dune dune-project fabfile.py flake.nix gnumakefile gradlew
         gradlew.bat gradle.properties guardfile guix.scm hatch.toml hatch_build.py jakefile justfile magefile.go make.bat makefile
         manage.py meson.build meson.options meson_options.txt mill mix.exs module.bazel mvnw mvnw.cmd mypy.ini
         noxfile.py nx.json pdm_build.py pom.xml premake5.lua project.clj project.json project.pbxproj pylintrc
         pylintrc.toml pytest.ini pytest.toml rakefile rakefile.rb rebar.config rebar.config.script rust-toolchain rust-toolchain.toml sconscript sconstruct setup.hs
         shadow-cljs.edn shell.nix sitecustomize.py stack.yaml taskfile taskfile.dist.yaml taskfile.dist.yml
         taskfile.yaml taskfile.yml tox.ini tox.toml turbo.json usercustomize.py vagrantfile waf workspace workspace.bazel
         workspace.bzlmod wscript xmake.lua",
    ),
    (
        Package,
        ".condarc .npmrc .pnpmfile.cjs .pnpmfile.mjs .pypirc .yarnrc .yarnrc.yml binding.gyp bunfig.toml
         cartfile constraints.txt cpanfile deno.json deno.jsonc environment.yaml environment.yml gemfile gems.rb
         lerna.json nuget.config nuget.exe package.swift pip.conf pipfile pixi.toml pnpm-workspace.yaml podfile
         pubspec.yaml rush.json setup.cfg setup.py uv.toml vcpkg-configuration.json vcpkg.json",
    ),
    (
        Lockfile,
        "bun.lock bun.lockb cargo.lock cartfile.resolved composer.lock conan.lock conda-lock.yml deno.lock flake.lock
         gemfile.lock gems.locked go.mod go.sum go.work go.work.sum gradle.lockfile mix.lock
         module.bazel.lock npm-shrinkwrap.json package-lock.json package.resolved packages.lock.json pdm.lock
         pipfile.lock pixi.lock pnpm-lock.yaml podfile.lock poetry.lock pubspec.lock pylock.toml stack.yaml.lock uv.lock
         verification-metadata.xml yarn.lock",
    ),
];

/// Ends of a file's name.
const ENDINGS: Table = &[
    (Editor, ".code-workspace .iml .ipr .iws .sublime-project"),
    (Pipeline, ".gitlab-ci.yml .gitlab-ci.yaml .jenkinsfile"),
    (
        Build,
        ".bzl .cabal .cmake .conf.js .config.cjs .config.cts .config.js .config.mjs .config.mts .config.ts .csproj
         .dockerfile .fsproj .gradle .gradle.kts .just .m4 .mk .nix .pbxproj .proj .props .pth .rake .sbt .sln .targets
         .vbproj .vcxproj .xcscheme",
    ),
    (Package, ".gemspec .podspec .rockspec requirements.in requirements.txt"),
];

/// Beginnings of a file's name.
const BEGINNINGS: Table = &[
    (
        Hook,
        ".huskyrc. .lefthook-local. .lefthook. .lintstagedrc. .simple-git-hooks. lefthook-local. lefthook.
         simple-git-hooks.",
    ),
    (Environment, ".env. .mise."),
    (Pipeline, ".releaserc. .renovaterc. azure-pipelines jenkinsfile."),
    (
        Build,
        ".babelrc. .eslintrc. .golangci. .mocharc. .prettierrc. .stylelintrc. cabal.project. compose. docker-compose
         dockerfile. gruntfile. gulpfile. makefile. gradle-wrapper. maven-wrapper.",
    ),
    (Package, "requirements-"),
];

/// Whole paths.
const PATHS: Table = &[
    (
        Build,
        "debian/rules doc/conf.py docs/conf.py docs/source/conf.py project/build.properties",
    ),
    (Environment, "renv/activate.r"),
    (Lockfile, "vendor/modules.txt"),
];

/// Ends of a file whose name begins with a dot: a setting that is a program, which its tool runs to read it.
const PROGRAMS: &str = ".cjs .cts .exs .js .lua .mjs .mts .php .pl .py .rb .sh .ts";

/// What the name of a path makes of it.
pub(super) fn kind(path: &str) -> Option<RiskKind> {
    let folded = fold(path);
    let parts: Vec<&str> = folded.split('/').map(plain).collect();
    let path = parts.join("/");
    let name = parts.last().copied().unwrap_or_default();
    let of = |table: Table, fits: &dyn Fn(&str) -> bool| {
        let fitting = |(_, words): &&(RiskKind, &str)| words.split_whitespace().any(fits);
        table.iter().find(fitting).map(|(kind, _)| *kind)
    };
    if parts.iter().any(|part| is_git(part)) {
        return Some(GitConfig);
    }
    // A repository without a work tree, or a file that takes the place of a directory, counts as the directory.
    of(DIRECTORIES, &|word| parts.contains(&word))
        .or_else(|| of(PATHS, &|word| path == word || path.ends_with(&format!("/{word}"))))
        .or_else(|| of(FILES, &|word| name == word))
        .or_else(|| of(ENDINGS, &|word| name.ends_with(word)))
        .or_else(|| of(BEGINNINGS, &|word| name.starts_with(word)))
        .or_else(|| {
            let is_program = PROGRAMS.split(' ').any(|word| name.ends_with(word));
            (name.starts_with('.') && is_program).then_some(Build)
        })
}

/// A name as file systems compare it that know neither case, nor two ways to write one character, nor characters that
/// take no room.
pub(super) fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    let normal = DecomposingNormalizer::new_nfd();
    let seen: String = name.chars().filter(|c| !is_invisible(*c)).collect();
    // Up and down again: some letters have one form only in the other case.
    normal
        .normalize(&normal.normalize(&seen).to_uppercase().to_lowercase())
        .into_owned()
}

/// Without what Windows leaves out at the end of a name.
fn plain(part: &str) -> &str {
    part.split(':')
        .next()
        .unwrap_or(part)
        .trim_end_matches([' ', '.'])
}

/// Whether some system takes a part of a path for git's own directory.
pub(super) fn is_git(part: &str) -> bool {
    let folded = fold(part);
    matches!(plain(&folded), ".git" | "git~1")
}

/// Why a part of a path is another name somewhere, or none.
pub(super) fn odd(part: &str) -> Option<&'static str> {
    let lower = part.to_ascii_lowercase();
    let (stem, ending) = lower.split_once('.').unwrap_or((&lower, ""));
    let device = match stem.get(..3) {
        Some("con" | "prn" | "aux" | "nul") => stem.len() == 3,
        Some("com" | "lpt") => stem.len() == 4 && stem.ends_with(|c: char| c.is_ascii_digit()),
        Some(_) | None => false,
    };
    let is_short = stem.len() <= 8
        && ending.len() <= 3
        && stem.split_once('~').is_some_and(|(start, digits)| {
            !start.is_empty() && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
    let odd = part.contains(['\\', ':']) || part.ends_with([' ', '.']) || part.starts_with('-');
    if part.len() > 255 {
        Some("longer than names can be")
    } else if odd || device || is_short {
        Some("a name that some systems read as another one")
    } else {
        None
    }
}
