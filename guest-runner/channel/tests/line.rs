//! Two ends of one line that misbehaves as serial ports do.
#![cfg(test)]

mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use agentlab_channel::{Acceptor, accept, connect};
    use agentlab_protocol::frame::{Decoder, FLUSH_BYTES, FrameKind, encode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn frame(kind: FrameKind, id: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(kind, id, payload, &mut bytes);
        bytes
    }

    /// Reads raw frames until one is of this kind; returns its connection.
    async fn wait_for(raw: &mut DuplexStream, wanted: FrameKind) -> u32 {
        let mut decoder = Decoder::new();
        let mut bytes = [0u8; 512];
        loop {
            let count = timeout(PATIENCE, raw.read(&mut bytes)).await.unwrap().unwrap();
            assert_ne!(count, 0, "line ended before {wanted:?}");
            assert_eq!(decoder.push(&bytes[..count]), count);
            while let Some(frame) = decoder.take_frame() {
                if frame.kind == wanted {
                    return frame.connection;
                }
            }
        }
    }

    #[tokio::test]
    async fn stale_bytes_on_both_sides_do_not_disturb_a_new_connection() {
        let (mut guest, mut host) = duplex(1 << 20);
        // A READY line, an old connection's data, and the first half of a frame: in both directions.
        for end in [&mut guest, &mut host] {
            end.write_all(b"READY\n").await.unwrap();
            end.write_all(&frame(FrameKind::Data, 7, b"old answer"))
                .await
                .unwrap();
            end.write_all(&frame(FrameKind::Data, 7, &[9; 9000])[..5000])
                .await
                .unwrap();
        }
        let (guest, host) = tokio::join!(timeout(PATIENCE, connect(guest)), timeout(PATIENCE, accept(host)));
        let (mut guest, mut host) = (guest.unwrap().unwrap(), host.unwrap().unwrap());
        assert_eq!(guest.id(), host.id());
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        host.write_all(b"answer").await.unwrap();
        host.shutdown().await.unwrap();
        let (mut question, mut answer) = (String::new(), String::new());
        timeout(PATIENCE, host.read_to_string(&mut question))
            .await
            .unwrap()
            .unwrap();
        timeout(PATIENCE, guest.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_knocks_until_somebody_listens() {
        let (guest, mut host) = duplex(1 << 20);
        let knocking = connect(guest);
        tokio::pin!(knocking);
        let mut last = None;
        for _ in 0..4 {
            let id = tokio::select! {
                _ = &mut knocking => panic!("connected to nobody"),
                id = wait_for(&mut host, FrameKind::Syn) => id,
            };
            assert_eq!(*last.get_or_insert(id), id);
        }
        // An answer to somebody else is none.
        host.write_all(&frame(FrameKind::Ack, last.unwrap() ^ 1, b""))
            .await
            .unwrap();
        assert!(timeout(Duration::from_secs(1), &mut knocking).await.is_err());
        host.write_all(&frame(FrameKind::Ack, last.unwrap(), b""))
            .await
            .unwrap();
        assert_eq!(knocking.await.unwrap().id(), last.unwrap());
    }

    #[tokio::test]
    async fn a_guest_that_begins_anew_ends_the_stream_it_had_and_gets_another() {
        let (mut raw, host) = duplex(1 << 20);
        let mut acceptor = Acceptor::new(host);
        raw.write_all(&frame(FrameKind::Syn, 1, b"")).await.unwrap();
        let mut first = timeout(PATIENCE, acceptor.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(wait_for(&mut raw, FrameKind::Ack).await, 1);
        raw.write_all(&frame(FrameKind::Data, 1, b"half a que"))
            .await
            .unwrap();
        let mut bytes = [0; 64];
        assert_eq!(first.read(&mut bytes).await.unwrap(), 10);

        // The guest dies in the middle of a frame; its successor flushes and begins anew.
        raw.write_all(&frame(FrameKind::Data, 1, &[1; 4000])[..100])
            .await
            .unwrap();
        raw.write_all(&[0; FLUSH_BYTES]).await.unwrap();
        raw.write_all(&frame(FrameKind::Syn, 2, b"")).await.unwrap();
        raw.write_all(&frame(FrameKind::Syn, 2, b"")).await.unwrap();

        let reading = timeout(PATIENCE, first.read(&mut bytes)).await.unwrap();
        assert_eq!(reading.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            first.write(b"late").await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        let mut second = timeout(PATIENCE, acceptor.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(second.id(), 2);
        assert_eq!(wait_for(&mut raw, FrameKind::Ack).await, 2);
        // The old stream's end must not touch the new one.
        drop(first);
        raw.write_all(&frame(FrameKind::Data, 1, b"stale")).await.unwrap();
        raw.write_all(&frame(FrameKind::Data, 2, b"whole question"))
            .await
            .unwrap();
        let count = timeout(PATIENCE, second.read(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(&bytes[..count], b"whole question");
    }

    #[tokio::test]
    async fn an_acceptor_sees_a_new_guest_while_nobody_reads_the_old_stream() {
        let (mut raw, host) = duplex(1 << 20);
        let mut acceptor = Acceptor::new(host);
        raw.write_all(&frame(FrameKind::Syn, 1, b"")).await.unwrap();
        let first = acceptor.next().await.unwrap().unwrap();
        raw.write_all(&frame(FrameKind::Syn, 2, b"")).await.unwrap();
        let second = timeout(PATIENCE, acceptor.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!((first.id(), second.id()), (1, 2));
        drop((first, second, raw));
        assert!(
            timeout(PATIENCE, acceptor.next())
                .await
                .unwrap()
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_guest_of_a_replaced_daemon_learns_that_it_is_unknown() {
        let (guest, mut first_daemon) = duplex(1 << 20);
        let (mut stream, ()) = {
            let daemon = async {
                let id = wait_for(&mut first_daemon, FrameKind::Syn).await;
                first_daemon
                    .write_all(&frame(FrameKind::Ack, id, b""))
                    .await
                    .unwrap();
            };
            let (stream, ()) = tokio::join!(connect(guest), daemon);
            (stream.unwrap(), ())
        };
        // The next daemon takes the same line and knows nothing.
        let mut acceptor = Acceptor::new(first_daemon);
        stream.write_all(b"heartbeat").await.unwrap();
        stream.flush().await.unwrap();
        let mut bytes = [0; 8];
        let read = tokio::select! {
            read = timeout(PATIENCE, stream.read(&mut bytes)) => read.unwrap(),
            _ = acceptor.next() => panic!("accepted a connection nobody opened"),
        };
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn sixteen_mebibytes_both_ways_at_once_arrive_whole() {
        const TOTAL: usize = 16 << 20;
        // As small a line as a virtio queue: both sides are blocked in writing most of the time.
        let (guest, host) = duplex(4096);
        let (guest, host) = tokio::join!(connect(guest), accept(host));
        let (mut guest_read, mut guest_write) = tokio::io::split(guest.unwrap());
        let (mut host_read, mut host_write) = tokio::io::split(host.unwrap());
        let pattern = |at: usize| u8::try_from((at * 31 + at / 251) % 256).unwrap();
        let content: Vec<u8> = (0..TOTAL).map(pattern).collect();
        let send = async {
            guest_write.write_all(&content).await.unwrap();
            guest_write.shutdown().await.unwrap();
        };
        let echo = async {
            let mut bytes = vec![0; 30_000];
            loop {
                let count = host_read.read(&mut bytes).await.unwrap();
                if count == 0 {
                    break host_write.shutdown().await.unwrap();
                }
                host_write.write_all(&bytes[..count]).await.unwrap();
                host_write.flush().await.unwrap();
            }
        };
        let mut back = Vec::new();
        let receive = async { guest_read.read_to_end(&mut back).await.unwrap() };
        let ((), (), count) = timeout(Duration::from_secs(60), async {
            tokio::join!(send, echo, receive)
        })
        .await
        .unwrap();
        assert_eq!(count, TOTAL);
        assert!(back == content, "echo differs");
    }
}
