//! One accepted connection, from its first byte to its last, whatever it came over.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulConnection, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// docs/protocol.md, section 2.
const STREAMS: u32 = 32;
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Version of HTTP on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    /// Whichever the client begins with.
    Either,
    /// HTTP/1.1 only.
    One,
    /// HTTP/2 with prior knowledge.
    Two,
}

/// How a server tells its connections to end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// All at once, and waits for them.
    With(Watcher),
    /// When this is cancelled.
    On(CancellationToken),
}

/// Serves a connection until it ends, or until it is stopped and its requests are answered. `who` (who is at the
/// other end) is put into every request.
pub(crate) async fn serve<I, W>(io: I, http: Http, router: Router, who: W, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    W: Clone + Send + Sync + 'static,
{
    let io = TokioIo::new(io);
    let service = service(router, who);
    let result = match http {
        Http::Either => {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEADER_LIST);
            let connection = builder.serve_connection(io, service).into_owned();
            watched(connection, stop).await.map_err(|error| error.to_string())
        }
        Http::One => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            watched(builder.serve_connection(io, service), stop)
                .await
                .map_err(|error| error.to_string())
        }
        Http::Two => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(MAX_HEADER_LIST)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT);
            watched(builder.serve_connection(io, service), stop)
                .await
                .map_err(|error| error.to_string())
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "A connection broke off");
    }
}

async fn watched<C: GracefulConnection>(connection: C, stop: Stop) -> C::Output {
    match stop {
        Stop::With(watcher) => watcher.watch(connection).await,
        Stop::On(token) => {
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                output = connection.as_mut() => output,
                () = token.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    }
}

fn service<W: Clone + Send + Sync + 'static>(
    router: Router,
    who: W,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Future<Output = Result<Response, Infallible>> + Send + 'static,
> + Clone
+ Send {
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(who.clone());
        router.clone().oneshot(request.map(Body::new))
    })
}
