//! Accepting connections, and the protocol of the end.
//!
//! ```text
//! serving --order to stop--> draining: no new connection, no new work (503), running streams go on
//!         --the drain's bound--> what still runs is aborted; its readers are told
//!         --all ended--> over
//!         --the engine fails--> its readers were told (500), /health says so; over a moment later
//! ```

use crate::app::App;
use crate::config::{CONNECTIONS_MAX, HEAD_SECONDS_MAX, STALL_SECONDS_MAX, ServerConfig};
use crate::routes;
use crate::stall::StallGuard;
use engine::Engine;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use model::Opened;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A pause after a failed accept: mostly too many open files, which pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long readers have to take the last words of what was aborted.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often the engine is looked at.
const ENGINE_LOOK: Duration = Duration::from_millis(100);

/// How long a server whose engine has failed goes on to say so.
const FAILED_STAY: Duration = Duration::from_secs(1);

/// How a server ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every stream came to its end.
    Drained,
    /// Streams still ran at the drain's bound and were cut.
    Cut,
    /// The engine failed, for this reason.
    Failed(String),
}

/// Serves one engine until `stop` completes, then drains; or until the engine fails.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    opened: Arc<Opened>,
    config: ServerConfig,
    stop: impl Future<Output = ()>,
) -> Ended {
    let drain = config.drain;
    let app = Arc::new(App::new(engine, opened, config));
    let router = routes::router(app.clone());
    let (graceful, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let (mut stop, mut failure) = (std::pin::pin!(stop), std::pin::pin!(failure(&app)));
    let failed = loop {
        let accepted = tokio::select! {
            () = &mut stop => break None,
            why = &mut failure => break Some(why),
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        // Tokens are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(StallGuard::new(stream, Duration::from_secs(STALL_SECONDS_MAX)));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(HEAD_SECONDS_MAX));
        let connection = http.serve_connection(io, TowerToHyperService::new(router.clone()));
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks its connection off is no event of ours.
            let _ = watched.await;
            drop(place);
        });
    };
    drop(listener);
    if let Some(why) = failed {
        // Every request has been told; readers that do not read are not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, graceful.shutdown()).await;
        return Ended::Failed(why);
    }
    app.draining.send_replace(true);
    let mut ended = std::pin::pin!(graceful.shutdown());
    let drained = tokio::select! {
        drained = tokio::time::timeout(drain, &mut ended) => drained.is_ok(),
        why = &mut failure => return Ended::Failed(why),
    };
    if let Some(why) = app.engine.failure() {
        return Ended::Failed(why);
    }
    if drained {
        return Ended::Drained;
    }
    app.engine.stop();
    // Readers that do not read are not waited for.
    let _ = tokio::time::timeout(LAST_WORDS, ended).await;
    Ended::Cut
}

/// Completes when the engine has failed and the server has said so for a while.
async fn failure(app: &App) -> String {
    loop {
        tokio::time::sleep(ENGINE_LOOK).await;
        if let Some(why) = app.engine.failure() {
            tokio::time::sleep(FAILED_STAY).await;
            return why;
        }
    }
}

/// A connection, and its place among [`CONNECTIONS_MAX`].
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(_) => {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}
