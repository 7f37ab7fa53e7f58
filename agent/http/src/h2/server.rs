//! A caller's connection of HTTP/2.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::gather::{Gather, Gathered};
use crate::activity::Activity;
use crate::body::Incoming;
use crate::h1::Conn;
use crate::h1::server::Service;
use crate::io::CallerIo;
use crate::limits::{Author, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS, UNSENT_BYTES};

/// Between asking a quiet connection to end and ending it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Window for bytes that nobody has read yet.
#[derive(Clone, Copy, Debug)]
pub struct WindowBytes {
    /// Of all requests together.
    pub connection: u32,
    /// Of each request.
    pub stream: u32,
}

/// Serves a connection to its end.
///
/// # Errors
///
/// If it broke, or its client broke the rules.
pub async fn serve<S: Service>(
    service: &Arc<S>,
    link: Arc<Conn<CallerIo>>,
    windows: WindowBytes,
) -> hyper::Result<()> {
    let activity = service.activity();
    activity.on_http2();
    let _over = EndsStreams(activity);
    let tasks = StreamTasks(activity.streams().subscribe());
    let builder = builder(tasks, service.author(), windows);
    // Boxed, since hyper moves it about.
    let handle = service_fn(|request: Request<hyper::body::Incoming>| {
        let progress = service.begin();
        Box::pin(S::handle(Arc::clone(service), request.map(Incoming::from), progress))
    });
    let gather = Gather::new(link);
    let io = TokioIo::new(Gathered(Arc::clone(&gather)));
    let mut http = pin!(builder.serve_connection(io, handle));
    let mut farewell: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                let ended = http.as_mut().poll(cx);
                // If it fails the next write does, too.
                let _ = gather.poll_send(cx);
                ended
            }) => {
                return ended;
            }
            () = activity.asked_to_leave(), if farewell.is_none() => {
                http.as_mut().graceful_shutdown();
                farewell = Some(Instant::now() + FAREWELL);
            }
            () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {
                if activity.is_quiet() {
                    return Ok(());
                }
                farewell = Some(Instant::now() + FAREWELL);
            }
        }
    }
}

fn builder(
    tasks: StreamTasks,
    author: Author,
    windows: WindowBytes,
) -> http2::Builder<StreamTasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(author.most_list_bytes())
        .initial_connection_window_size(windows.connection)
        .initial_stream_window_size(windows.stream)
        .max_send_buf_size(UNSENT_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    builder
}

/// Ends the tasks of streams that are still there when the connection ends.
struct EndsStreams<'a>(&'a Activity);

impl Drop for EndsStreams<'_> {
    fn drop(&mut self) {
        self.0.streams().send_replace(true);
    }
}

/// Runs the tasks of a connection's HTTP/2 streams no longer than the connection, and wakes them to
/// find out whether their requests were cut.
#[derive(Clone, Debug)]
struct StreamTasks(watch::Receiver<bool>);

impl<F> Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let mut streams = self.0.clone();
        tokio::spawn(async move {
            let mut task = pin!(task);
            loop {
                tokio::select! {
                    changed = streams.changed() => {
                        if changed.is_err() || *streams.borrow_and_update() {
                            return;
                        }
                    }
                    () = &mut task => return,
                }
            }
        });
    }
}
