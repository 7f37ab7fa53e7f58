//! Peers with nothing to say cost nothing.

use std::time::Duration;

use isthmus_model::Protocol;

use crate::sim::packets::{udp, udp_key};
use crate::sim::{Builder, World};

/// Longer than a handshake is tried for, and than a tunnel is kept after that.
const LONG: Duration = Duration::from_secs(300);

fn mesh() -> World {
    let topology = Builder::new(2)
        .service_of(Protocol::Udp, "log", 514, &[1, 2])
        .allow("host:*", "service:log")
        .build();
    World::new(topology, 1)
}

fn log(world: &World, from: u32, to: u32) -> Vec<u8> {
    let workload = world.topology.workload("log", to, true);
    udp(&udp_key((world.topology.host_address(from, true), 9), (workload, 514)), b"line")
}

#[test]
fn a_session_that_is_no_longer_used_isnt_renewed() {
    let mut world = mesh();
    assert_eq!(world.exchange(1, &log(&world, 1, 2), 2).len(), 1);
    world.run(LONG);
    assert_eq!(handshakes(&mut world), [1, 0]);
}

#[test]
fn a_session_in_use_is_renewed_by_one_handshake() {
    let mut world = mesh();
    world.network.link.latency = Duration::from_millis(40);
    world.send(1, &log(&world, 1, 2));
    world.run(Duration::from_secs(1));
    for _ in 1..250 {
        world.send(1, &log(&world, 1, 2));
        world.send(2, &log(&world, 2, 1));
        world.run(Duration::from_secs(1));
    }
    assert_eq!(handshakes(&mut world).iter().sum::<u64>(), 3, "at 0, 120 and 240 s");
    assert_eq!([1, 2].map(|host| world.host(host).take_inbox().len()), [249, 250]);
}

/// Begun by each host.
fn handshakes(world: &mut World) -> [u64; 2] {
    [1, 2].map(|host| world.host(host).node.counters().handshakes_initiated)
}
