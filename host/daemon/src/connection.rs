//! One accepted connection, from its first byte to its last, whatever it came over.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::ByteStream;
use axum::Router;
use axum::body::Body;
use axum::http::Extensions;
use axum::response::Response;
use futures_util::future::BoxFuture;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulConnection, Watcher};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// docs/protocol.md, section 2.
const STREAMS: u32 = 32;
/// What may be on its way in one exchange before somebody takes it, and in all of a connection's: as many commands as a
/// guest runs at once, each read by an operator who pauses, leave room for heartbeats, logs and uploads beside them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
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
pub(crate) fn serve<I, W>(io: I, http: Http, router: Router, who: W, stop: Stop) -> BoxFuture<'static, ()>
where
    I: ByteStream + 'static,
    W: Clone + Send + Sync + 'static,
{
    let introduce = move |request: &mut Extensions| drop(request.insert(who.clone()));
    serve_any(Box::new(io), http, router, Arc::new(introduce), stop)
}

/// Says in a request who is at the other end.
type Introduce = Arc<dyn Fn(&mut Extensions) + Send + Sync>;

/// Of one type whatever the stream is: HTTP would else be in the program once for each of them. Boxed here, where the
/// compiler still sees that nothing of it is borrowed.
fn serve_any(
    io: Box<dyn ByteStream>,
    http: Http,
    router: Router,
    introduce: Introduce,
    stop: Stop,
) -> BoxFuture<'static, ()> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_LIST);
    let builder = match http {
        Http::Either => builder,
        Http::One => builder.http1_only(),
        Http::Two => {
            builder
                .http2()
                .max_concurrent_streams(STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT);
            builder.http2_only()
        }
    };
    let service = service(router, introduce);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    Box::pin(watched(connection.into_owned(), stop))
}

async fn watched<C: GracefulConnection<Error: Display>>(connection: C, stop: Stop) {
    let result = match stop {
        Stop::With(watcher) => watcher.watch(connection).await,
        Stop::On(token) => {
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = token.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "A connection broke off");
    }
}

fn service(
    router: Router,
    introduce: Introduce,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Future<Output = Result<Response, Infallible>> + Send + 'static,
> + Clone
+ Send {
    service_fn(move |mut request: Request<Incoming>| {
        introduce(request.extensions_mut());
        router.clone().oneshot(request.map(Body::new))
    })
}
