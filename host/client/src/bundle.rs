//! Repositories on their way to the daemon.

use std::path::Path;

use agentlab_api::UploadedBundle;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use crate::connection::Call;
use crate::error::Result;
use crate::{Client, ClientError};

const PIECE: usize = 256 << 10;

impl Client {
    /// Streams a `git bundle` to the daemon and holds the hash it answers with against the file's own.
    ///
    /// # Errors
    /// See [`crate::ClientError`]; [`ClientError::Mismatch`] when something else arrived.
    pub async fn upload_bundle(&self, path: &Path) -> Result<UploadedBundle> {
        let failed = |action| {
            move |source| ClientError::File {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let (sha256, size) = digest(path).await.map_err(failed("Reading"))?;
        let file = File::open(path).await.map_err(failed("Opening"))?;
        let pieces =
            ReaderStream::with_capacity(file.take(size), PIECE).map_ok(|bytes: Bytes| Frame::data(bytes));
        let mut call = Call::new(
            Method::POST,
            "/v1/bundles".to_owned(),
            BodyExt::boxed(StreamBody::new(pieces)),
        )
        .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        .header(CONTENT_LENGTH, HeaderValue::from(size));
        let announced = HeaderValue::from_str(&sha256)
            .map_err(|_| ClientError::Protocol("A hash is not a header value".to_owned()))?;
        call = call.header(HeaderName::from_static("x-agentlab-sha256"), announced);
        // As long as bytes flow there is no reason to give up on a large repository.
        call.patience = None;
        let uploaded: UploadedBundle = self.call(call).await?;
        if uploaded.sha256 == sha256 {
            Ok(uploaded)
        } else {
            let what = format!("{}", path.display());
            Err(ClientError::Mismatch {
                what,
                recorded: uploaded.sha256,
                actual: sha256,
            })
        }
    }
}

/// SHA-256 of a file, in hexadecimal, and its size.
///
/// # Errors
/// It cannot be read.
pub async fn digest(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = File::open(path).await?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).await?;
        if read == 0 {
            return Ok((hex::encode(hash.finalize()), size));
        }
        hash.update(&piece[..read]);
        size += u64::try_from(read).unwrap_or(0);
    }
}
