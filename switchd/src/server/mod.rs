//! The control API: HTTP/1.1 with JSON over a Unix socket.
//!
//! axum routes over hyper, on the daemon's one-threaded runtime; a call into the switch may wait for the
//! kernel or for workers, so it runs on a thread of [`crate::calls`].
//!
//! Every request is bounded: [`BODY_MAX_BYTES`] of body, [`READ_TIMEOUT`] to send head and body,
//! [`CONNECTION_TIMEOUT`] for everything, [`CONNECTIONS_MAX`] connections (the others wait in the listen
//! queue). A connection serves one request; over a Unix socket a new one costs next to nothing, and no idle
//! client holds a place. Whatever goes wrong, the answer is `{"error": "one line"}`.

mod metrics;
mod routes;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use routes::{openapi, router};

/// Largest request body.
pub const BODY_MAX_BYTES: usize = 256 << 10;
/// Most connections served at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send a request's head, and again for its body.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// How long requests under way may take to finish once the daemon is asked to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `end` is ready, then lets requests under way finish.
pub async fn serve(listener: UnixListener, router: Router, end: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Some((stream, place)) = accepted else {
            // EMFILE and the like: let connections end before the next try.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READ_TIMEOUT)
                .keep_alive(false)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "control connection"),
                Err(_) => tracing::warn!("control connection took too long"),
            }
            drop(place);
        });
    }
    let drained = timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("ending with {} control requests under way", connections.len());
    }
}

/// The next connection and its place; `None` when the system refuses.
async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a control connection");
            None
        }
    }
}

#[cfg(test)]
mod tests;
