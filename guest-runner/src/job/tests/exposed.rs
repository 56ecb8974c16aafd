//! Secrets that an agent writes into its work.

use agentlab_protocol::message::ExposedSecret;

use super::{Lab, shell};
use crate::requirement::skipped_without_root;

fn exposed(path: Option<&str>, uncommitted: bool) -> ExposedSecret {
    ExposedSecret {
        secret: "API_KEY".to_owned(),
        path: path.map(str::to_owned),
        uncommitted,
    }
}

#[tokio::test]
async fn a_secret_in_the_work_is_named_with_its_file_and_the_work_stays_as_it_is() {
    if skipped_without_root() {
        return;
    }
    // Also where it was taken out again, where git sees no text, and where only its base64 stands.
    let lab = Lab::new(
        "echo \"key: $API_KEY\" > config.yaml; git add .; git commit -qm config\n\
         printf \"\\000$API_KEY\\000\" > store; printf '%s' \"xy$API_KEY\" | base64 > encoded; git add .; git commit -qm more\n\
         git rm -q config.yaml; git commit -qm \"Without $API_KEY\"\n\
         mkdir 'a b'; echo $API_KEY > 'a b/.env'; echo harmless > other",
    )
    .await;
    let report = lab.run().await;
    assert_eq!(
        report.exposed_secrets,
        [
            exposed(None, false),
            exposed(Some("config.yaml"), false),
            exposed(Some("encoded"), false),
            exposed(Some("store"), false),
            exposed(Some("a b/.env"), true),
        ],
        "{report:?}"
    );
    let applied = lab.applied().await;
    let written = std::fs::read_to_string(applied.join("a b/.env")).unwrap();
    assert_eq!(written, "s3cr3t-api-key\n");
    let store = std::fs::read(applied.join("store")).unwrap();
    assert_eq!(store, b"\0s3cr3t-api-key\0");
    let told = lab.host.text(agentlab_protocol::message::Stream::Runner);
    assert!(
        told.contains("ALARM: the work holds a secret: API_KEY in store"),
        "{told}"
    );
    assert!(!told.contains("s3cr3t"), "{told}");
}

#[tokio::test]
async fn a_name_that_is_a_secret_is_named_without_it() {
    if skipped_without_root() {
        return;
    }
    let lab = Lab::new("touch \"$API_KEY.txt\"; git add .; git commit -qm name").await;
    let report = lab.run().await;
    assert_eq!(report.exposed_secrets, [exposed(Some("[redacted].txt"), false)]);
}

#[tokio::test]
async fn what_the_repository_said_before_is_nobodys_secret() {
    if skipped_without_root() {
        return;
    }
    let mut lab =
        Lab::new("echo more >> a.txt; git commit -qam more; echo rest >> a.txt; echo x > b.txt").await;
    let source = lab.base.path().join("source");
    shell(
        &source,
        "echo s3cr3t-api-key > a.txt; git commit -qam known; git bundle create -q ../known HEAD",
    )
    .await;
    lab.bring(std::fs::read(lab.base.path().join("known")).unwrap());
    let report = lab.run().await;
    assert!(report.commits == 1 && report.uncommitted, "{report:?}");
    assert_eq!(report.exposed_secrets, []);
}
