//! The one call whose body is a file: parts of a form, the file last, as pveproxy reads them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentlab_api::chain;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::fs::File;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::{Answer, Http, Lost};
use crate::pve::Upload;

/// Read and sent at once.
const PIECE: usize = 256 << 10;
/// A link slower than this is no link to upload a disk over.
const SLOWEST_BYTES_PER_SECOND: u64 = 512 << 10;
/// No line of a disk image is this one and a form's: it is longer than chance.
const BOUNDARY: &str = "agentlab-8d1f6a1f0b6c4f5e9a7c3e2d1b0a9f8e-part";

/// The form.
struct Form {
    head: Option<Bytes>,
    file: File,
    rest: u64,
    tail: Option<Bytes>,
}

impl Form {
    async fn of(upload: &Upload) -> io::Result<Self> {
        let file = File::open(&upload.from).await?;
        let rest = file.metadata().await?.len();
        let mut head = String::new();
        // In this order: pveproxy reads them one after the other, and nothing after the file.
        for (name, value) in [
            ("content", "import"),
            ("checksum-algorithm", "sha256"),
            ("checksum", upload.sha256.as_str()),
        ] {
            head.push_str(&format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        head.push_str(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            upload.file
        ));
        Ok(Self {
            head: Some(head.into()),
            file,
            rest,
            tail: Some(format!("\r\n--{BOUNDARY}--\r\n").into()),
        })
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

impl Body for Form {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        if self.rest == 0 {
            return Poll::Ready(self.tail.take().map(|tail| Ok(Frame::data(tail))));
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(self.rest).unwrap_or(PIECE))];
        let mut buffer = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.file).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the disk's file became shorter");
            return Poll::Ready(Some(Err(cut)));
        }
        piece.truncate(count);
        self.rest = self.rest.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_none() && self.rest == 0 && self.tail.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(length(self.head.as_ref()) + self.rest + length(self.tail.as_ref()))
    }
}

impl Http {
    /// Uploads a file, once, over a connection of its own.
    pub(super) async fn upload(&self, node: &str, upload: &Upload) -> Result<Answer, Lost> {
        let unsent = |error: io::Error| Lost::Unsent(format!("{}: {error}", upload.from.display()));
        let form = Form::of(upload).await.map_err(unsent)?;
        let patience = self.patience + Duration::from_secs(form.rest / SLOWEST_BYTES_PER_SECOND);
        let target = format!("/api2/json/nodes/{node}/storage/{}/upload", upload.storage);
        let request = http::Request::post(&target)
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("agentlab/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(form)
            .map_err(|error| Lost::Unsent(format!("`{target}` is no target: {error}")))?;
        let stream = TokioIo::new(self.dial().await?);
        let broken =
            |error: &hyper::Error| Lost::Unanswered(format!("the upload broke off: {}", chain(error)));
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
                .await
                .map_err(|error| broken(&error))?;
            let mut driver = JoinSet::new();
            // How it ends shows in the call that it carries.
            driver.spawn(async move { drop(connection.await) });
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| broken(&error))?;
            self.read(response).await
        };
        match timeout(patience, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Lost::Late(format!(
                "the upload did not end within {} s",
                patience.as_secs()
            ))),
        }
    }
}
