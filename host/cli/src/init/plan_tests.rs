use super::super::privilege::{Release, SMBIOS};
use super::*;

fn vmid(number: u32) -> Vmid {
    Vmid::try_from(number).unwrap()
}

fn wanted(release: Release) -> Wanted {
    Wanted {
        reach: Reach {
            release,
            smbios_seed: true,
            pool: "agentlab".to_owned(),
            templates: [vmid(9000)].into(),
            storages: ["local".to_owned()].into(),
            volume_storage: None,
            bridges: ["vmbr1".to_owned()].into(),
            volume_owner: Some(vmid(777)),
        },
        token: TokenName {
            user: "agentlab@pve".to_owned(),
            id: "lp".to_owned(),
        },
        rotate: false,
        vmids: (vmid(1000), vmid(8999)),
        keys: [("proxmox_pool", "agentlab".to_owned())].into(),
    }
}

/// The roles a genuine node lists.
fn roles(release: Release, keep_ours: bool) -> BTreeMap<String, FoundRole> {
    let lines = match release {
        Release::Eight => include_str!("../../tests/node/roles-8.jsonl"),
        Release::Nine => include_str!("../../tests/node/roles-9.jsonl"),
    };
    lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|role| {
            let privileges = role["privs"]
                .as_str()
                .unwrap()
                .split(',')
                .filter(|word| !word.is_empty());
            let found = FoundRole {
                privileges: privileges.map(str::to_owned).collect(),
                built_in: role["special"] == 1,
            };
            (role["roleid"].as_str().unwrap().to_owned(), found)
        })
        .filter(|(_, role)| keep_ours || role.built_in)
        .collect()
}

fn nothing(release: Release) -> Found {
    Found {
        roles: roles(release, false),
        pools: BTreeSet::new(),
        users: [("root@pam".to_owned(), true)].into(),
        tokens: BTreeMap::new(),
        grants: BTreeSet::new(),
        machines: [(vmid(9000), None), (vmid(104), None)].into(),
        stored: Stored::None,
        keys: BTreeMap::new(),
    }
}

/// What a step leaves behind, in PVE and in config.yaml.
fn perform(found: &mut Found, step: &Step) {
    match step {
        Step::AddPool(pool) => assert!(found.pools.insert(pool.clone())),
        Step::AddRole(role) | Step::SetRole(role) => {
            let privileges = role.privileges.iter().map(|word| (*word).to_owned()).collect();
            let new = FoundRole {
                privileges,
                built_in: false,
            };
            found.roles.insert(role.name.to_owned(), new);
        }
        Step::AddUser(user) => assert_eq!(found.users.insert(user.clone(), true), None),
        Step::DropToken(token) => {
            found.tokens.remove(&token.id).unwrap();
            found.grants.retain(|grant| grant.holder != token.full());
        }
        Step::MakeToken(token) => {
            make_token(found, token);
            found.stored = Stored::Token(token.full());
        }
        Step::MarkToken(token) => found.tokens.get_mut(&token.id).unwrap().comment = "done".to_owned(),
        Step::SeparateToken(token) => found.tokens.get_mut(&token.id).unwrap().separated = true,
        Step::Grant {
            path, role, token, ..
        } => {
            assert!(
                found.tokens.contains_key(&token.id),
                "{path} for a token that is not there"
            );
            assert!(found.roles.contains_key(*role), "{role} is not there");
            for holder in [token.user.clone(), token.full()] {
                found.grants.insert(FoundGrant {
                    path: path.clone(),
                    role: (*role).to_owned(),
                    holder,
                });
            }
        }
        Step::SetKeys(keys) => found
            .keys
            .extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone()))),
    }
}

fn make_token(found: &mut Found, token: &TokenName) {
    assert!(found.users.contains_key(&token.user));
    let new = FoundToken {
        separated: true,
        comment: UNSTORED.to_owned(),
    };
    assert_eq!(
        found.tokens.insert(token.id.clone(), new),
        None,
        "PVE: Token already exists."
    );
}

fn done(release: Release) -> Found {
    let mut found = nothing(release);
    for step in plan(&wanted(release), &found).unwrap() {
        perform(&mut found, &step);
    }
    found
}

fn commands(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .map(|step| step.command().unwrap_or_else(|| step.says()))
        .collect()
}

fn reasons(wanted: &Wanted, found: &Found) -> String {
    let refusals = plan(wanted, found).unwrap_err();
    refusals
        .into_iter()
        .map(|refusal| refusal.reason)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn on_a_bare_node_every_command_is_as_an_administrator_would_type_it() {
    let said = |release| commands(&plan(&wanted(release), &nothing(release)).unwrap());
    let eight = said(Release::Eight);
    let always = "Pool.Audit,VM.Allocate,VM.Audit,VM.Clone,VM.Config.CPU,VM.Config.Cloudinit,VM.Config.Disk,\
                  VM.Config.HWType,VM.Config.Memory,VM.Config.Network,VM.Config.Options";
    let grant = |path: &str, role: &str| {
        format!("pveum acl modify {path} --roles {role} --users agentlab@pve --tokens 'agentlab@pve!lp'")
    };
    assert_eq!(
        eight,
        [
            "pveum pool add agentlab --comment 'AgentLab sandboxes'".to_owned(),
            format!(
                "pveum role add AgentLab --privs {always},VM.Monitor,VM.PowerMgmt,VM.Snapshot,VM.Snapshot.Rollback"
            ),
            "pveum role add AgentLabStore --privs Datastore.AllocateSpace,Datastore.Audit".to_owned(),
            "pveum role add AgentLabNet --privs SDN.Use".to_owned(),
            "pveum role add AgentLabVol --privs VM.Audit,VM.Config.Disk".to_owned(),
            "pveum user add agentlab@pve --comment 'AgentLab daemon'".to_owned(),
            "pvesh create /access/users/agentlab@pve/token/lp --privsep 1 --comment \
             'agentlab init: secret not stored yet' --output-format json"
                .to_owned(),
            "pvesh set /access/users/agentlab@pve/token/lp --comment 'AgentLab daemon'".to_owned(),
            grant("/pool/agentlab", "AgentLab"),
            grant("/vms/9000", "PVETemplateUser"),
            grant("/storage/local", "AgentLabStore"),
            grant("/sdn/zones/localnetwork/vmbr1", "AgentLabNet"),
            grant("/vms/777", "AgentLabVol"),
            "write into config.yaml: proxmox_pool: agentlab".to_owned(),
        ]
    );
    let nine = said(Release::Nine);
    assert_eq!(
        nine[1],
        format!(
            "pveum role add AgentLab --privs {always},VM.GuestAgent.Audit,VM.GuestAgent.Unrestricted,VM.PowerMgmt,\
             VM.Snapshot,VM.Snapshot.Rollback"
        )
    );
    assert!(
        nine.iter()
            .enumerate()
            .all(|(index, line)| index == 1 || *line == eight[index])
    );
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    for release in [Release::Eight, Release::Nine] {
        assert_eq!(plan(&wanted(release), &done(release)), Ok(Vec::new()));
    }
}

#[test]
fn a_set_up_made_by_hand_is_adopted_and_completed() {
    for release in [Release::Eight, Release::Nine] {
        let mut found = done(release);
        // As the nodes were on which the privileges were found out: without the SMBIOS seed's.
        found.roles = roles(release, true);
        found.tokens.get_mut("lp").unwrap().separated = false;
        found.grants.retain(|grant| grant.path != "/vms/777");
        assert_eq!(
            commands(&plan(&wanted(release), &found).unwrap())
                .iter()
                .map(|line| &line[..24])
                .collect::<Vec<_>>(),
            [
                "pveum role modify AgentL",
                "pvesh set /access/users/",
                "pveum acl modify /vms/77"
            ]
        );
    }
}

#[test]
fn without_the_smbios_seed_its_privilege_is_taken_away_again() {
    let mut less = wanted(Release::Nine);
    less.reach.smbios_seed = false;
    let steps = plan(&less, &done(Release::Nine)).unwrap();
    let [Step::SetRole(role)] = steps.as_slice() else {
        panic!("{steps:?}")
    };
    assert!(!role.privileges.contains(SMBIOS));
}

#[test]
fn a_storage_of_workspaces_alone_is_the_only_place_where_volumes_can_be_deleted() {
    let mut more = wanted(Release::Nine);
    more.reach.storages.insert("work".to_owned());
    more.reach.volume_storage = Some("work".to_owned());
    let grants = more.reach.grants();
    let deleting: Vec<&str> = grants
        .iter()
        .filter(|grant| grant.role.privileges.contains("Datastore.Allocate"))
        .map(|grant| grant.path.as_str())
        .collect();
    assert_eq!(deleting, ["/storage/work"]);
}

#[test]
fn a_role_of_somebody_else_under_our_name_is_refused_and_nothing_done() {
    let mut found = nothing(Release::Eight);
    let strange = FoundRole {
        privileges: ["VM.Audit".to_owned(), "Sys.Modify".to_owned()].into(),
        built_in: false,
    };
    found.roles.insert("AgentLab".to_owned(), strange);
    let said = reasons(&wanted(Release::Eight), &found);
    assert!(
        said.contains("role AgentLab is there and not ours") && said.contains("Sys.Modify"),
        "{said}"
    );
}

#[test]
fn machines_of_others_never_come_within_reach() {
    let mut found = nothing(Release::Eight);
    found.pools.insert("agentlab".to_owned());
    found.machines.insert(vmid(104), Some("agentlab".to_owned()));
    found.machines.insert(vmid(1003), Some("agentlab".to_owned()));
    assert!(reasons(&wanted(Release::Eight), &found).contains("no sandboxes (104)"));
    let mut found = nothing(Release::Eight);
    found.machines.insert(vmid(777), None);
    assert!(reasons(&wanted(Release::Eight), &found).contains("777"));
    // The one that the daemon makes for workspaces is in the pool.
    found.machines.insert(vmid(777), Some("agentlab".to_owned()));
    assert!(plan(&wanted(Release::Eight), &found).is_ok());
}

#[test]
fn a_token_that_somebody_may_use_is_never_replaced_unasked() {
    let release = Release::Nine;
    let mut rotating = wanted(release);
    rotating.rotate = true;
    let mut other_in_file = done(release);
    other_in_file.stored = Stored::Token("agentlab@pve!other".to_owned());
    let mut lost = done(release);
    lost.stored = Stored::None;
    for found in [other_in_file, lost] {
        assert!(reasons(&wanted(release), &found).contains("agentlab@pve!"));
        let mut after = found.clone();
        let steps = plan(&rotating, &found).unwrap();
        assert!(matches!(
            steps.as_slice(),
            [Step::DropToken(_), Step::MakeToken(_), Step::MarkToken(_), ..]
        ));
        for step in steps {
            perform(&mut after, &step);
        }
        assert_eq!(after, done(release));
    }
    let mut elsewhere = done(release);
    elsewhere.stored = Stored::Elsewhere("/etc/agentlab/token".to_owned());
    assert!(plan(&rotating, &elsewhere).is_err());
}

#[test]
fn after_a_crash_at_any_step_the_next_plan_ends_where_the_first_would_have() {
    for release in [Release::Eight, Release::Nine] {
        let (wanted, end) = (wanted(release), done(release));
        let steps = plan(&wanted, &nothing(release)).unwrap();
        for crash in 0..=steps.len() {
            for secret_is_lost in [false, true] {
                let mut found = nothing(release);
                for step in steps.iter().take(crash) {
                    perform(&mut found, step);
                }
                // PVE made the token, and nobody wrote its secret down.
                if let (true, Some(Step::MakeToken(token))) = (secret_is_lost, steps.get(crash)) {
                    make_token(&mut found, token);
                }
                for step in plan(&wanted, &found).unwrap() {
                    perform(&mut found, &step);
                }
                assert_eq!(found, end, "after {crash} steps");
            }
        }
    }
}
