//! `agentctl ping`: echoes through the tunnel, which the other agent answers itself.

use std::time::Duration;

use anyhow::Result;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::cli::Format;
use crate::errors::{Exit, refused};
use crate::mesh_view::known;
use crate::output::{self, Tone, clean, paint};
use crate::transport::{Session, ask_agent};
use crate::words::milliseconds;

pub(crate) async fn ping(
    session: &Session,
    target: &str,
    count: u32,
    interval: Duration,
) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let request = v1::PingRequest { target: target.to_owned(), count, interval_ms };
    let mut stream = ask_agent(agent.ping(request)).await?;
    let mut replies = Vec::new();
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            // Whoever interrupts wants the summary.
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(reply) = next.map_err(|status| refused(&status, "the agent"))? else { break };
        if session.output == Format::Text {
            output::say(&line(target, &reply))?;
        }
        replies.push(reply);
    }
    let summary = Summary::of(&replies);
    match session.output {
        Format::Text => output::say(&summary.text(target))?,
        Format::Json => output::json(&summary.json(&replies))?,
    }
    Ok(if summary.received > 0 { Exit::Success } else { Exit::Negative })
}

fn line(target: &str, reply: &v1::PingReply) -> String {
    let sequence = reply.sequence;
    let Some(time) = reply.microseconds else {
        let why = if reply.error.is_empty() { "no reply in time" } else { &reply.error };
        return format!("{target}: seq={sequence} {}", paint(&clean(why), Tone::Bad));
    };
    let peer = known(&reply.peer).unwrap_or(target);
    let from = clean(&format!("{peer} ({})", reply.address));
    format!("reply from {from}: seq={sequence} time={}", milliseconds(time))
}

/// Result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    sent: usize,
    received: usize,
    /// Least, mean and greatest time, if there was any reply.
    times: Option<(u64, u64, u64)>,
}

impl Summary {
    fn of(replies: &[v1::PingReply]) -> Self {
        let times: Vec<u64> = replies.iter().filter_map(|reply| reply.microseconds).collect();
        let sum = times.iter().fold(0_u64, |sum, time| sum.saturating_add(*time));
        let mean = sum.checked_div(times.len() as u64);
        let edges = times.iter().min().zip(times.iter().max()).zip(mean);
        Self {
            sent: replies.len(),
            received: times.len(),
            times: edges.map(|((min, max), mean)| (*min, mean, *max)),
        }
    }

    fn text(&self, target: &str) -> String {
        let Self { sent, received, times } = self;
        let lost = (sent - received) * 100 / (*sent).max(1);
        let mut text = format!("{target}: {sent} sent, {received} received, {lost}% lost");
        if let Some((min, avg, max)) = times {
            let [min, avg, max] = [*min, *avg, *max].map(milliseconds);
            text.push_str(&format!("; min {min}, avg {avg}, max {max}"));
        }
        text
    }

    fn json(&self, replies: &[v1::PingReply]) -> Value {
        let one = |reply: &v1::PingReply| {
            json!({
                "sequence": reply.sequence,
                "address": known(&reply.address),
                "peer": known(&reply.peer),
                "microseconds": reply.microseconds,
                "error": known(&reply.error),
            })
        };
        json!({
            "replies": replies.iter().map(one).collect::<Value>(),
            "sent": self.sent,
            "received": self.received,
            "min_us": self.times.map(|times| times.0),
            "avg_us": self.times.map(|times| times.1),
            "max_us": self.times.map(|times| times.2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn reply(microseconds: Option<u64>) -> v1::PingReply {
        v1::PingReply {
            sequence: 1,
            address: "fd01::1".to_owned(),
            peer: "web-1".to_owned(),
            microseconds,
            error: String::new(),
        }
    }

    #[test]
    fn replies_are_summed_up() {
        let replies = [reply(Some(400)), reply(None), reply(Some(800))];
        let summary = Summary::of(&replies);
        assert_eq!(
            summary.text("web-1"),
            "web-1: 3 sent, 2 received, 33% lost; min 0.400 ms, avg 0.600 ms, max 0.800 ms"
        );
        let value = summary.json(&replies);
        assert_eq!((&value["sent"], &value["avg_us"]), (&3.into(), &600.into()));
        assert_eq!(value["replies"][1]["microseconds"], Value::Null);
    }

    #[test]
    fn silence_has_no_times() {
        assert_eq!(Summary::of(&[]).text("x"), "x: 0 sent, 0 received, 0% lost");
        assert_eq!(Summary::of(&[reply(None)]).text("x"), "x: 1 sent, 0 received, 100% lost");
    }

    #[test]
    fn a_reply_is_one_line() {
        assert_eq!(line("x", &reply(Some(412))), "reply from web-1 (fd01::1): seq=1 time=0.412 ms");
        assert_eq!(plain(&line("x", &reply(None))), "x: seq=1 no reply in time");
    }
}
