//! W3C trace context: which trace a request belongs to, read strictly.
//!
//! A context that isn't exactly as the recommendation has it is as none, and its `tracestate` goes with it.
//! While nobody exports spans here, contexts pass unchanged: who has no span is nobody's parent.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::random::Random;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// Sampling of traces that begin here.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tracing {
    /// Whether spans are exported.
    pub enabled: bool,
    /// Share of the requests outside any trace that begin a sampled one.
    pub sample: f64,
}

/// A trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// A part of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// Contents of `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The sender's span.
    pub span: SpanId,
    /// Whether the sender may have recorded it.
    pub sampled: bool,
}

/// The trace of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: TraceId,
    /// The caller's span, if it has one.
    pub parent: Option<SpanId>,
    /// Ours, if this request's span is to be exported.
    pub span: Option<SpanId>,
}

impl Trace {
    /// Reads a request's context, or begins one, and writes down what goes on.
    pub fn of(headers: &mut HeaderMap, tracing: &Tracing, chance: &Random) -> Option<Self> {
        let Some(parent) = read(headers) else { return Self::begin(headers, tracing, chance) };
        let mut trace = Self { id: parent.trace, parent: Some(parent.span), span: None };
        if tracing.enabled && parent.sampled {
            let span = span_id(chance);
            trace.span = Some(span);
            write(headers, TraceParent { span, ..parent });
        }
        Some(trace)
    }

    fn begin(headers: &mut HeaderMap, tracing: &Tracing, chance: &Random) -> Option<Self> {
        if !tracing.enabled {
            return None;
        }
        let (id, span) = (trace_id(chance), span_id(chance));
        // 53 bits are what a double holds.
        let sampled = ((chance.next() >> 11) as f64 / (1_u64 << 53) as f64) < tracing.sample;
        // Also where it isn't sampled: nobody behind us shall decide anew.
        write(headers, TraceParent { trace: id, span, sampled });
        Some(Self { id, parent: None, span: sampled.then_some(span) })
    }
}

impl TraceParent {
    /// Reads a `traceparent`; none if it isn't exactly one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(LENGTH)?;
        let dashes = [known[2], known[35], known[52]] == *b"---";
        let version = hex::<1>(&known[..2])?;
        // Later versions may add to the end.
        let ends = match version {
            [0] => more.is_empty(),
            [0xff] => false,
            [_] => more.first().is_none_or(|next| *next == b'-'),
        };
        let (trace, span) = (hex::<16>(&known[3..35])?, hex::<8>(&known[36..52])?);
        let [flags] = hex::<1>(&known[53..])?;
        let is_proper = dashes && ends && trace != [0; 16] && span != [0; 8];
        let sampled = flags & SAMPLED != 0;
        is_proper.then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a request says of its trace. What is improper is removed, so that nobody behind us reads it
/// in another way.
fn read(headers: &mut HeaderMap) -> Option<TraceParent> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let (line, another) = (lines.next(), lines.next());
    let parent =
        line.filter(|_| another.is_none()).and_then(|it| TraceParent::parse(it.as_bytes()));
    let was_there = line.is_some();
    if parent.is_none() && was_there {
        headers.remove(TRACEPARENT);
    }
    if parent.is_none() && headers.contains_key(TRACESTATE) {
        headers.remove(TRACESTATE);
    }
    parent
}

fn write(headers: &mut HeaderMap, parent: TraceParent) {
    // Digits and dashes are always a value.
    if let Ok(value) = HeaderValue::from_str(&parent.to_string()) {
        headers.insert(TRACEPARENT, value);
    }
}

fn trace_id(chance: &Random) -> TraceId {
    let mut id = [0; 16];
    let (high, low) = id.split_at_mut(8);
    high.copy_from_slice(&chance.next().to_be_bytes());
    low.copy_from_slice(&(chance.next() | 1).to_be_bytes());
    TraceId(id)
}

fn span_id(chance: &Random) -> SpanId {
    SpanId((chance.next() | 1).to_be_bytes())
}

/// Lower-case digits, as many as there must be.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |letter: u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const ON: Tracing = Tracing { enabled: true, sample: 1.0 };
    const OFF: Tracing = Tracing { enabled: false, sample: 1.0 };

    #[test]
    fn only_what_is_exactly_right_is_a_traceparent() {
        let with = |from: &str, to: &str| PARENT.replacen(from, to, 1);
        for (text, right) in [
            (PARENT.to_owned(), true),
            (with("-01", "-00"), true),
            (with("-01", "-ff"), true),
            (with("00-", "01-"), true),
            (format!("{}-what-comes-later", with("00-", "cc-")), true),
            (format!("{}-", with("00-", "01-")), true),
            (format!("{}.later", with("00-", "cc-")), false),
            (format!("{PARENT}-more"), false),
            (format!("{PARENT}-"), false),
            (format!("{PARENT} "), false),
            (format!(" {PARENT}"), false),
            (with("00-", "ff-"), false),
            (with("00-", "0-"), false),
            (with("00-", "000-"), false),
            (with("00-", "zz-"), false),
            (with("00-4b", "00_4b"), false),
            (with("4736-", "4736_"), false),
            (with("b7-", "b7_"), false),
            (with("4bf92f", "4BF92F"), false),
            (with("4bf92f", "4gf92f"), false),
            (with("4bf92f", "4bf9"), false),
            (with("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), false),
            (with("00f067aa0ba902b7", &"0".repeat(16)), false),
            (with("00f067aa0ba902b7", "00F067aa0ba902b7"), false),
            (with("-01", "-1"), false),
            (with("-01", "-0x"), false),
            (with("-01", ""), false),
            (String::new(), false),
            ("00".to_owned(), false),
            ("\u{e9}".repeat(30), false),
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()).is_some(), right, "{text:?}");
        }
        let parent = TraceParent::parse(PARENT.as_bytes()).unwrap();
        assert_eq!((parent.to_string().as_str(), parent.sampled), (PARENT, true));
        assert!(!TraceParent::parse(with("-01", "-02").as_bytes()).unwrap().sampled);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_it_takes_it_writes(bytes: Vec<u8>) {
            let _ = TraceParent::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read_again(trace in 1..=u128::MAX, span in 1..=u64::MAX, sampled: bool) {
            let (trace, span) = (TraceId(trace.to_be_bytes()), SpanId(span.to_be_bytes()));
            let parent = TraceParent { trace, span, sampled };
            prop_assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
        }
    }

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let line = |(name, value): &(HeaderName, &str)| (name.clone(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.extend(lines.iter().map(line));
        headers
    }

    #[test]
    fn a_sampled_trace_goes_on_with_a_span_of_ours() {
        let chance = Random::new();
        let mut headers = headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1,b=2")]);
        let trace = Trace::of(&mut headers, &ON, &chance).unwrap();
        let sent = TraceParent::parse(headers[TRACEPARENT].as_bytes()).unwrap();
        assert_eq!((Some(sent.span), sent.trace, sent.sampled), (trace.span, trace.id, true));
        assert_eq!(trace.id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert_eq!(headers[TRACESTATE], "a=1,b=2");
    }

    #[test]
    fn a_trace_that_isnt_sampled_or_exported_passes_unchanged() {
        let chance = Random::new();
        let unsampled = PARENT.replace("-01", "-00");
        for (line, tracing) in [(unsampled.as_str(), ON), (PARENT, OFF)] {
            let mut headers = headers(&[(TRACEPARENT, line), (TRACESTATE, "a=1")]);
            let trace = Trace::of(&mut headers, &tracing, &chance).unwrap();
            assert_eq!((headers[TRACEPARENT].to_str().unwrap(), trace.span), (line, None));
            assert_eq!(headers[TRACESTATE], "a=1");
        }
    }

    #[test]
    fn what_is_improper_is_removed_and_begun_anew() {
        let chance = Random::new();
        for lines in [
            &[(TRACEPARENT, "00-nonsense"), (TRACESTATE, "a=1")][..],
            &[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT), (TRACESTATE, "a=1")],
            &[(TRACESTATE, "a=1")],
        ] {
            let mut off = headers(lines);
            assert_eq!(Trace::of(&mut off, &OFF, &chance), None);
            assert!(off.is_empty(), "{off:?}");
            let mut on = headers(lines);
            let trace = Trace::of(&mut on, &ON, &chance).unwrap();
            assert_eq!((on.len(), trace.parent), (1, None));
        }
    }

    #[test]
    fn as_many_are_sampled_as_is_said() {
        let chance = Random::new();
        let of = |sample: f64| {
            let tracing = Tracing { enabled: true, sample };
            let begin = |_: &u32| {
                let mut headers = HeaderMap::new();
                let trace = Trace::of(&mut headers, &tracing, &chance).unwrap();
                let sent = TraceParent::parse(headers[TRACEPARENT].as_bytes()).unwrap();
                assert_eq!(sent.sampled, trace.span.is_some());
                sent.sampled
            };
            (0..10_000).filter(begin).count()
        };
        assert_eq!((of(0.0), of(1.0)), (0, 10_000));
        // Five standard deviations of a fair draw are 150.
        assert!((850..=1150).contains(&of(0.1)));
    }
}
