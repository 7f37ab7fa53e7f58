//! The kernel's own forwarding, between two TUN devices.

use std::io::{ErrorKind, IoSlice};
use std::process::Command;

use isthmus_net::tun::{FRAME_BYTES_MAX, Tun};

use super::packets::{Row, whole};

/// A router. What is written to one device leaves by the other, which can't do anything: so the
/// kernel splits packets that stand for many, and completes checksums.
pub(crate) struct Kernel {
    input: Tun,
    output: Tun,
}

/// The device's queue takes whatever the largest super-packet stands for, and nothing waits before it.
const SET_UP: &str = "
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
    ethtool -K out0 tx off tso off gso off
    ip link set out0 txqueuelen 20000
    tc qdisc replace dev out0 root noqueue
    for device in in0 out0; do
        sysctl -qw net.ipv4.conf.$device.rp_filter=0 net.ipv6.conf.$device.addr_gen_mode=1
        ip link set $device up
    done
    ip route add 100.64.0.0/10 dev out0
    ip route add fd15:754d:500::/48 dev out0
";

impl Kernel {
    /// In this thread's network namespace.
    pub(crate) fn new() -> Self {
        let device = |name| Tun::create(name, u16::MAX.into()).expect("a TUN device");
        let (input, output) = (device("in0"), device("out0"));
        let set_up = Command::new("sh").args(["-ec", SET_UP]).output().expect("a shell");
        assert!(set_up.status.success(), "{set_up:?}");
        Self { input, output }
    }

    /// Forwards a frame: adds the packets that come out, and says how many those are.
    ///
    /// Forwarding is done within the write, so whatever will come is there then.
    pub(crate) fn forward(&mut self, frame: &[u8], out: &mut Row) -> usize {
        self.input.send(0, &[IoSlice::new(frame)]).expect("the kernel takes the frame");
        let (mut count, mut is_empty) = (0, false);
        while !is_empty {
            let is_added = out.push_with(|room| {
                let length = match self.output.recv(0, &mut room[..FRAME_BYTES_MAX]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        is_empty = true;
                        return None;
                    }
                    read => read.expect("a device that works"),
                };
                is_forwarded(whole(&room[..length])).then_some(length)
            });
            count += usize::from(is_added);
        }
        count
    }
}

/// What the kernel itself says when a device is new goes to multicast addresses.
fn is_forwarded(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4 || packet[24] != 0xff
}
