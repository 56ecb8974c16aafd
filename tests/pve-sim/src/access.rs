//! Who may do what: users, tokens, roles and access lists, evaluated as the hypervisor evaluates them.

use std::collections::{BTreeMap, BTreeSet};

use crate::Version;

/// Privileges both releases have.
const PRIVILEGES: &[&str] = &[
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];
const ONLY_8: &[&str] = &["VM.Monitor"];
const ONLY_9: &[&str] = &[
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Replicate",
];
/// Paths that an answer about one's own permissions always looks at.
const TOP: &[&str] = &[
    "/",
    "/access",
    "/access/groups",
    "/access/realm",
    "/mapping",
    "/nodes",
    "/pool",
    "/sdn",
    "/storage",
    "/vms",
];

/// Whoever calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `user@realm`.
    pub(crate) user: String,
    /// The token's name, where a token was used.
    pub(crate) token: Option<String>,
}

impl Identity {
    /// `user@realm!token`.
    pub(crate) fn full(&self) -> String {
        match &self.token {
            Some(token) => format!("{}!{token}", self.user),
            None => self.user.clone(),
        }
    }

    /// The one user who may do everything. Its tokens are not that user.
    pub(crate) fn is_root(&self) -> bool {
        self.user == "root@pam" && self.token.is_none()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) secret: String,
    pub(crate) privsep: bool,
    pub(crate) expire: u64,
    pub(crate) comment: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) enabled: bool,
    pub(crate) expire: u64,
    pub(crate) comment: Option<String>,
    pub(crate) tokens: BTreeMap<String, Token>,
}

/// `(path, user or token, role)`, and whether it holds below the path too.
type Entries = BTreeMap<(String, String, String), bool>;

#[derive(Debug, Clone)]
pub(crate) struct Access {
    version: Version,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) roles: BTreeMap<String, BTreeSet<String>>,
    pub(crate) entries: Entries,
}

/// Privileges on one path, and whether each holds below it too.
pub(crate) type Held = BTreeMap<String, bool>;

impl Access {
    pub(crate) fn new(version: Version) -> Self {
        let mut access = Self {
            version,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            entries: BTreeMap::new(),
        };
        access.add_user("root@pam");
        let all = access.privileges().map(str::to_owned).collect();
        access.roles.insert("Administrator".into(), all);
        access.roles.insert("NoAccess".into(), BTreeSet::new());
        for (role, privileges) in [
            ("PVETemplateUser", &["VM.Audit", "VM.Clone"][..]),
            (
                "PVEAuditor",
                &[
                    "Datastore.Audit",
                    "Mapping.Audit",
                    "Pool.Audit",
                    "SDN.Audit",
                    "Sys.Audit",
                    "VM.Audit",
                ],
            ),
            (
                "PVEDatastoreUser",
                &["Datastore.AllocateSpace", "Datastore.Audit"],
            ),
            ("PVESDNUser", &["SDN.Audit", "SDN.Use"]),
            ("PVEPoolUser", &["Pool.Audit"]),
        ] {
            let privileges = privileges.iter().map(|&name| name.to_owned()).collect();
            access.roles.insert(role.to_owned(), privileges);
        }
        access
    }

    pub(crate) fn privileges(&self) -> impl Iterator<Item = &'static str> {
        let own = match self.version {
            Version::V8 => ONLY_8,
            Version::V9 => ONLY_9,
        };
        PRIVILEGES.iter().chain(own).copied()
    }

    pub(crate) fn add_user(&mut self, name: &str) -> &mut User {
        self.users.entry(name.to_owned()).or_insert_with(|| User {
            enabled: true,
            expire: 0,
            comment: None,
            tokens: BTreeMap::new(),
        })
    }

    pub(crate) fn token_of(&self, who: &Identity) -> Option<&Token> {
        self.users.get(&who.user)?.tokens.get(who.token.as_ref()?)
    }

    /// The caller, when the header of its request is right.
    pub(crate) fn authenticate(&self, header: Option<&str>, now: u64) -> Result<Identity, &'static str> {
        const NONE: &str = "No ticket";
        const WRONG: &str = "Authentication failed!";
        let header = header.ok_or(NONE)?;
        let token = ["PVEAPIToken=", "PVEAPIToken "]
            .iter()
            .find_map(|prefix| header.strip_prefix(prefix))
            .ok_or(NONE)?;
        let (name, secret) = token.split_once('=').ok_or(NONE)?;
        let (user, token) = name.split_once('!').ok_or(NONE)?;
        let who = Identity {
            user: user.to_owned(),
            token: Some(token.to_owned()),
        };
        let owner = self.users.get(user).ok_or(WRONG)?;
        let found = self.token_of(&who).ok_or(WRONG)?;
        let alive = |expire: u64| expire == 0 || expire > now;
        if owner.enabled && alive(owner.expire) && alive(found.expire) && found.secret == secret {
            return Ok(who);
        }
        Err(WRONG)
    }

    /// What a caller may do on a path. `pools` says which pool a path is a member of.
    pub(crate) fn held(&self, who: &Identity, path: &str, pools: &dyn Fn(&str) -> Option<String>) -> Held {
        let owner = self.held_by(&who.user, path, pools);
        let Some(token) = self.token_of(who) else {
            return if who.token.is_none() { owner } else { Held::new() };
        };
        if !token.privsep {
            return owner;
        }
        self.held_by(&who.full(), path, pools)
            .into_iter()
            .filter_map(|(privilege, below)| {
                let owners = owner.get(&privilege)?;
                Some((privilege, below && *owners))
            })
            .collect()
    }

    fn held_by(&self, name: &str, path: &str, pools: &dyn Fn(&str) -> Option<String>) -> Held {
        if name == "root@pam" {
            return self
                .privileges()
                .map(|privilege| (privilege.to_owned(), true))
                .collect();
        }
        let mut roles = self.roles_on(name, path);
        if let Some(pool) = pools(path) {
            roles.extend(self.roles_on(name, &format!("/pool/{pool}")));
        }
        if roles.contains_key("NoAccess") {
            return Held::new();
        }
        let mut held = Held::new();
        for (role, below) in roles {
            for privilege in self.roles.get(&role).into_iter().flatten() {
                let already = held.entry(privilege.clone()).or_insert(false);
                *already |= below;
            }
        }
        held
    }

    /// Roles on a path: those of the longest prefix that names the caller.
    fn roles_on(&self, name: &str, path: &str) -> BTreeMap<String, bool> {
        let mut roles = BTreeMap::new();
        for prefix in prefixes(path) {
            let here: BTreeMap<String, bool> = self
                .entries
                .iter()
                .filter(|((at, who, _), below)| *at == prefix && who == name && (prefix == path || **below))
                .map(|((_, _, role), below)| (role.clone(), *below))
                .collect();
            if !here.is_empty() {
                roles = here;
            }
        }
        roles
    }

    /// Every path on which a caller may do something.
    pub(crate) fn effective(
        &self,
        who: &Identity,
        members: &[String],
        pools: &dyn Fn(&str) -> Option<String>,
    ) -> BTreeMap<String, Held> {
        let mut paths: BTreeSet<String> = TOP.iter().map(|&path| path.to_owned()).collect();
        paths.extend(self.entries.keys().map(|(path, _, _)| path.clone()));
        paths.extend(members.iter().cloned());
        paths
            .into_iter()
            .map(|path| {
                let held = self.held(who, &path, pools);
                (path, held)
            })
            .filter(|(_, held)| !held.is_empty())
            .collect()
    }
}

fn prefixes(path: &str) -> Vec<String> {
    let mut all = vec!["/".to_owned()];
    let mut so_far = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        so_far.push('/');
        so_far.push_str(part);
        all.push(so_far.clone());
    }
    all
}

/// Whether an access list may name this path.
pub(crate) fn is_path(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    if path == "/" {
        return true;
    }
    let first = parts.next().unwrap_or_default();
    path.starts_with('/')
        && !path.ends_with('/')
        && matches!(
            first,
            "access" | "mapping" | "nodes" | "pool" | "sdn" | "storage" | "vms"
        )
        && (first != "vms" || parts.all(|vmid| vmid.parse::<u32>().is_ok_and(|vmid| vmid >= 100)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_pool(_: &str) -> Option<String> {
        None
    }

    fn access() -> Access {
        let mut access = Access::new(Version::V9);
        let user = access.add_user("agentlab@pve");
        let token = Token {
            secret: "s".into(),
            privsep: true,
            expire: 0,
            comment: None,
        };
        user.tokens.insert("lp".into(), token);
        access
    }

    fn grant(access: &mut Access, path: &str, who: &str, role: &str) {
        access
            .entries
            .insert((path.into(), who.into(), role.into()), true);
    }

    fn token() -> Identity {
        Identity {
            user: "agentlab@pve".into(),
            token: Some("lp".into()),
        }
    }

    #[test]
    fn a_token_with_separate_privileges_has_what_both_lists_give() {
        let mut access = access();
        grant(&mut access, "/", "agentlab@pve", "Administrator");
        assert!(access.held(&token(), "/vms/100", &no_pool).is_empty());
        grant(&mut access, "/vms", "agentlab@pve!lp", "PVETemplateUser");
        let held = access.held(&token(), "/vms/100", &no_pool);
        assert_eq!(held.keys().collect::<Vec<_>>(), ["VM.Audit", "VM.Clone"]);
    }

    #[test]
    fn a_longer_path_replaces_what_a_shorter_one_gives() {
        let mut access = access();
        for who in ["agentlab@pve", "agentlab@pve!lp"] {
            grant(&mut access, "/vms", who, "PVEAuditor");
            grant(&mut access, "/vms/100", who, "PVETemplateUser");
        }
        let held = access.held(&token(), "/vms/100", &no_pool);
        assert!(held.contains_key("VM.Clone") && !held.contains_key("Sys.Audit"));
        assert!(
            access
                .held(&token(), "/vms/101", &no_pool)
                .contains_key("Sys.Audit")
        );
    }

    #[test]
    fn every_wrong_token_looks_the_same() {
        let mut access = access();
        let ask = |access: &Access, header: &str| access.authenticate(Some(header), 1000);
        assert!(ask(&access, "PVEAPIToken=agentlab@pve!lp=s").is_ok());
        assert!(ask(&access, "PVEAPIToken agentlab@pve!lp=s").is_ok());
        assert_eq!(ask(&access, "pveapitoken=agentlab@pve!lp=s"), Err("No ticket"));
        assert_eq!(ask(&access, "PVEAPIToken=agentlab@pve!lp:s"), Err("No ticket"));
        for header in [
            "PVEAPIToken=a@pve!lp=s",
            "PVEAPIToken=agentlab@pve!x=s",
            "PVEAPIToken=agentlab@pve!lp=t",
        ] {
            assert_eq!(ask(&access, header), Err("Authentication failed!"));
        }
        access.add_user("agentlab@pve").enabled = false;
        assert_eq!(
            ask(&access, "PVEAPIToken=agentlab@pve!lp=s"),
            Err("Authentication failed!")
        );
    }
}
