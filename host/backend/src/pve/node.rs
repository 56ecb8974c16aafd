//! Which node machines are made on, and what it runs. Both are asked once.

use super::{Fields, Pve, Read, Refusal, Wire};
use crate::{BackendError, Result};

/// Version of a node.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) text: String,
    pub(super) major: u64,
}

impl<W: Wire> Pve<W> {
    /// The node machines are made on. A cluster has several, and the first of a list is any of them.
    pub(super) async fn node(&self) -> Result<&str> {
        let find = async || {
            if let Some(node) = &self.options.node {
                return Ok(node.clone());
            }
            let action = "finding its node";
            let answer = self
                .wire
                .read(&Read::new("/nodes"))
                .await
                .map_err(|refusal| refusal.into_unreachable(self.wire.kind(), action))?;
            let nodes: Vec<String> = Fields::list(answer)
                .unwrap_or_default()
                .iter()
                .filter_map(|node| node.text("node"))
                .collect();
            choose_node(nodes, host_name().as_deref()).map_err(|reason| BackendError::Unreachable {
                backend: self.wire.kind(),
                action,
                reason,
            })
        };
        let node = self.node.get_or_try_init(find).await?;
        self.wire.at_home(node);
        Ok(node)
    }

    /// What the node runs.
    pub(super) async fn version(&self) -> Result<&Version> {
        let read = async || {
            let action = "reading its version";
            let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), action);
            let answer = self
                .wire
                .read(&Read::new("/version"))
                .await
                .map_err(unreachable)?;
            let text = Fields::of(answer).and_then(|fields| fields.text("version"));
            let text = text.ok_or_else(|| unreachable(Refusal::unknown("the answer names no version")))?;
            let major = text.split('.').next().and_then(|major| major.parse().ok());
            Ok(Version {
                major: major.unwrap_or(0),
                text,
            })
        };
        self.version.get_or_try_init(read).await
    }
}

fn choose_node(mut nodes: Vec<String>, host: Option<&str>) -> std::result::Result<String, String> {
    if let Some(host) = host
        && let Some(node) = nodes.iter().find(|node| node.eq_ignore_ascii_case(host))
    {
        return Ok(node.clone());
    }
    match (nodes.pop(), nodes.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            nodes.push(last);
            nodes.sort();
            Err(format!(
                "the cluster has the nodes {}, and none of them is this host; name one with `proxmox_node`",
                nodes.join(", ")
            ))
        }
        (None, _) => Err("it names no node".to_owned()),
    }
}

/// This host's name as a node would have it: without its domain.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    name.trim().split('.').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::choose_node;

    #[test]
    fn a_node_is_chosen_by_name_and_never_by_its_place() {
        let nodes = || vec!["pve2".to_owned(), "pve1".to_owned()];
        assert_eq!(choose_node(nodes(), Some("pve1")), Ok("pve1".to_owned()));
        assert_eq!(choose_node(nodes(), Some("PVE1")), Ok("pve1".to_owned()));
        let refused = choose_node(nodes(), Some("laptop")).unwrap_err();
        assert!(
            refused.contains("pve1, pve2") && refused.contains("proxmox_node"),
            "{refused}"
        );
        assert_eq!(
            choose_node(vec!["only".into()], Some("laptop")),
            Ok("only".to_owned())
        );
        assert!(choose_node(Vec::new(), None).is_err());
    }
}
