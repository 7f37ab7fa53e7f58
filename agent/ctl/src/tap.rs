//! `agentctl tap`: requests as they end.

use anyhow::Result;
use isthmus_proto::v1;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::{Format, Tap};
use crate::errors::{Exit, refused};
use crate::mesh_view::known;
use crate::output::{self, Tone, clean, paint};
use crate::routes::latency;
use crate::transport::{Session, ask_agent};
use crate::words::bytes;

pub(crate) async fn tap(session: &Session, arguments: Tap) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let mut left = arguments.limit;
    let mut stream = ask_agent(agent.tap(request(arguments))).await?;
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Success),
        };
        let next = next.map_err(|status| refused(&status, "the agent"))?;
        let Some(event) = next else { return Ok(Exit::Success) };
        if event.lost > 0 {
            let lost = event.lost;
            output::warn(&format!("{lost} requests came too fast and aren't shown; filter more"));
        }
        let Some(request) = event.request else { continue };
        match session.output {
            Format::Text => output::say(&line(&request))?,
            Format::Json => output::json_line(&json(&request))?,
        }
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(Exit::Success);
        }
    }
}

fn request(arguments: Tap) -> v1::TapRequest {
    let min = arguments.min_duration.unwrap_or_default();
    v1::TapRequest {
        source: arguments.source.unwrap_or_default(),
        destination: arguments.service.unwrap_or_default(),
        route: arguments.route.unwrap_or_default(),
        method: arguments.method.unwrap_or_default().to_ascii_uppercase(),
        path: arguments.path.unwrap_or_default(),
        status: arguments.status.unwrap_or_default().to_ascii_lowercase(),
        min_microseconds: u64::try_from(min.as_micros()).unwrap_or(u64::MAX),
    }
}

fn line(it: &v1::TapRecord) -> String {
    let tone = match it.status {
        _ if !it.success => Tone::Bad,
        Some(400..) => Tone::Warn,
        Some(_) | None => Tone::Good,
    };
    let status = it.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let time = began(it).map_or_else(String::new, |time| time.strftime("%H:%M:%S%.3f").to_string());
    let mut text = format!(
        "{} {} {} -> {} {} {} {} {}",
        paint(&time, Tone::Quiet),
        it.side,
        clean(&it.source),
        clean(&it.destination),
        it.method,
        clean(&it.path),
        paint(&status, tone),
        latency(it.duration_microseconds),
    );
    let parts: Vec<String> = parts(it)
        .into_iter()
        .filter(|(_, micros)| *micros > 0)
        .map(|(name, micros)| format!("{name} {}", latency(micros)))
        .collect();
    if !parts.is_empty() {
        text.push_str(&paint(&format!(" ({})", parts.join(", ")), Tone::Quiet));
    }
    text.push_str(&format!(" in {} out {}", bytes(it.request_bytes), bytes(it.response_bytes)));
    let tries = if it.tries > 1 { it.tries.to_string() } else { String::new() };
    let more = [
        ("route", &it.route),
        ("backend", &it.backend),
        ("host", &it.host),
        ("rule", &it.rule),
        ("tries", &tries),
        ("trace", &it.trace_id),
    ];
    for (name, value) in more.into_iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!(" {name}={}", clean(value)));
    }
    text
}

fn parts(it: &v1::TapRecord) -> [(&'static str, u64); 5] {
    [
        ("client", it.client_microseconds),
        ("queue", it.queue_microseconds),
        ("connect", it.connect_microseconds),
        ("tunnel", it.tunnel_microseconds),
        ("server", it.server_microseconds),
    ]
}

fn began(it: &v1::TapRecord) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(it.began_microseconds).ok()?).ok()
}

fn json(it: &v1::TapRecord) -> Value {
    let [client, queue, connect, tunnel, server] = parts(it).map(|(_, micros)| micros);
    json!({
        "time": began(it).map(|time| time.to_string()),
        "request_id": it.request_id,
        "side": it.side,
        "source": it.source,
        "destination": it.destination,
        "route": known(&it.route),
        "backend": known(&it.backend),
        "host": known(&it.host),
        "method": it.method,
        "path": it.path,
        "version": it.version,
        "status": it.status,
        "success": it.success,
        "verdict": it.verdict,
        "rule": known(&it.rule),
        "tries": it.tries,
        "request_bytes": it.request_bytes,
        "response_bytes": it.response_bytes,
        "duration_microseconds": it.duration_microseconds,
        "client_microseconds": client,
        "queue_microseconds": queue,
        "connect_microseconds": connect,
        "tunnel_microseconds": tunnel,
        "server_microseconds": server,
        "trace_id": known(&it.trace_id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    #[test]
    fn a_request_is_one_line() {
        let record = v1::TapRecord {
            side: "client".to_owned(),
            source: "service:web".to_owned(),
            destination: "service:api".to_owned(),
            route: "split".to_owned(),
            method: "GET".to_owned(),
            path: "/users\u{1b}/7".to_owned(),
            status: Some(503),
            tries: 2,
            response_bytes: 2048,
            began_microseconds: 1_700_000_000_123_456,
            duration_microseconds: 204_000,
            tunnel_microseconds: 4_000,
            server_microseconds: 200_000,
            ..v1::TapRecord::default()
        };
        assert_eq!(
            plain(&line(&record)),
            "22:13:20.123 client service:web -> service:api GET /users\\u{1b}/7 503 204 ms \
             (tunnel 4.00 ms, server 200 ms) in 0 B out 2.0 KiB route=split tries=2"
        );
        let value = json(&record);
        assert_eq!(
            (&value["status"], &value["server_microseconds"]),
            (&503.into(), &200_000.into())
        );
        assert_eq!(
            (&value["time"], &value["trace_id"]),
            (&"2023-11-14T22:13:20.123456Z".into(), &Value::Null)
        );
    }
}
