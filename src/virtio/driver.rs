//! The driver's side of a ring, for tests: one that keeps the rules, and can be told to break them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::volatile_memory::VolatileMemory;

use super::memory::{GuestMemory, RegionSpec};
use super::ring::Setup;

/// By how much the front end's addresses differ from the guest's.
pub(crate) const USER: u64 = 0x7f00_0000_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A file of so many bytes, all zero.
pub(crate) fn file(len: u64) -> File {
    let fd: OwnedFd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
    let file = File::from(fd);
    file.set_len(len).expect("that long");
    file
}

pub(crate) fn region(guest_addr: u64, len: u64) -> RegionSpec {
    RegionSpec { guest_addr, user_addr: guest_addr + USER, len, file_offset: 0 }
}

/// Memory in regions of these guest addresses and lengths.
pub(crate) fn memory(regions: &[(u64, u64)]) -> Arc<GuestMemory> {
    let add = |memory: GuestMemory, &(addr, len): &(u64, u64)| {
        #[cfg(miri)]
        let with = memory.with_private(region(addr, len));
        #[cfg(not(miri))]
        let with = memory.with(region(addr, len), file(len)).expect("a region");
        with
    };
    Arc::new(regions.iter().fold(GuestMemory::default(), add))
}

/// Writes to a guest's memory, across regions.
pub(crate) fn write(memory: &GuestMemory, mut addr: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let area = memory.guest(addr, bytes.len()).expect("an address of the guest");
        memory.slice(area).expect("mapped").copy_from(&bytes[..area.len]);
        (addr, bytes) = (addr + area.len as u64, &bytes[area.len..]);
    }
}

/// Reads a guest's memory, across regions.
pub(crate) fn read(memory: &GuestMemory, mut addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let area = memory.guest(addr, len - at).expect("an address of the guest");
        memory.slice(area).expect("mapped").copy_to(&mut bytes[at..at + area.len]);
        (addr, at) = (addr + area.len as u64, at + area.len);
    }
    bytes
}

/// A ring, from the other side.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) size: u16,
    start: u64,
    index: u16,
    seen_used: u16,
}

impl Driver {
    /// A ring at a guest address, whose indices are at `index` already.
    pub(crate) fn new(memory: &Arc<GuestMemory>, start: u64, size: u16, index: u16) -> Driver {
        let driver = Driver { memory: Arc::clone(memory), size, start, index, seen_used: index };
        driver.set_index(index);
        driver.put16(driver.used() + 2, index);
        driver
    }

    pub(crate) fn setup(&self, base: u16, event_idx: bool) -> Setup {
        Setup {
            size: self.size,
            descriptors: self.start + USER,
            available: self.available() + USER,
            used: self.used() + USER,
            base,
            event_idx,
            indirect: true,
            in_order: false,
        }
    }

    fn available(&self) -> u64 {
        self.start + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        self.available() + (6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// Guest address of the used ring.
    pub(crate) fn used_addr(&self) -> u64 {
        self.used()
    }

    fn put16(&self, addr: u64, value: u16) {
        write(&self.memory, addr, &value.to_le_bytes());
    }

    fn get16(&self, addr: u64) -> u16 {
        let bytes = read(&self.memory, addr, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: usize, flags: u16, next: u16) {
        put_descriptor(&self.memory, self.start, index, addr, len, flags, next);
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put16(self.available() + 4 + 2 * u64::from(self.index % self.size), head);
        self.index = self.index.wrapping_add(1);
        self.set_index(self.index);
    }

    pub(crate) fn set_index(&self, index: u16) {
        let area = self.memory.guest(self.available() + 2, 2).expect("the guest's");
        let slice = self.memory.slice(area).expect("mapped");
        slice
            .get_atomic_ref::<std::sync::atomic::AtomicU16>(0)
            .expect("aligned")
            .store(index.to_le(), Ordering::Release);
    }

    /// Index of the next chain that it makes available.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// What came back since the last call: heads and bytes written.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.seen_used != self.used_index() {
            let entry = self.used() + 4 + 8 * u64::from(self.seen_used % self.size);
            let bytes = read(&self.memory, entry, 8);
            let word =
                |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            entries.push((word(0), word(4)));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        entries
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.get16(self.used() + 2)
    }

    /// Whether kicks are wanted, without the event index.
    pub(crate) fn wants_kicks(&self) -> bool {
        self.get16(self.used()) & 1 == 0
    }

    /// After which index kicks are wanted.
    pub(crate) fn kick_after(&self) -> u16 {
        self.get16(self.used() + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn set_no_interrupt(&self, on: bool) {
        self.put16(self.available(), u16::from(on));
    }

    /// After which used index it wants to be told.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.put16(self.available() + 4 + 2 * u64::from(self.size), index);
    }
}

/// Writes a descriptor of a table at a guest address.
pub(crate) fn put_descriptor(
    memory: &GuestMemory,
    table: u64,
    index: u16,
    addr: u64,
    len: usize,
    flags: u16,
    next: u16,
) {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(u32::try_from(len).expect("32 bits").to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    write(memory, table + 16 * u64::from(index), &bytes);
}
