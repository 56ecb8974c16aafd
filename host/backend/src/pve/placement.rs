//! Where a machine is made. Pure.
//!
//! ```text
//!   template on our node                                        here
//!   on another one, each of its storages shared and active here  there, for our node (`target`)
//!   anything else                                               nowhere, with what would help
//! ```
//! Our node is the only one that machines are for: the packet policy guards its bridge and no other.

/// A storage of a template's disks, as our node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) name: String,
    pub(super) shared: bool,
    /// Enabled there, and active.
    pub(super) usable: bool,
}

/// Which node is asked for the clone, and for which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placement {
    /// It is made where its template is.
    Here,
    /// Asked of the template's node, for ours.
    Across,
}

/// Why there is no place, and what would be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoPlace {
    pub(super) reason: String,
    pub(super) hint: String,
}

/// `storages` need not be known where the template is on our own node.
pub(super) fn place(ours: &str, templates: &str, storages: &[Reached]) -> Result<Placement, NoPlace> {
    if ours == templates {
        return Ok(Placement::Here);
    }
    if let Some(own) = storages.iter().find(|storage| !storage.shared) {
        return Err(NoPlace {
            reason: format!(
                "it is on node {templates}, on a storage that only that node has, `{}`, and sandboxes are made on {ours}, \
                 whose network this daemon guards",
                own.name
            ),
            hint: format!(
                "make the template on {ours} (`agentlab-template`), or keep it on a storage that the nodes share"
            ),
        });
    }
    if let Some(down) = storages.iter().find(|storage| !storage.usable) {
        return Err(NoPlace {
            reason: format!(
                "its storage `{}` is not enabled and active on node {ours}",
                down.name
            ),
            hint: format!("`pvesm status` on {ours} says why"),
        });
    }
    Ok(Placement::Across)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(name: &str, shared: bool, usable: bool) -> Reached {
        Reached {
            name: name.to_owned(),
            shared,
            usable,
        }
    }

    #[test]
    fn a_machine_is_made_on_our_node_or_not_at_all() {
        let (ceph, local) = (storage("ceph", true, true), storage("local", false, true));
        assert_eq!(place("pve1", "pve1", &[]), Ok(Placement::Here));
        // What our own node says of its storages is for the clone itself to find out.
        assert_eq!(
            place("pve1", "pve1", std::slice::from_ref(&local)),
            Ok(Placement::Here)
        );
        assert_eq!(
            place("pve1", "pve2", std::slice::from_ref(&ceph)),
            Ok(Placement::Across)
        );
        let refused = place("pve1", "pve2", &[ceph, local]).unwrap_err();
        assert!(
            refused.reason.contains("pve2") && refused.reason.contains("`local`"),
            "{refused:?}"
        );
        assert!(refused.hint.contains("pve1"), "{refused:?}");
        let refused = place("pve1", "pve2", &[storage("nfs", true, false)]).unwrap_err();
        assert!(
            refused.reason.contains("`nfs`") && refused.hint.contains("pvesm status"),
            "{refused:?}"
        );
    }
}
