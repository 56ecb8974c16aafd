//! The runner's link against a host of the test's own: real TLS, real frames, real HTTP/2.
#![cfg(test)]

mod host;

mod tests {
    use std::time::Duration;

    use agent_runner::link::{Link, LinkError, Ways};
    use agent_runner::remains::{self, Keeper, Remains, RemainsError};
    use agentlab_protocol::message::{
        ArtifactRole, Heartbeat, LogBatch, LogPiece, Phase, RedeemAnswer, RedeemRequest, Report,
        ReportStatus, Stream,
    };
    use agentlab_protocol::seed::SeedChannel;
    use tokio::time::timeout;

    use crate::host::{Asked, BUNDLE, Host, Mishap, session};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// As a runner that was never killed, and keeps nothing.
    async fn begun(host: &Host, ways: Ways) -> Result<(Link, RedeemAnswer), LinkError> {
        let mut remains = Remains::first(&host.seed).unwrap();
        let begun = remains::session(&mut remains, &Keeper::nowhere(), ways).await;
        begun.map_err(|error| match error {
            RemainsError::Link(error) => error,
            other @ (RemainsError::Random(_) | RemainsError::Seed(_) | RemainsError::Damaged(_)) => {
                panic!("{other}")
            }
        })
    }

    async fn redeem(host: &Host, ways: Ways) -> Result<Link, LinkError> {
        let redeemed = timeout(PATIENCE, begun(host, ways))
            .await
            .expect("redemption hangs");
        redeemed.map(|(link, answer)| {
            assert_eq!(answer.environment["KEY"].expose(), "value");
            link
        })
    }

    fn beat() -> Heartbeat {
        Heartbeat {
            phase: Phase::Agent,
            message: "working".to_owned(),
            vitals: None,
            workspace: None,
        }
    }

    fn report() -> Report {
        Report {
            version: 1,
            job: "job_000000000000".to_owned(),
            status: ReportStatus::Completed,
            failed_phase: None,
            cause: None,
            message: None,
            exit_code: Some(0),
            base_commit: None,
            head_commit: None,
            commits: 1,
            uncommitted: false,
            exposed_secrets: Vec::new(),
            secret_search: None,
            agent_milliseconds: 5,
            push: None,
            artifacts: Vec::new(),
            left_out: Vec::new(),
            inner_sandbox: "none".to_owned(),
        }
    }

    fn keys(asked: &[Asked]) -> Vec<RedeemRequest> {
        let redemptions = asked.iter().filter(|asked| asked.path == "/guest/v1/redeem");
        redemptions
            .map(|asked| serde_json::from_slice(&asked.body).unwrap())
            .collect()
    }

    /// Every route once; returns what the host saw.
    async fn whole_conversation(host: &Host, ways: Ways) -> Vec<Asked> {
        let dir = tempfile::tempdir().unwrap();
        let link = redeem(host, ways).await.unwrap();
        let piece = LogPiece {
            stream: Stream::Stdout,
            text: "line\n".to_owned(),
        };

        assert!(link.heartbeat(beat()).await.unwrap().cancel);
        link.logs(&LogBatch {
            first: 0,
            pieces: vec![piece],
        })
        .await
        .unwrap();

        let bundle = dir.path().join("bundle");
        let mut file = tokio::fs::File::create(&bundle).await.unwrap();
        let sum = link.repository(&mut file, 4 << 20).await.unwrap();
        assert_eq!(sum, hex::encode(agentlab_protocol::session::sha256(BUNDLE)));
        assert!(std::fs::read(&bundle).unwrap() == BUNDLE);
        let refused = link.repository(&mut file, 1 << 20).await.unwrap_err();
        assert!(
            matches!(refused, LinkError::TooLarge { limit: 1_048_576, .. }),
            "{refused}"
        );

        let artifact = dir.path().join("artifact");
        std::fs::write(&artifact, vec![0x5a; 5_000_001]).unwrap();
        let name = "files/a b.bin".parse().unwrap();
        link.put_artifact(&name, ArtifactRole::File, &artifact, 5_000_001, "00ff")
            .await
            .unwrap();
        let shorter = link
            .put_artifact(&name, ArtifactRole::File, &artifact, 5_000_002, "00ff")
            .await;
        assert!(matches!(shorter, Err(LinkError::File { .. })), "{shorter:?}");

        link.report(&report()).await.unwrap();
        host.asked()
    }

    fn check_conversation(asked: &[Asked], listeners: [&str; 2]) {
        let key = keys(asked).remove(0).runner_key;
        let bearer = format!("Bearer {}", session(&key).expose());
        let summary: Vec<_> = asked
            .iter()
            .map(|asked| (asked.listener, asked.method.as_str(), asked.path.as_str()))
            .collect();
        let [bootstrap, artifacts] = listeners;
        let expected = [
            (bootstrap, "POST", "/guest/v1/redeem"),
            (bootstrap, "POST", "/guest/v1/acknowledge"),
            (bootstrap, "POST", "/guest/v1/heartbeat"),
            (bootstrap, "POST", "/guest/v1/logs"),
            (artifacts, "GET", "/guest/v1/repository"),
            (artifacts, "GET", "/guest/v1/repository"),
            (artifacts, "HEAD", "/guest/v1/artifacts/files/a%20b.bin"),
            (artifacts, "PUT", "/guest/v1/artifacts/files/a%20b.bin"),
            (artifacts, "HEAD", "/guest/v1/artifacts/files/a%20b.bin"),
            (bootstrap, "POST", "/guest/v1/report"),
        ];
        assert_eq!(summary, expected);
        assert_eq!(asked[0].authorization, "");
        assert!(asked[1..].iter().all(|asked| asked.authorization == bearer));
        assert_eq!(
            (
                asked[7].body.len(),
                asked[7].sha256.as_str(),
                asked[7].role.as_str()
            ),
            (5_000_001, "00ff", "file")
        );
        assert_eq!(
            serde_json::from_slice::<Report>(&asked[9].body).unwrap(),
            report()
        );
    }

    #[tokio::test]
    async fn every_route_works_over_tls_although_the_certificate_is_expired_and_names_somebody_else() {
        let host = Host::start().await;
        let asked = whole_conversation(&host, host.ways()).await;
        check_conversation(&asked, ["bootstrap", "artifacts"]);
    }

    #[tokio::test]
    async fn every_route_works_over_a_framed_line() {
        let dir = tempfile::tempdir().unwrap();
        let line = dir.path().join("line");
        let mut host = Host::start().await;
        host.listen_on_line(&line);
        host.seed.channels = vec![SeedChannel::Serial, SeedChannel::Tls];
        let ways = Ways::new(&host.seed, Some(line)).unwrap();
        let asked = whole_conversation(&host, ways).await;
        check_conversation(&asked, ["line", "line"]);
    }

    /// A runner tries to redeem until a second handshake has failed.
    async fn fails_again_and_again(host: &Host, otherwise: &str) {
        let twice = async {
            while host.failed_handshakes() < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = begun(host, host.ways()) => panic!("{otherwise}"),
            tried = timeout(PATIENCE, twice) => tried.expect("it is not tried again"),
        }
    }

    #[tokio::test]
    async fn a_host_with_another_key_is_told_nothing() {
        let mut host = Host::start().await;
        host.seed.spki_sha256[31] ^= 1;
        fails_again_and_again(&host, "redeemed at a host that is not ours").await;
        assert!(host.asked().is_empty());
    }

    #[tokio::test]
    async fn a_certificate_shown_by_somebody_without_its_key_is_worth_nothing() {
        let host = Host::start_impostor().await;
        fails_again_and_again(&host, "redeemed at an impostor").await;
        assert!(host.asked().is_empty());
    }

    #[tokio::test]
    async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
        let host = Host::start().await;
        host.next_redemptions(&[Mishap::LoseAnswer, Mishap::Status(503), Mishap::LoseAnswer]);
        let link = redeem(&host, host.ways()).await.unwrap();
        let requests = keys(&host.asked());
        assert_eq!(requests.len(), 4);
        assert!(
            requests
                .iter()
                .all(|request| request.runner_key == requests[0].runner_key)
        );
        assert!(link.heartbeat(beat()).await.is_ok());
        // Another runner has another key.
        redeem(&host, host.ways()).await.unwrap();
        assert!(keys(&host.asked())[0].runner_key != requests[0].runner_key);
    }

    #[tokio::test]
    async fn a_refused_token_is_not_tried_again() {
        let host = Host::start().await;
        host.next_redemptions(&[Mishap::Status(401)]);
        let refused = redeem(&host, host.ways()).await.unwrap_err();
        assert!(matches!(refused, LinkError::Unauthorized { .. }), "{refused}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(host.asked().len(), 1);
    }

    #[tokio::test]
    async fn a_refusal_before_the_body_is_heard_and_its_reason_kept() {
        let host = Host::start().await;
        let link = redeem(&host, host.ways()).await.unwrap();
        host.refuse_artifacts();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("large");
        // Sparse: far more than any window takes.
        std::fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
        let name = "files/large".parse().unwrap();
        let put = link.put_artifact(&name, ArtifactRole::File, &file, 256 << 20, "00");
        let refused = timeout(PATIENCE, put).await.unwrap().unwrap_err().to_string();
        assert_eq!(
            refused,
            "Host refused artifact files/large with status 413: quota of this job is used up"
        );
    }

    #[tokio::test]
    async fn a_line_nobody_serves_is_passed_over() {
        let mut host = Host::start().await;
        host.seed.channels = vec![SeedChannel::Serial, SeedChannel::Tls];
        let dir = tempfile::tempdir().unwrap();
        let line = dir.path().join("line");
        // Somebody holds the other end and never answers a SYN.
        let _silent = tokio::net::UnixListener::bind(&line).unwrap();
        let ways = Ways::new(&host.seed, Some(line)).unwrap();
        redeem(&host, ways).await.unwrap();
        assert!(host.asked().iter().all(|asked| asked.listener == "bootstrap"));
    }

    #[tokio::test]
    async fn a_session_survives_a_daemon_that_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let line = dir.path().join("line");
        let mut host = Host::start().await;
        host.seed.channels = vec![SeedChannel::Serial];
        host.listen_on_line(&line);
        let ways = Ways::new(&host.seed, Some(line.clone())).unwrap();
        let link = redeem(&host, ways).await.unwrap();
        host.stop().await;
        host.asked();
        std::fs::remove_file(&line).unwrap();

        let batch = LogBatch {
            first: 3,
            pieces: Vec::new(),
        };
        let waiting = link.logs(&batch);
        let returning = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            host.listen_on_line(&line);
        };
        let (delivered, ()) = timeout(PATIENCE, async { tokio::join!(waiting, returning) })
            .await
            .unwrap();
        delivered.unwrap();
        let asked = host.asked();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].path, "/guest/v1/logs");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_gives_up_and_names_why() {
        let mut host = Host::start().await;
        let link = redeem(&host, host.ways()).await.unwrap();
        host.stop().await;
        let error = link.heartbeat(beat()).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Unreachable { reason, .. } if reason.contains("refused")),
            "{error}"
        );
    }
}
