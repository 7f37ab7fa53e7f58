//! Hedging: a request that has no answer for a while is sent to another workload, too.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use isthmus_model::HostId;
use isthmus_model::route::Hedge;
use tokio::time::{Instant, sleep_until};

use super::attempt::Tried;
use super::retry::Exchange;
use crate::cluster::Retrying;
use crate::cluster::endpoint::{Endpoint, InFlight};
use crate::pool::request_body::Payload;

impl Exchange<'_> {
    /// Says, too, whose answer it is.
    pub(super) async fn try_or_hedge(
        &self,
        endpoint: Arc<Endpoint>,
        flight: InFlight,
        payload: &mut Payload,
        tried: &mut Vec<HostId>,
    ) -> (HostId, Tried) {
        let may_hedge = |_: &Hedge| {
            self.template.head.method.is_idempotent()
                && self.template.upgrade.is_none()
                && payload.copy().is_some()
        };
        match self.hedge.filter(may_hedge) {
            Some(hedge) => {
                Box::pin(self.try_hedged(hedge, (endpoint, flight), payload, tried)).await
            }
            None => {
                let host = endpoint.host;
                (host, self.try_once(endpoint, flight, payload.take()).await)
            }
        }
    }

    /// Asks others, too, whenever those before have no answer for a while. The first good answer
    /// counts, and the others' requests are dropped, which cancels them.
    async fn try_hedged(
        &self,
        hedge: Hedge,
        (endpoint, flight): (Arc<Endpoint>, InFlight),
        payload: &Payload,
        tried: &mut Vec<HostId>,
    ) -> (HostId, Tried) {
        let start = |endpoint: Arc<Endpoint>, flight| {
            let host = endpoint.host;
            (host, Box::pin(self.try_once(endpoint, flight, payload.copy())), None::<Retrying>)
        };
        let mut running = vec![start(endpoint, flight)];
        let mut left = hedge.max;
        let mut next = Instant::now() + hedge.after;
        loop {
            tokio::select! {
                (at, outcome) = poll_fn(|cx| first_of(&mut running, cx)) => {
                    let (host, _, _) = running.swap_remove(at);
                    if running.is_empty() || outcome.is_good() {
                        return (host, outcome);
                    }
                }
                () = sleep_until(next), if left > 0 => {
                    left -= 1;
                    next += hedge.after;
                    // Never the same workload again: it has the request.
                    let free = self.begin_again();
                    let another = free.and_then(|it| Some((it, self.pick(tried).ok()?)));
                    let Some((retrying, (endpoint, flight))) = another
                        .filter(|(_, (endpoint, _))| !tried.contains(&endpoint.host))
                    else {
                        left = 0;
                        continue;
                    };
                    self.connection.shared.metrics.count_hedge();
                    tried.push(endpoint.host);
                    let (host, trying, _) = start(endpoint, flight);
                    running.push((host, trying, Some(retrying)));
                }
            }
        }
    }
}

/// A request under way: whose, and what it waits for.
type Running<F> = (HostId, Pin<Box<F>>, Option<Retrying>);

/// The first of some that is ready.
fn first_of<F: Future>(
    running: &mut [Running<F>],
    cx: &mut Context<'_>,
) -> Poll<(usize, F::Output)> {
    for (at, (_, trying, _)) in running.iter_mut().enumerate() {
        if let Poll::Ready(outcome) = trying.as_mut().poll(cx) {
            return Poll::Ready((at, outcome));
        }
    }
    Poll::Pending
}

impl Tried {
    /// Whether there is no sense in waiting for another answer.
    fn is_good(&self) -> bool {
        match self {
            Self::Answer(_, attempt, _) => attempt.failure().is_none(),
            Self::Refused(_) => true,
            Self::Failed(..) | Self::Blameless(_) => false,
        }
    }
}
