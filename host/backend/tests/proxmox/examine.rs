//! A stand-in examined with the least token and with root's.

use agentlab_backend::PveOptions;
use agentlab_backend::proxmox::{ApiToken, Examiner, ProxmoxSettings, Trust};
use agentlab_protocol::secret::SecretText;
use pve_sim::{PveSim, Scale, Version};

use crate::lab::vmid;

fn examiner(node: &PveSim, token: String) -> Examiner {
    let token = ApiToken::try_from(&SecretText::new(token)).unwrap();
    let trust = Trust::Fingerprint(node.fingerprint().parse().unwrap());
    let options = PveOptions::new((vmid(1000), vmid(1999)), "vmbr1");
    Examiner::new(&ProxmoxSettings::new(
        node.url().parse().unwrap(),
        token,
        trust,
        options,
    ))
    .unwrap()
}

#[tokio::test]
async fn a_probe_has_no_effect_even_where_it_is_allowed() {
    for version in [Version::V8, Version::V9] {
        let node = PveSim::start(version, Scale(0.01)).await.unwrap();
        let (least, root) = (examiner(&node, node.token()), examiner(&node, node.root_token()));
        let config = format!("/nodes/{}/qemu/9000/config", node.node());
        for path in ["/access/roles", "/cluster/firewall/groups", config.as_str()] {
            let refused = least.probe(path).await.unwrap();
            assert_eq!(refused.status, 403, "{path}: {}", refused.reason);
            let allowed = root.probe(path).await.unwrap();
            assert_eq!(allowed.status, 400, "{path}: {}", allowed.reason);
        }
        assert_eq!(node.audit().changes, Vec::<String>::new());
        let permissions = least.get("/access/permissions").await.unwrap();
        assert_eq!(permissions.data["/pool/agentlab"]["VM.Allocate"], 1);
        assert_eq!(least.token(), "agentlab@pve!lp");
    }
}

#[tokio::test]
async fn a_wrong_secret_and_a_path_that_is_none_are_told_apart() {
    let node = PveSim::start(Version::V8, Scale(0.01)).await.unwrap();
    let wrong = examiner(
        &node,
        "agentlab@pve!lp=00000000-0000-0000-0000-000000000000".to_owned(),
    );
    assert_eq!(wrong.get("/version").await.unwrap().status, 401);
    for path in ["version", "/nodes/../version", "/version HTTP/1.1\r\nX: y"] {
        assert!(
            wrong.get(path).await.unwrap_err().contains("no path of the API"),
            "{path}"
        );
    }
}
