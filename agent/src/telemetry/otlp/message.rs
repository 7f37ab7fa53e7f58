//! The few of OTLP's messages and fields that spans need (opentelemetry-proto, trace/v1).

use std::time::{Duration, SystemTime};

use isthmus_proxy::{Finished, Side};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct InstrumentationScope {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    /// Empty: the trace begins here.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(enumeration = "SpanKind", tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<Status>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum SpanKind {
    Unspecified = 0,
    Internal = 1,
    Server = 2,
    Client = 3,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(enumeration = "StatusCode", tag = "3")]
    pub(crate) code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum StatusCode {
    Unset = 0,
    Ok = 1,
    Error = 2,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3, 4")]
    pub(crate) value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Value {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

impl ExportTraceServiceRequest {
    /// A batch of what a host's proxy saw.
    pub(crate) fn of(host: &str, requests: &[impl AsRef<Finished>]) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let spans = requests.iter().filter_map(|it| Span::of(it.as_ref())).collect();
        let attributes = [("service.name", "isthmus-agent"), ("host.name", host)];
        let attributes = attributes.map(|(key, value)| KeyValue::text(key, value)).to_vec();
        let scope = Some(InstrumentationScope { name: "isthmus".to_owned(), version });
        let scope_spans = vec![ScopeSpans { scope, spans }];
        let resource = Some(Resource { attributes });
        Self { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
    }
}

impl Span {
    fn of(it: &Finished) -> Option<Self> {
        let trace = it.trace?;
        let asked = it.destination.trim_start_matches("service:");
        let kind = match it.side {
            Side::Client => SpanKind::Client,
            Side::Server => SpanKind::Server,
        };
        let code = if it.success { StatusCode::Unset } else { StatusCode::Error };
        Some(Self {
            trace_id: trace.id.0.to_vec(),
            span_id: trace.span?.0.to_vec(),
            parent_span_id: trace.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
            name: format!("{} {asked}", it.method),
            kind: kind.into(),
            start_time_unix_nano: nanos(it.began),
            end_time_unix_nano: nanos(it.began + it.took),
            attributes: attributes(it),
            status: Some(Status { code: code.into() }),
        })
    }
}

fn attributes(it: &Finished) -> Vec<KeyValue> {
    let texts = [
        ("http.request.method", it.method.as_str()),
        ("url.path", &it.path),
        ("isthmus.request_id", &it.request_id),
        ("isthmus.source", &it.source),
        ("isthmus.destination", &it.destination),
        ("isthmus.route", &it.route),
        ("isthmus.backend", &it.backend),
        ("isthmus.host", &it.host),
        ("isthmus.verdict", it.ruling.as_str()),
        ("isthmus.rule", &it.rule),
    ];
    let numbers = [
        ("http.response.status_code", it.status.map(i64::from)),
        ("http.request.body.size", i64::try_from(it.request_bytes).ok()),
        ("http.response.body.size", i64::try_from(it.response_bytes).ok()),
        ("http.request.resend_count", (it.tries > 1).then(|| i64::from(it.tries) - 1)),
    ];
    let parts = [
        ("isthmus.client_ms", it.parts.client),
        ("isthmus.queue_ms", it.parts.queue),
        ("isthmus.connect_ms", it.parts.connect),
        ("isthmus.tunnel_ms", it.parts.tunnel),
        ("isthmus.server_ms", it.parts.server),
    ];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let texts = texts.map(|(key, text)| KeyValue::text(key, text));
    let numbers = numbers
        .into_iter()
        .filter_map(|(key, number)| Some(KeyValue::new(key, Value::Int(number?))));
    let parts = parts
        .into_iter()
        .map(|(key, time)| KeyValue::new(key, Value::Double(time.as_secs_f64() * 1000.0)));
    texts.chain(numbers).chain(parts).collect()
}

impl KeyValue {
    fn new(key: &str, value: Value) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
    }

    pub(crate) fn text(key: &str, text: &str) -> Self {
        Self::new(key, Value::String(text.to_owned()))
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since: Duration = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
