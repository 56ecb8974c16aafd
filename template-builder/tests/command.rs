//! The whole command: what it warns of before it begins.

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::process::Command;

    use agentlab_template::cloud::UNCUSTOMISED;

    /// Nothing listens there; and if something did, it would have no image of this checksum.
    const NOWHERE: &str = "http://127.0.0.1:1/cloud.qcow2";

    /// Begins a build from an image that cannot be fetched, and gives what was said until then.
    fn said(dir: &Path, more: &[&str]) -> String {
        let stderr = dir.join("stderr");
        let status = Command::new(env!("CARGO_BIN_EXE_agentlab-template"))
            .args(["build", "agents", "--image-url", NOWHERE])
            .args(more)
            .arg("--runner")
            .arg(runner(dir))
            .env("AGENTLAB_TEMPLATES", dir.join("templates"))
            .stderr(File::create(&stderr).unwrap())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1));
        fs::read_to_string(stderr).unwrap()
    }

    /// The header of a static program: it is looked at and never run.
    fn runner(dir: &Path) -> std::path::PathBuf {
        let mut program = vec![0; 64];
        program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        program[16] = 2;
        program[18] = 62;
        program[24] = 1;
        let path = dir.join("runner");
        fs::write(&path, program).unwrap();
        path
    }

    #[test]
    fn an_image_that_is_taken_as_it_is_comes_with_what_will_not_work() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = "0".repeat(64);
        let checksum = ["--image-sha256", &sha256, "--skip-customize"];
        let bare = said(dir.path(), &checksum);
        for lost in UNCUSTOMISED {
            assert!(
                bare.contains(&format!("warning:   {lost}\n")),
                "no `{lost}` in\n{bare}"
            );
        }
        assert!(bare.contains("error: "), "{bare}");
        let customised = said(dir.path(), &checksum[..2]);
        assert!(!customised.contains("warning:"), "{customised}");
        let unchecked = said(dir.path(), &["--skip-customize"]);
        assert!(
            unchecked.starts_with("error: --image-url needs either --image-sha256"),
            "{unchecked}"
        );
    }
}
