//! `agentlab-net tailscale` against a tailscaled and an admin API that a script plays.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use serde_json::{Value, json};

    const AUTH_KEY: &str = "tskey-auth-SECRET";
    const API_KEY: &str = "tskey-api-SECRET";
    const SUBNET: &str = "10.77.0.0/16";

    /// A `tailscale` that keeps what it is told beside itself.
    const PROGRAM: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$*" >> called
keep() {
    for one; do
        case "$one" in
            --advertise-routes=*) printf '{"AdvertiseRoutes":["%s"]}' "$(echo "${one#*=}" | sed 's/,/","/g')" > prefs ;;
        esac
    done
}
case "$1" in
    status) if [ -e in ]; then echo '{"BackendState":"Running","Self":{"ID":"nodeCNTRL"}}'
            else echo '{"BackendState":"NeedsLogin"}'; fi ;;
    debug) cat prefs ;;
    up) cat > key; : > in; keep "$@" ;;
    set) keep "$@" ;;
    *) echo "no such command" >&2; exit 1 ;;
esac
"#;

    fn tailnet(name: &str, prefs: Value) -> PathBuf {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // It may be left of an earlier run.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        // Installed by a child: while another test begins a process, that may hold open what this process writes, and
        // what is open for writing cannot be run.
        fs::write(dir.join("draft"), PROGRAM).unwrap();
        let installed = Command::new("install")
            .args([dir.join("draft"), dir.join("tailscale")])
            .status();
        assert!(installed.unwrap().success());
        fs::write(dir.join("prefs"), prefs.to_string()).unwrap();
        fs::write(dir.join("auth"), AUTH_KEY).unwrap();
        fs::write(dir.join("api"), format!("{API_KEY}\n")).unwrap();
        dir
    }

    /// Exit status, standard output and standard error.
    fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
        let program = dir.join("tailscale");
        let child = Command::new(env!("CARGO_BIN_EXE_agentlab-net"))
            .args([
                "--config",
                "/dev/null",
                "--address",
                "10.77.0.1",
                "--prefix",
                "16",
                "tailscale",
                "--program",
            ])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let words = text(output.stderr);
        assert!(!words.contains("SECRET"), "{words}");
        (output.status.code().unwrap(), text(output.stdout), words)
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap_or_default()
    }

    /// Calls that an admin API was asked for, and the routes it takes.
    type Api = Arc<Mutex<(Vec<String>, Vec<String>)>>;

    /// An admin API that takes calls for as long as the test lives, and the options that lead to it.
    fn admin_api(dir: &Path, enabled: &[&str]) -> (Api, Vec<String>) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(dir.join("authorities"), &certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let enabled = enabled.iter().map(ToString::to_string).collect();
        let api: Api = Arc::new(Mutex::new((Vec::new(), enabled)));
        let kept = Arc::clone(&api);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                // A client that hangs up in the middle has said enough.
                let _ = answer(&mut stream, &kept);
            }
        });
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let options = [
            "--api-url",
            &url,
            "--api-authorities",
            &file("authorities"),
            "--api-key-file",
            &file("api"),
        ];
        (api, options.map(str::to_owned).to_vec())
    }

    fn answer(stream: &mut (impl Read + Write), api: &Api) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head
            .to_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut api = api.lock().unwrap();
        api.0.push(head.lines().next().unwrap().to_owned());
        let (status, document) = if !head.contains(&format!("Bearer {API_KEY}\r\n")) {
            ("401 Unauthorized", json!({ "message": "API token invalid" }))
        } else {
            if let Ok(wanted) = serde_json::from_slice::<Value>(&body) {
                let routes = wanted["routes"].as_array().unwrap().iter();
                api.1 = routes.map(|route| route.as_str().unwrap().to_owned()).collect();
            }
            (
                "200 OK",
                json!({ "advertisedRoutes": [SUBNET], "enabledRoutes": api.1 }),
            )
        };
        let text = document.to_string();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        )?;
        stream.flush()
    }

    #[test]
    fn routes_that_are_advertised_stay_and_a_dry_run_changes_nothing() {
        let dir = tailnet("routes", json!({ "AdvertiseRoutes": ["192.168.7.0/24", "::/0"] }));
        fs::write(dir.join("in"), "").unwrap();
        let (status, text, words) = run(&dir, &["--dry-run"]);
        assert!(
            status == 0 && text.starts_with("Would advertise"),
            "{text} {words}"
        );
        assert!(!read(&dir, "called").contains("set"));
        assert_eq!(run(&dir, &[]).0, 0);
        let prefs: Value = serde_json::from_str(&read(&dir, "prefs")).unwrap();
        assert_eq!(
            prefs["AdvertiseRoutes"],
            json!(["192.168.7.0/24", "::/0", SUBNET])
        );
        // Once more is nothing new.
        let (status, text, _) = run(&dir, &[]);
        assert!(status == 0 && text.starts_with("Advertises already"), "{text}");
        assert_eq!(read(&dir, "called").matches("set").count(), 1);
    }

    #[test]
    fn a_host_that_is_not_logged_in_needs_a_key_and_no_argument_holds_it() {
        let dir = tailnet("login", json!({ "AdvertiseRoutes": null }));
        let (status, _, words) = run(&dir, &[]);
        assert!(status == 2 && words.contains("--auth-key-file"), "{words}");
        let key = dir.join("auth");
        let (status, text, words) = run(
            &dir,
            &["--auth-key-file", key.to_str().unwrap(), "--hostname", "node"],
        );
        assert_eq!(status, 0, "{text} {words}");
        assert_eq!(read(&dir, "key"), AUTH_KEY);
        let called = read(&dir, "called");
        assert!(
            called.contains("--hostname=node") && !called.contains("SECRET"),
            "{called}"
        );
    }

    #[test]
    fn a_route_is_approved_beside_others_once_and_a_wrong_key_is_told() {
        let dir = tailnet("approval", json!({ "AdvertiseRoutes": [SUBNET] }));
        fs::write(dir.join("in"), "").unwrap();
        let (api, options) = admin_api(&dir, &["192.168.7.0/24"]);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        for (approval, calls) in [("given", 2), ("stood", 3)] {
            let (status, text, words) = run(&dir, &[&options[..], &["--json"]].concat());
            assert_eq!(status, 0, "{text} {words}");
            let document: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["approval"], approval);
            let (asked, enabled) = api.lock().unwrap().clone();
            assert_eq!(asked.len(), calls, "{asked:?}");
            assert!(
                asked[0].starts_with("GET /api/v2/device/nodeCNTRL/routes "),
                "{asked:?}"
            );
            assert_eq!(enabled, ["192.168.7.0/24", SUBNET]);
        }
        fs::write(dir.join("api"), "tskey-api-other").unwrap();
        let (status, _, words) = run(&dir, &options);
        assert!(status == 2 && words.contains("devices:routes"), "{words}");
        // Somebody else with a certificate of another authority gets no key.
        let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(dir.join("authorities"), stranger.cert.pem()).unwrap();
        let before = api.lock().unwrap().0.len();
        assert_eq!(run(&dir, &options).0, 2);
        assert_eq!(api.lock().unwrap().0.len(), before);
    }

    #[test]
    fn two_keys_do_not_share_standard_input() {
        let dir = tailnet("input", json!({}));
        let (status, _, words) = run(&dir, &["--auth-key-file", "-", "--api-key-file", "-"]);
        assert!(status == 2 && words.contains("standard input"), "{words}");
    }
}
