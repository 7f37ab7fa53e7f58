//! A series of echoes through the tunnel.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_core::PeerName;
use isthmus_proto::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use crate::dataplane::{self, Ping};
use crate::status::Shared;
use crate::words::peer_name;

const COUNT_DEFAULT: u32 = 4;
const COUNT_MAX: u32 = 10_000;
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// A tunnel that isn't up yet takes a handshake, which may be lost once.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A user's request, within bounds.
#[derive(Debug)]
pub(super) struct Series {
    target: IpAddr,
    count: u32,
    interval: Duration,
}

impl Series {
    pub(super) fn new(request: &v1::PingRequest, target: IpAddr) -> Self {
        let count = if request.count == 0 { COUNT_DEFAULT } else { request.count };
        let interval = match request.interval_ms {
            0 => INTERVAL_DEFAULT,
            milliseconds => Duration::from_millis(milliseconds.into()),
        };
        Self {
            target,
            count: count.min(COUNT_MAX),
            interval: interval.clamp(INTERVAL_MIN, INTERVAL_MAX),
        }
    }

    /// Ends early when nobody takes the replies.
    pub(super) async fn run(
        self,
        shared: Arc<Shared>,
        packets: dataplane::Handle,
        replies: mpsc::Sender<Result<v1::PingReply, Status>>,
    ) {
        let identifier = shared.pings.identifier();
        let mut next = Instant::now();
        for sequence in 1..=self.count {
            sleep_until(next).await;
            next += self.interval;
            let reply = self.one(&shared, &packets, identifier, sequence).await;
            if replies.send(reply).await.is_err() {
                return;
            }
        }
    }

    async fn one(
        &self,
        shared: &Shared,
        packets: &dataplane::Handle,
        identifier: u16,
        number: u32,
    ) -> Result<v1::PingReply, Status> {
        // Counts up to 10,000: never truncated.
        let sequence = u16::try_from(number).unwrap_or(u16::MAX);
        let reply = v1::PingReply {
            sequence: number,
            address: self.target.to_string(),
            ..v1::PingReply::default()
        };
        let Some(answer) = shared.pings.expect(identifier, sequence) else {
            return Err(Status::resource_exhausted("Too many pings are under way; try again"));
        };
        let ping = Ping { target: self.target, identifier, sequence };
        let asked =
            packets.ping(ping).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let name = |host| match shared.state() {
            Some(state) => peer_name(&state, PeerName::Host(host)),
            None => String::new(),
        };
        let Some(host) = asked else {
            let error = "this host has no tunnel to whoever has that address".to_owned();
            return Ok(v1::PingReply { error, ..reply });
        };
        match timeout(TIMEOUT, answer).await {
            Ok(Ok(pong)) => {
                let microseconds = u64::try_from(pong.round_trip.as_micros()).ok();
                Ok(v1::PingReply { peer: name(pong.from), microseconds, ..reply })
            }
            Ok(Err(_)) | Err(_) => {
                let error = format!("no answer within {} s", TIMEOUT.as_secs());
                Ok(v1::PingReply { peer: name(host), error, ..reply })
            }
        }
    }
}
