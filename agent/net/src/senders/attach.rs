//! Puts a program before a device's queue: a `clsact` discipline, and a filter of it that is the
//! program (rtnetlink).

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use socket2::{Domain, Socket, Type};

const HEADER: usize = 16;
const ROOT_OF_CLSACT: u32 = 0xffff_fff1;
const CLSACT: u32 = 0xffff_0000;
const EGRESS_OF_CLSACT: u32 = 0xffff_fff3;
const FIRST_PRIORITY: u32 = 1 << 16;
/// The filter's handle.
const FIRST: u32 = 1;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_DESCRIPTOR: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
/// The program's result says what becomes of the packet.
const DIRECT_ACTION: u32 = 1;

/// Has a program decide about all packets on their way to a device, in the place of one that an earlier
/// life of this process left there.
pub(super) fn to_egress(device: u32, program: &OwnedFd) -> io::Result<()> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(socket2::Protocol::from(libc::NETLINK_ROUTE)),
    )?;
    let mut discipline =
        Request::new(libc::RTM_NEWQDISC, device, CLSACT, ROOT_OF_CLSACT, 0, libc::NLM_F_EXCL);
    discipline.attribute(KIND, b"clsact\0");
    match discipline.exchange(&mut socket) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }

    let every_protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    let info = FIRST_PRIORITY | every_protocol;
    let mut filter = Request::new(libc::RTM_NEWTFILTER, device, FIRST, EGRESS_OF_CLSACT, info, 0);
    filter.attribute(KIND, b"bpf\0");
    let options = filter.begin(OPTIONS);
    filter.attribute(BPF_DESCRIPTOR, &program.as_raw_fd().to_ne_bytes());
    filter.attribute(BPF_NAME, b"isthmus-senders\0");
    filter.attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    filter.end(options);
    filter.exchange(&mut socket)
}

/// A netlink message with a `struct tcmsg`.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, device: u32, handle: u32, parent: u32, info: u32, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        for field in [0, device, handle, parent, info] {
            bytes.extend(field.to_ne_bytes());
        }
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend(value);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        start
    }

    /// The length doesn't count what aligns the next one.
    fn end(&mut self, start: usize) {
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn exchange(mut self, socket: &mut Socket) -> io::Result<()> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        socket.send(&self.0)?;
        let mut answer = [0; 4096];
        let length = socket.read(&mut answer)?;
        // An error message, whose code is 0 where there is none.
        let code = answer[..length].get(HEADER..).and_then(|it| it.first_chunk());
        match code.map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
