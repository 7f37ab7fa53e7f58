//! One try: a request goes to a workload that was picked, and what comes of it tells how the workload is.

use std::pin::pin;
use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use isthmus_http::body::Incoming;
use isthmus_http::marks::{LEAVING, PANIC, REQUEST_ID};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::local::{self, Notes, Refused};
use super::retry::Exchange;
use crate::cluster::balance::Attempt;
use crate::cluster::endpoint::{Endpoint, InFlight, Turn};
use crate::pool::progress::Progress;
use crate::pool::request_body::RequestBody;
use crate::pool::{BackendError, Failure};

/// Outcome of an attempt.
pub(super) enum Tried {
    Answer(Response<Incoming>, Attempt, InFlight),
    /// With the body, if nobody has read of it.
    Failed(BackendError, Attempt, Option<RequestBody>),
    /// It isn't the workload's fault, and no other would do better.
    Blameless(BackendError),
    /// A workload here may not be asked this, or not so often.
    Refused(Refused),
}

impl Exchange<'_> {
    pub(super) async fn try_once(
        &self,
        endpoint: Arc<Endpoint>,
        mut flight: InFlight,
        body: Option<RequestBody>,
    ) -> Tried {
        let Some(body) = body else {
            return Tried::Failed(BackendError::TimedOut, Attempt::Reset, None);
        };
        let shared = &self.connection.shared;
        let is_here = endpoint.host == self.view.snapshot.local;
        if is_here && !flight.desperate && shared.health.is_unhealthy(self.service) {
            let turn =
                flight.tell(Attempt::Unhealthy, self.cluster.outlier(), shared.chance.next());
            self.note(turn, &endpoint);
            return Tried::Failed(BackendError::Unhealthy, Attempt::Unhealthy, Some(body));
        }
        let mut fields = self.template.copy();
        if flight.desperate && !is_here {
            fields.insert(PANIC, HeaderValue::from_static("true"));
        }
        let place = (self.service, &*self.cluster, &*endpoint);
        let progress = body.progress();
        let notes = Some(Notes { life: &progress.life, audited: &self.audited });
        let aimed = self.template.aim(self.connection, self.view, place, &mut fields, notes);
        let (target, uri) = match aimed {
            Ok(aimed) => aimed,
            Err(refused) => return Tried::Refused(refused),
        };
        if target.host.is_some() {
            fields.extend(self.id.header().map(|id| (REQUEST_ID, id)));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.template.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = fields;
        let wire = self.template.wire_to(self.connection, self.view, self.service, &endpoint);
        *request.version_mut() = wire.version();
        let awaited = request.body().awaited();
        let allowance = Some(self.cluster.allowance());
        // The exchange's own deadline, too: it is the workload that let it pass.
        let patience = self.try_timeout.map(|patience| Instant::now() + patience);
        let sent = {
            let sending = pin!(shared.backends.send(target, wire, Box::new(request), allowance));
            match [patience, self.deadline].into_iter().flatten().min() {
                Some(until) => timeout_at(until, sending).await,
                None => Ok(sending.await),
            }
        };
        let random = self.connection.shared.chance.next();
        if let Some(error) = blameless(&sent, awaited.as_deref()) {
            flight.forget();
            if is_here && matches!(error, BackendError::Overloaded(_)) {
                local::give_back(self.connection, self.view, self.service, &self.template.head);
            }
            return Tried::Blameless(error);
        }
        let (error, attempt, unread) = match sent {
            Ok(Ok(response)) => return self.answered(response, flight, &endpoint, random),
            Ok(Err(failure)) => match failure.unsent {
                Some(request) => (failure.error, Attempt::NotSent, Some(request.into_body())),
                None => (failure.error, Attempt::Reset, None),
            },
            Err(_) => (BackendError::TryTimedOut, Attempt::Reset, None),
        };
        self.note(flight.tell(attempt, self.cluster.outlier(), random), &endpoint);
        Tried::Failed(error, attempt, unread)
    }

    /// An answer has begun: what it says of its workload.
    fn answered(
        &self,
        response: Response<Incoming>,
        mut flight: InFlight,
        endpoint: &Endpoint,
        random: u64,
    ) -> Tried {
        let attempt = Attempt::answered(response.status(), response.headers());
        // A limit of the mesh says nothing about how the workload is.
        if self.limited_by(endpoint.host, attempt, &response).is_some() {
            flight.forget();
        } else if attempt.failure().is_none() && response.headers().contains_key(LEAVING) {
            flight.tell_leaving(self.cluster.outlier(), random);
        } else {
            self.note(flight.tell(attempt, self.cluster.outlier(), random), endpoint);
        }
        Tried::Answer(response, attempt, flight)
    }

    fn note(&self, turn: Turn, endpoint: &Endpoint) {
        let snapshot = &self.view.snapshot;
        let service = || snapshot.services.get(&self.service).map(|it| it.name.as_str());
        let host = || snapshot.hosts.get(&endpoint.host).map(|it| it.name.as_str());
        match turn {
            Turn::Ejected => {
                let (service, host) = (service(), host());
                self.connection.shared.metrics.count_ejection(service.unwrap_or_default());
                tracing::info!(service, host, "Ejected a workload that keeps failing");
            }
            Turn::Back => {
                let (service, host) = (service(), host());
                tracing::info!(service, host, "A workload that was ejected is back");
            }
            Turn::Nothing => {}
        }
    }
}

/// Failures that no workload is to blame for: the caller's, or the breaker's.
fn blameless(
    sent: &Result<Result<Response<Incoming>, Failure>, Elapsed>,
    awaited: Option<&Progress>,
) -> Option<BackendError> {
    match sent {
        Ok(Ok(_)) => None,
        Ok(Err(Failure { error: BackendError::Overloaded(what), .. })) => {
            Some(BackendError::Overloaded(*what))
        }
        Ok(Err(_)) => awaited?.is_broken().then_some(BackendError::CutShort),
        Err(_) => awaited?.is_waiting().then_some(BackendError::Late),
    }
}
