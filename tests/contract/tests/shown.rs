//! What a program showed, with everything taken out that differs from run to run.

use agentlab_testkit::Ran;
use agentlab_tests_contract::Lab;
use serde_json::Value;

/// Exit code, standard output, standard error.
pub(crate) fn shown(lab: &Lab, ran: &Ran) -> String {
    let code = ran.code().map_or("signal".to_owned(), |code| code.to_string());
    let mut text = format!("exit code {code}\n");
    for (name, stream) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
        if !stream.is_empty() {
            text += &format!("--- {name}\n{}", plain(lab, stream));
        }
    }
    text
}

/// The same of a followed job. Events and output come on two streams, so each is shown in its own order.
pub(crate) fn followed(lab: &Lab, ran: &Ran) -> String {
    let (mut head, mut events, mut output) = (Vec::new(), Vec::new(), Vec::new());
    for line in ran.stdout.lines() {
        match line.chars().next() {
            Some('+') => events.push(line),
            Some('│' | '┊') => output.push(line),
            _ => head.push(line),
        }
    }
    let joined = [events, output, head].concat().join("\n") + "\n";
    shown(
        lab,
        &Ran {
            stdout: joined,
            ..ran.clone()
        },
    )
}

/// One JSON document.
pub(crate) fn document(lab: &Lab, value: &Value) -> String {
    plain(
        lab,
        &format!("{}\n", serde_json::to_string_pretty(value).unwrap()),
    )
}

fn plain(lab: &Lab, text: &str) -> String {
    text.replace(&lab.dir(), "<DIR>")
}

/// Runs assertions on snapshots in which ids, times and sizes of the machine have names.
pub(crate) fn redacted(assertions: impl FnOnce()) {
    let mut settings = insta::Settings::clone_current();
    for (pattern, name) in [
        (r"job_[0-9a-z]{12}", "<JOB>"),
        (r"job-[0-9a-z]{12}", "<NAME>"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<UUID>"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<TIME>"),
        (r"[0-9a-f]{64}", "<SHA256>"),
        (r"[0-9a-f]{40}", "<COMMIT>"),
        (r"[0-9a-f]{7}\.\.[0-9a-f]{7}", "<FROM>..<TO>"),
        (r"(?m)^\+ *\d+\.\d+s", "+<AT>"),
        (r"(?m)^  [0-9a-f]{7} ", "  <COMMIT> "),
        (r"\d+ bytes", "<N> bytes"),
        (r"(?m)  \d+ B$", "  <N> B"),
        (r"\d+ ms", "<N> ms"),
        (r"\d+\.\d+ s\b", "<N> s"),
        (r"\d+ s ago", "<N> s ago"),
        (r"\d+ h \d+ min", "<N> h <N> min"),
        (r"[\d.]+ [KMGTP]iB free", "<N> free"),
        (r#""artifact_free_bytes": \d+"#, r#""artifact_free_bytes": "<N>""#),
        (r#""agent_milliseconds": \d+"#, r#""agent_milliseconds": "<N>""#),
        (r"pid \d+", "pid <PID>"),
        (r"(\S) {2,}", "$1  "),
    ] {
        settings.add_filter(pattern, name);
    }
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(assertions);
}

/// Asserts how something is shown.
#[macro_export]
macro_rules! assert_shown {
    ($name:literal, $text:expr) => {
        $crate::shown::redacted(|| insta::assert_snapshot!($name, $text))
    };
}
