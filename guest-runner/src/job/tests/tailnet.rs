//! The tailnet, with a program in the place of Tailscale's that says how it was begun.

use agentlab_protocol::message::{ReportStatus, Stream, TailnetLogin};
use agentlab_protocol::secret::SecretText;

use super::Lab;
use super::agents::install;
use crate::job::prepare_for_operator;
use crate::requirement::skipped_without_root;

const KEY: &str = "tskey-auth-c4n4ry";
const SAYS_HOW: &str = "key=${2#--auth-key=file:}\nstat -c '%a %u' \"$key\" > $(dirname $0)/../joined\n\
    cat \"$key\" >> $(dirname $0)/../joined; echo >> $(dirname $0)/../joined\nshift 2; echo \"$@\" >> $(dirname $0)/../joined\n";

async fn lab(program: &str) -> Lab {
    let mut lab = Lab::new("cat $(dirname $AGENTLAB_TASK_FILE)/tailscale-key || echo gone").await;
    lab.answer.tailnet = Some(TailnetLogin {
        authkey: SecretText::new(KEY.to_owned()),
        hostname: "sandbox-1000".to_owned(),
        tags: vec!["tag:sandbox".to_owned()],
        extra_args: vec!["--ssh".to_owned()],
    });
    install(&lab, "tailscale", program);
    lab
}

fn joined(lab: &Lab) -> String {
    let text = std::fs::read_to_string(lab.layout.user.home.join("joined")).unwrap();
    assert!(!lab.layout.run.join("tailscale-key").exists(), "the key stayed");
    text
}

const EXPECTED: &str = "400 0\ntskey-auth-c4n4ry\n--hostname=sandbox-1000 --accept-dns=false --accept-routes=false \
    --timeout=45s --advertise-tags=tag:sandbox --ssh\n";

#[tokio::test]
async fn a_machine_joins_before_its_agent_begins_and_the_key_is_gone_by_then() {
    if skipped_without_root() {
        return;
    }
    let lab = lab(SAYS_HOW).await;
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    assert_eq!(joined(&lab), EXPECTED);
    assert_eq!(lab.host.text(Stream::Stdout), "gone\n");
    assert!(
        lab.host
            .text(Stream::Runner)
            .contains("joined the tailnet as sandbox-1000")
    );
}

#[tokio::test]
async fn an_operators_machine_joins_too() {
    if skipped_without_root() {
        return;
    }
    let lab = lab(SAYS_HOW).await;
    prepare_for_operator(&lab.answer, &lab.layout).await.unwrap();
    assert_eq!(joined(&lab), EXPECTED);
}

#[tokio::test]
async fn a_tailnet_that_refuses_is_told_without_its_key_and_the_job_goes_on() {
    if skipped_without_root() {
        return;
    }
    let lab = lab(&format!("echo 'backend error: invalid key {KEY}' >&2\nexit 1\n")).await;
    let report = lab.run().await;
    assert_eq!(report.status, ReportStatus::Completed, "{report:?}");
    let told = lab.host.text(Stream::Runner);
    assert!(
        told.contains("tailnet was not joined") && told.contains("invalid key [redacted]"),
        "{told}"
    );
}
