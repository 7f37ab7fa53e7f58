//! Requests under way stay to be judged: as flows do, they end when policy no longer allows them. So do
//! those whose token has expired, whose body doesn't come, or that last too long.
//!
//! A connection's worker looks at them ([`Life::judge`], [`Life::check`]) with each view and each tick.
//! HTTP/1 has one request at a time, which ends with its connection; of HTTP/2 only the stream is reset,
//! by its own task ([`isthmus_http::activity::Activity::look_again`]).

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use isthmus_model::{Revision, ServiceId};
use isthmus_policy::fields::Headers;
use isthmus_policy::{Request, Token};
use parking_lot::Mutex;

use super::fields::Lines;
use super::parties::Parties;
use super::view::ProxySnapshot;

/// The snapshot that a request was judged by, and whether it is still allowed.
#[derive(Debug, Default)]
pub(crate) struct Life {
    judged: Mutex<Judged>,
    cut: AtomicU8,
    answered: AtomicBool,
}

/// By which services' rules it was judged: most by those of one.
#[derive(Debug, Default)]
struct Judged {
    first: Option<Kept>,
    more: Vec<Kept>,
}

/// A request as policy looks at it.
#[derive(Debug)]
pub(crate) struct Kept {
    service: ServiceId,
    /// The snapshot that judged it last.
    revision: Revision,
    method: Method,
    target: Option<PathAndQuery>,
    host: HeaderValue,
    /// Kept where rules look at them: most requests are short, and a copy of all fields costs each.
    fields: Option<HeaderMap>,
    tokens: Vec<Token>,
    /// Seconds since 1970.
    expires: Option<f64>,
}

/// Why a request was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Denied,
    Expired,
    /// Its body stopped coming.
    Slow,
    Long,
}

/// Fields that nobody kept: a deny rule that looks at them fits, an allow rule doesn't.
#[derive(Debug)]
struct Unknown;

impl Headers for Unknown {
    fn lines(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}

    fn all(&self, _: &mut dyn FnMut(&str, &[u8])) {}

    fn are_known(&self) -> bool {
        false
    }
}

impl Cut {
    const ALL: [Self; 4] = [Self::Denied, Self::Expired, Self::Slow, Self::Long];

    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Denied => "policy no longer allows it",
            Self::Expired => "its token has expired",
            Self::Slow => "its body stopped coming",
            Self::Long => "it lasted too long",
        }
    }

    /// Answer for its caller, if none was sent yet.
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Expired => StatusCode::UNAUTHORIZED,
            Self::Slow | Self::Long => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

impl Life {
    /// Keeps a request that may pass.
    pub(crate) fn keep(&self, kept: Kept) {
        let mut judged = self.judged.lock();
        let Judged { first, more } = &mut *judged;
        let same = first.iter_mut().chain(more.iter_mut()).find(|it| it.service == kept.service);
        if let Some(same) = same {
            *same = kept;
        } else if first.is_none() {
            *first = Some(kept);
        } else {
            more.push(kept);
        }
    }

    /// Its answer has begun.
    pub(crate) fn on_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn why_cut(&self) -> Option<Cut> {
        let at = usize::from(self.cut.load(Ordering::Relaxed)).checked_sub(1)?;
        Cut::ALL.get(at).copied()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Cuts it if a view denies it. Says whether that is news.
    pub(crate) fn judge(&self, view: &ProxySnapshot, denies: impl Fn(&Kept) -> bool) -> bool {
        self.judged.lock().is_denied(view, |_| true, denies) && self.cut(Cut::Denied)
    }

    /// Cuts it if its time is over (`late`, or by its token), or if it was judged by an older view while this
    /// one came. `now` are seconds since 1970. Says whether that is news.
    pub(crate) fn check(
        &self,
        view: &ProxySnapshot,
        now: f64,
        late: Option<Cut>,
        denies: impl Fn(&Kept) -> bool,
    ) -> bool {
        let has_expired = |kept: &Kept| kept.expires.is_some_and(|at| at <= now);
        let is_old = |kept: &Kept| kept.revision < view.snapshot.revision;
        let mut judged = self.judged.lock();
        let cut = if judged.is_denied(view, is_old, denies) {
            Cut::Denied
        } else if judged.all().any(has_expired) {
            Cut::Expired
        } else if let Some(late) = late {
            late
        } else {
            return false;
        };
        self.cut(cut)
    }

    fn cut(&self, why: Cut) -> bool {
        let number = Cut::ALL.iter().position(|it| *it == why).unwrap_or_default() as u8 + 1;
        self.cut.swap(number, Ordering::Relaxed) == 0
    }
}

impl Judged {
    fn all(&self) -> impl Iterator<Item = &Kept> {
        self.first.iter().chain(&self.more)
    }

    /// Whether a view denies one of those that are meant.
    fn is_denied(
        &mut self,
        view: &ProxySnapshot,
        is_meant: impl Fn(&Kept) -> bool,
        denies: impl Fn(&Kept) -> bool,
    ) -> bool {
        let mut all = self.first.iter_mut().chain(&mut self.more).filter(|kept| is_meant(kept));
        all.any(|kept| {
            kept.revision = view.snapshot.revision;
            denies(kept)
        })
    }
}

impl Kept {
    /// The parts of a request to a service that policy looks at.
    pub(crate) fn of(
        view: &ProxySnapshot,
        service: ServiceId,
        head: &Parts,
        tokens: &[Token],
    ) -> Self {
        let fields = view.compares_fields(service).then(|| head.headers.clone());
        let ends = tokens.iter().filter_map(|token| {
            let providers = view.providers.get(&service)?;
            let provider = providers.iter().find(|it| it.name == token.provider)?;
            let expires = token.claims.get("exp")?.as_f64()?;
            Some(expires + provider.leeway.as_secs_f64())
        });
        Self {
            service,
            revision: view.snapshot.revision,
            method: head.method.clone(),
            target: head.uri.path_and_query().cloned(),
            host: head.headers.get(HOST).cloned().unwrap_or_else(|| HeaderValue::from_static("")),
            fields,
            tokens: tokens.to_vec(),
            expires: ends.reduce(f64::min),
        }
    }

    /// Whether a view denies it to these parties; the caller is on the host of this name, if on any.
    pub(crate) fn is_denied(
        &self,
        view: &ProxySnapshot,
        parties: Parties,
        source_host: &str,
    ) -> bool {
        let parties = if self.service == parties.service {
            Some(parties)
        } else {
            view.parties_here(&parties, self.service)
        };
        let Some(parties) = parties else { return true };
        let known = self.fields.as_ref().map(Lines);
        let headers: &dyn Headers = match &known {
            Some(known) => known,
            None => &Unknown,
        };
        let target = self.target.as_ref();
        let asked = Request {
            method: self.method.as_str(),
            path: target.map_or("/", PathAndQuery::path),
            host: self.host.to_str().unwrap_or_default(),
            query: target.and_then(PathAndQuery::query).unwrap_or_default(),
            headers,
            tokens: &self.tokens,
            source_host,
        };
        view.judge(&parties, Some(asked)).denies()
    }
}
