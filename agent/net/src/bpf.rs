//! Maps and programs in the kernel (`bpf(2)`), as far as [`crate::senders`] needs them: its program
//! is some dozens of instructions, written down as such, so that nothing has to be compiled for it.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: c_long = 0;
const MAP_LOOKUP: c_long = 1;
const MAP_UPDATE: c_long = 2;
const PROGRAM_LOAD: c_long = 5;

const SCHED_CLS: u32 = 3;
/// The agent's own licence; no helper that the program calls wants another.
const LICENSE: &[u8] = b"Apache-2.0\0";

/// Definition of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MapKind {
    /// Numbered values that can be mapped into memory.
    SharedArray,
    /// The least recently used makes room.
    LruHash,
}

/// A map in the kernel.
#[derive(Debug)]
pub(crate) struct Map {
    descriptor: OwnedFd,
    key: usize,
    value: usize,
}

impl Map {
    pub(crate) fn create(
        kind: MapKind,
        key: usize,
        value: usize,
        entries: u32,
    ) -> io::Result<Self> {
        const SHARED: u32 = 1 << 10;
        let (kind, flags) = match kind {
            MapKind::SharedArray => (2, SHARED),
            MapKind::LruHash => (9, 0),
        };
        let mut attributes = Attributes::default();
        attributes.put_u32(0, kind);
        attributes.put_u32(4, key as u32);
        attributes.put_u32(8, value as u32);
        attributes.put_u32(12, entries);
        attributes.put_u32(16, flags);
        // SAFETY: this command takes no pointers.
        let descriptor = unsafe { attributes.call(MAP_CREATE) }?;
        Ok(Self { descriptor: owned(descriptor), key, value })
    }

    /// Copies a key's value into `value`. False where there is none.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key, value)?;
        let mut attributes = self.attributes(key);
        attributes.put_u64(16, value.as_mut_ptr() as u64);
        // SAFETY: `check` has seen that the kernel reads and writes no more than both slices have,
        // and they are valid for the whole call.
        match unsafe { attributes.call(MAP_LOOKUP) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, value)?;
        let mut attributes = self.attributes(key);
        attributes.put_u64(16, value.as_ptr() as u64);
        // SAFETY: `check` has seen that the kernel reads no more than both slices have, and they are
        // valid for the whole call.
        unsafe { attributes.call(MAP_UPDATE) }.map(drop)
    }

    fn check(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let fits = key.len() == self.key && value.len() == self.value;
        if fits { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn attributes(&self, key: &[u8]) -> Attributes {
        let mut attributes = Attributes::default();
        attributes.put_u32(0, self.number() as u32);
        attributes.put_u64(8, key.as_ptr() as u64);
        attributes
    }

    pub(crate) fn number(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }
}

impl AsRawFd for Map {
    fn as_raw_fd(&self) -> i32 {
        self.number()
    }
}

/// Loads a program that looks at packets of a device (`BPF_PROG_TYPE_SCHED_CLS`).
///
/// # Errors
/// `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN; `InvalidInput` or another where the kernel
/// lacks something that the program uses.
pub(crate) fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes.put_u32(0, SCHED_CLS);
    attributes.put_u32(4, program.len() as u32);
    attributes.put_u64(8, program.as_ptr() as u64);
    attributes.put_u64(16, LICENSE.as_ptr() as u64);
    #[cfg(test)]
    let mut log = vec![0_u8; 1 << 16];
    #[cfg(test)]
    {
        attributes.put_u32(24, 1);
        attributes.put_u32(28, log.len() as u32);
        attributes.put_u64(32, log.as_mut_ptr() as u64);
    }
    // SAFETY: the kernel reads so many instructions, and the licence up to its NUL; both are valid
    // for the whole call.
    let loaded = unsafe { attributes.call(PROGRAM_LOAD) };
    #[cfg(test)]
    if loaded.is_err() {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        panic!("{}", String::from_utf8_lossy(&log[..end]));
    }
    loaded.map(owned)
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it, for us alone.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// `union bpf_attr`, as far as it is used.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Default for Attributes {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attributes {
    fn put_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    /// # Safety
    /// The pointers within must be valid for what the command does with them.
    unsafe fn call(&mut self, command: c_long) -> io::Result<i32> {
        // SAFETY: the attributes are valid for their length; for the rest see above.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }
}

/// A register: R1 to R5 are arguments and lost by calls, R0 is a call's result, R10 the end of the
/// stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(pub(crate) u8);

/// Width of a load or store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    Byte,
    Half,
    Word,
    Double,
}

impl Size {
    const fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// A comparison, of a register with a constant or another register.
#[derive(Clone, Copy, Debug)]
pub(crate) enum If {
    Equal = 0x10,
    Greater = 0x20,
    AtLeast = 0x30,
    NotEqual = 0x50,
}

/// Writes a program; jumps lead forward to labels.
#[derive(Debug)]
pub(crate) struct Assembler<L> {
    instructions: Vec<u64>,
    jumps: Vec<(usize, L)>,
    labels: Vec<(L, usize)>,
}

impl<L: PartialEq + Copy> Assembler<L> {
    pub(crate) const fn new() -> Self {
        Self { instructions: Vec::new(), jumps: Vec::new(), labels: Vec::new() }
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, constant: i32) {
        let [offset_low, offset_high] = offset.to_ne_bytes();
        // Little-endian and big-endian differ in the order of the two registers.
        let registers =
            if cfg!(target_endian = "little") { from.0 << 4 | to.0 } else { to.0 << 4 | from.0 };
        let [a, b, c, d] = constant.to_ne_bytes();
        let bytes = [code, registers, offset_low, offset_high, a, b, c, d];
        self.instructions.push(u64::from_ne_bytes(bytes));
    }

    pub(crate) fn set(&mut self, to: Register, constant: i32) {
        self.push(0xb7, to, Register(0), 0, constant);
    }

    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.push(0xbf, to, from, 0, 0);
    }

    pub(crate) fn add(&mut self, to: Register, constant: i32) {
        self.push(0x07, to, Register(0), 0, constant);
    }

    pub(crate) fn and(&mut self, to: Register, constant: i32) {
        self.push(0x57, to, Register(0), 0, constant);
    }

    pub(crate) fn shift_left(&mut self, to: Register, bits: i32) {
        self.push(0x67, to, Register(0), 0, bits);
    }

    /// Of the lower 32 bits; the upper ones become 0.
    pub(crate) fn multiply_u32(&mut self, to: Register, constant: u32) {
        self.push(0x24, to, Register(0), 0, constant.cast_signed());
    }

    /// Of the lower 32 bits; the upper ones become 0.
    pub(crate) fn shift_right_u32(&mut self, to: Register, bits: i32) {
        self.push(0x74, to, Register(0), 0, bits);
    }

    pub(crate) fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.push(0x61 | size.bits(), to, from, offset, 0);
    }

    pub(crate) fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.push(0x63 | size.bits(), to, from, offset, 0);
    }

    pub(crate) fn store_constant(&mut self, size: Size, to: Register, offset: i16, constant: i32) {
        self.push(0x62 | size.bits(), to, Register(0), offset, constant);
    }

    pub(crate) fn atomic_add(&mut self, to: Register, offset: i16, from: Register) {
        self.push(0xdb, to, from, offset, 0);
    }

    pub(crate) fn load_map(&mut self, to: Register, map: &Map) {
        const MAP_DESCRIPTOR: Register = Register(1);
        self.push(0x18, to, MAP_DESCRIPTOR, 0, map.number());
        self.push(0, Register(0), Register(0), 0, 0);
    }

    pub(crate) fn call(&mut self, helper: i32) {
        self.push(0x85, Register(0), Register(0), 0, helper);
    }

    pub(crate) fn exit(&mut self) {
        self.push(0x95, Register(0), Register(0), 0, 0);
    }

    pub(crate) fn go(&mut self, label: L) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05, Register(0), Register(0), 0, 0);
    }

    pub(crate) fn go_if(&mut self, register: Register, is: If, constant: i32, label: L) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05 | is as u8, register, Register(0), 0, constant);
    }

    pub(crate) fn go_if_other(&mut self, register: Register, is: If, other: Register, label: L) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x0d | is as u8, register, other, 0, 0);
    }

    pub(crate) fn label(&mut self, label: L) {
        self.labels.push((label, self.instructions.len()));
    }

    /// The program with its jumps filled in. None if one leads nowhere.
    pub(crate) fn finish(mut self) -> Option<Vec<u64>> {
        for (at, wanted) in self.jumps {
            let (_, target) = self.labels.iter().find(|(label, _)| *label == wanted)?;
            let offset = i16::try_from(target.checked_sub(at + 1)?).ok()?;
            let instruction = self.instructions.get_mut(at)?;
            let mut bytes = instruction.to_ne_bytes();
            bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
            *instruction = u64::from_ne_bytes(bytes);
        }
        Some(self.instructions)
    }
}
