//! What every harness does: look its target up and check one input. `cargo +nightly fuzz run <target>` in this
//! directory; `make soak` does it for all of them where cargo-fuzz is installed.

/// Checks one input of a target.
///
/// # Panics
/// There is no such target, or a property of it does not hold.
pub fn run(name: &str, input: &[u8]) {
    let Some(target) = agentlab_tests_fuzz::find(name) else {
        panic!("no target `{name}`")
    };
    // Outcome and cost are for the other driver; what is wrong panics.
    let _ = agentlab_tests_fuzz::check(target, input);
}
