use super::*;

fn refused(text: &str) -> (String, Option<String>) {
    let error = parse(text, "r.toml", Path::new("/nonexistent")).unwrap_err();
    (error.to_string(), error.hint())
}

#[test]
fn every_built_in_recipe_is_right_and_they_stand_for_different_vmids() {
    let recipes: Vec<Recipe> = BUILT_IN.iter().map(|(name, _)| load(name).unwrap()).collect();
    for (recipe, (name, _)) in recipes.iter().zip(BUILT_IN) {
        assert_eq!(recipe.name, name);
    }
    assert!(
        recipes
            .iter()
            .enumerate()
            .all(|(n, one)| recipes.iter().skip(n + 1).all(|two| one.vmid != two.vmid))
    );
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
    let (message, hint) = refused("name = \"a\"\nsuite = \"trixie\"\npackges = [\"git\"]\n");
    assert_eq!(message, "r.toml:3:1: unknown key `packges`");
    assert_eq!(hint.as_deref(), Some("did you mean `packages`?"));
    let (message, hint) = refused("name = \"a\"\n[[files]]\npath = \"/a\"\n  contnet = \"x\"\n");
    assert_eq!(message, "r.toml:4:3: unknown key `contnet`");
    assert_eq!(hint.as_deref(), Some("did you mean `content`?"));
    assert!(
        refused("name = \"a\"\nqqqqqqqqqqqqqqq = 1\n")
            .1
            .unwrap()
            .starts_with("known keys: name, ")
    );
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    for (text, expected) in [
        ("name = \"../a\"\n", "r.toml:1:8: `../a`: a name"),
        ("name = \"a\"\nvmid = 99\n", "r.toml:2:8: 99: a VMID"),
        (
            "name = \"a\"\npackages = [\"git\", \"--purge\"]\n",
            "r.toml:2:20: `--purge`: not the name",
        ),
        (
            "name = \"a\"\nkernel_command_line = [\"a b\"]\n",
            "r.toml:2:24: `a b`: a kernel argument",
        ),
        (
            "name = \"a\"\n[[files]]\npath = \"/etc/../x\"\ncontent = \"\"\n",
            "r.toml:3:8: `/etc/../x`: a path",
        ),
        (
            "name = \"a\"\n[[files]]\npath = \"/x\"\nmode = \"9\"\ncontent = \"\"\n",
            "r.toml:4:8: `9`: a mode",
        ),
        (
            "name = \"a\"\n[[files]]\npath = \"/x\"\n",
            "r.toml:3:8: a file needs either",
        ),
        (
            "name = \"a\"\n[[files]]\npath = \"/x\"\nsource = \"y\"\n",
            "r.toml:4:10: cannot read /nonexistent/y: ",
        ),
        (
            "name = \"a\"\n[[files]]\npath = \"/x\"\nsource = \"/dev/zero\"\n",
            "r.toml:4:10: cannot read /dev/zero: it is not a regular file",
        ),
        (
            "name = \"a\"\n[[units]]\nname = \"../x.service\"\ncontent = \"\"\n",
            "r.toml:3:8: `../x.service`: a unit",
        ),
        ("name = \"a\"\nname = \"b\"\n", "r.toml:2:1: duplicate key"),
    ] {
        let (message, _) = refused(text);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_missing_recipe_hints_at_the_nearest_built_in_one() {
    let error = load("dmeo").unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("did you mean `demo`?"));
}

#[test]
fn the_digest_ignores_comments_and_order_and_sees_everything_else() {
    let digest = |text: &str| parse(text, "r", Path::new(".")).unwrap().digest();
    let base = digest("name = \"a\"\npackages = [\"git\", \"jq\"]\n");
    assert_eq!(
        base,
        digest("# hello\npackages = [\"jq\", \"git\", \"jq\"]\nname = \"a\"\n")
    );
    for other in [
        "name = \"b\"\npackages = [\"git\", \"jq\"]\n",
        "name = \"a\"\npackages = [\"git\"]\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\nvmid = 9001\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\nmasked_units = [\"x.service\"]\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\nkept_units = [\"x.service\"]\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\nsize_mb = 600\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\n[[files]]\npath = \"/a\"\ncontent = \"\"\n",
        "name = \"a\"\npackages = [\"git\", \"jq\"]\n[[units]]\nname = \"a.service\"\ncontent = \"\"\n",
    ] {
        assert_ne!(base, digest(other), "{other}");
    }
}
