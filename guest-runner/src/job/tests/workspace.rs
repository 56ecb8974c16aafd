//! A workspace that an earlier job, or an enemy, had before.

use agentlab_protocol::message::{FailureCause, ReportStatus, Stream};
use agentlab_protocol::workspace::WorkspaceOrder;

use super::{Lab, shell};
use crate::requirement::skipped_without_root;

/// As an agent that owns everything below `/work/previous` can leave it: two commits, and every way there is to have
/// something executed or read by whoever uses the repository next.
const HOSTILE: &str = r#"
git init -q -b main previous; cd previous
echo one > kept.txt; git add .; git commit -qm earlier; git tag not-a-branch
git checkout -qb feature/x; echo two > kept.txt; git commit -qam more; git checkout -q main
git gc -q
echo loose > loose.txt; git add .; git commit -qm loose
printf '#!/bin/sh\ntouch %s/hooked\n' "$BASE" > .git/hooks/post-checkout; chmod +x .git/hooks/*
cp .git/hooks/post-checkout .git/hooks/reference-transaction
cp .git/hooks/post-checkout .git/hooks/post-merge
git config core.fsmonitor "touch $BASE/fsmonitor"
git config core.sshCommand "touch $BASE/ssh"
git config uploadpack.packObjectsHook "touch $BASE/packed; false"
git config include.path "$BASE/included"
git config alias.fetch '!touch '"$BASE/alias"
printf '[core]\n\tpager = touch %s/pager\n' "$BASE" > "$BASE/included"
echo '* filter=evil' > .git/info/attributes
git config filter.evil.smudge "touch $BASE/smudged; cat"
mkdir -p "$BASE/elsewhere/objects"; echo "$BASE/elsewhere/objects" > .git/objects/info/alternates
mkdir -p .git/worktrees/w; echo "$BASE/elsewhere" > .git/worktrees/w/gitdir
ln -s "$BASE/elsewhere" .git/objects/ab
ln -s /etc/hostname .git/refs/heads/link
printf 'ref: refs/heads/../../config\n' > .git/refs/heads/symbolic
"#;

async fn lab_with_previous(task: &str) -> Lab {
    let lab = Lab::new(task).await;
    let (work, base) = (&lab.layout.work, lab.base.path());
    std::fs::create_dir_all(work).unwrap();
    let script = format!("export BASE={}\n{HOSTILE}", base.display());
    shell(work, &script).await;
    let owner = format!("{0}:{0}", lab.layout.user.uid);
    shell(base, &format!("chown -R -h {owner} work; chmod 755 work")).await;
    lab
}

#[tokio::test]
async fn of_an_earlier_repository_branches_are_imported_and_nothing_else() {
    if skipped_without_root() {
        return;
    }
    let task = "git log --format=%s previous/main; git log -1 --format=%s previous/feature/x; \
                git show previous/main:loose.txt; git checkout -q previous/main; cat /work/previous/kept.txt";
    let lab = lab_with_previous(&task.replace("/work/", "../")).await;
    let report = lab.run().await;
    let said = lab.host.text(Stream::Stdout);
    assert_eq!(report.status, ReportStatus::Completed, "{report:#?}\n{said}");
    assert_eq!(said, "loose\nearlier\nmore\nloose\none\n");

    let base = lab.base.path();
    for made in [
        "hooked",
        "fsmonitor",
        "ssh",
        "packed",
        "alias",
        "pager",
        "smudged",
    ] {
        assert!(
            !base.join(made).exists(),
            "{made}: something of the earlier repository was executed"
        );
    }
    let git = lab.layout.repo().join(".git");
    let config = std::fs::read_to_string(git.join("config")).unwrap();
    for word in [
        "fsmonitor",
        "include",
        "alias",
        "filter",
        "sshCommand",
        "packObjectsHook",
    ] {
        assert!(!config.contains(word), "{config}");
    }
    for absent in ["hooks", "info/attributes", "objects/info/alternates", "worktrees"] {
        assert!(!git.join(absent).exists(), "{absent} is in the fresh clone");
    }
    assert!(
        !lab.layout.previous().join(".git").exists(),
        "the earlier repository can still be used"
    );
    assert!(!lab.layout.work.join(".import").exists());
}

#[tokio::test]
async fn a_damaged_earlier_repository_is_left_out_and_the_job_goes_on() {
    if skipped_without_root() {
        return;
    }
    let lab = lab_with_previous("git branch -r").await;
    // An object that is not what its name says.
    let loose = "cd previous/.git/objects; rm ab; for f in ??/*; do printf x > $f; done";
    shell(&lab.layout.work, &format!("chmod -R u+w previous; {loose}")).await;
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:#?}");
    assert!(!lab.host.text(Stream::Stdout).contains("previous/"));
    assert!(
        lab.host.text(Stream::Runner).contains("was not imported"),
        "{}",
        lab.host.text(Stream::Runner)
    );
    let previous = lab.layout.previous();
    assert!(previous.join("git-not-imported").exists() && !previous.join(".git").exists());
}

#[tokio::test]
async fn without_its_workspace_a_job_does_not_begin_on_another_disk() {
    if skipped_without_root() {
        return;
    }
    let mut lab = Lab::new("touch began").await;
    lab.answer.workspace = Some(WorkspaceOrder {
        uuid: "01234567-89ab-7cde-8f01-23456789abcd".to_owned(),
        make: true,
        keep: false,
    });
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Failed);
    assert_eq!(report.cause, Some(FailureCause::Workspace));
    assert!(report.message.unwrap().contains("agentlab-work"));
    assert!(!lab.layout.repo().exists(), "it began on the machine's own disk");
}
