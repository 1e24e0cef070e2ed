//! Under a running switch: its workers sleep and are kicked, while the front end changes what there is to change.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use vhost::VhostBackend;

use super::{BUFFERS, Folder, Guest, PAIRS, connect, eventually};
use crate::offload::Capabilities;
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, SocketRole, VhostUserSpec};
use crate::switch::{Missing, Options, PollMode, Switch};
use crate::virtio::driver::{read, write};
use crate::virtio::net::HEADER_LEN;

const FRAMES: u32 = 4000;
pub(super) const PLACES: u64 = 512 << 10;
const LONG: Duration = Duration::from_secs(10);

/// Frame number `n` from the station `from` to `to`.
pub(super) fn frame(to: u8, from: u8, n: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    bytes.extend(n.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

pub(super) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[14], frame[15], frame[16], frame[17]])
}

impl Guest {
    /// Makes frames available in as many buffers, and kicks if that is wanted.
    pub(super) fn send(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        let before = self.transmit.index();
        for frame in frames {
            let slot = self.transmit.index() % self.transmit.size;
            let place = PLACES + 2048 * u64::from(slot);
            write(&self.memory, place, &[&[0; HEADER_LEN], &frame[..]].concat());
            self.transmit.descriptor(slot, place, HEADER_LEN + frame.len(), 0, 0);
            self.transmit.offer(slot);
        }
        fence(Ordering::SeqCst);
        let (now, event) = (self.transmit.index(), self.transmit.kick_after());
        if now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before) {
            self.kick.write(1).expect("rung");
        }
    }

    /// Stops a queue and starts it again where it was.
    fn start_again(&mut self, index: usize) {
        let base = self.front_end.get_vring_base(index).expect("answered");
        self.set_up(index, u16::try_from(base).expect("16 bits"));
    }
}

/// A switch with these ports.
pub(super) fn switch_of(workers: usize, poll: PollMode, ports: [(&str, PortKind); 2]) -> Switch {
    switch_with(&Options { workers: Some(workers), poll, ..Options::default() }, ports)
}

/// The same with these options.
pub(super) fn switch_with(options: &Options, ports: [(&str, PortKind); 2]) -> Switch {
    let switch = Switch::start(options).expect("a switch");
    switch.add_bridge(BridgeSpec::new("br0")).expect("a bridge");
    for (name, kind) in ports {
        let (name, bridge) = (name.to_owned(), "br0".to_owned());
        let port = PortSpec { name, bridge, kind, settings: PortSettings::default() };
        switch.add_port(port, Missing::Refuse).expect("a port");
    }
    switch
}

/// A port for the guest of this folder.
pub(super) fn guest_at(folder: &Folder, mtu: Option<u32>) -> PortKind {
    let (path, role) = (folder.socket(), SocketRole::Server);
    PortKind::VhostUser(VhostUserSpec { queues: Some(PAIRS), mtu, ..VhostUserSpec::new(path, role) })
}

/// A switch with a port for a guest, and one in memory.
pub(super) fn switch(folder: &Folder, workers: usize, poll: PollMode) -> (Switch, MemPort) {
    let memory = MemPort::new(Capabilities::default(), 1500).expect("a port");
    let ports = [("guest", guest_at(folder, None)), ("memory", PortKind::Mem(memory.clone()))];
    (switch_of(workers, poll, ports), memory)
}

fn through(poll: PollMode) {
    through_with(poll, false);
}

/// The same, of a port that has a thread of its own.
pub(super) fn through_with(poll: PollMode, own_thread: bool) {
    let folder = Folder::new();
    let memory = MemPort::new(Capabilities::default(), 1500).expect("a port");
    let PortKind::VhostUser(guest) = guest_at(&folder, None) else { unreachable!() };
    let guest = PortKind::VhostUser(VhostUserSpec { own_thread, ..guest });
    let switch = switch_of(2, poll, [("guest", guest), ("memory", PortKind::Mem(memory.clone()))]);
    let mut guest = Guest::boot(connect(&folder));
    let (mut sent, mut turn) = (0, 0u32);
    while sent < FRAMES {
        let burst = (turn * 7 % 13 + 1).min(FRAMES - sent);
        guest.send((sent..sent + burst).map(|n| frame(2, 1, n)));
        for n in sent..sent + burst {
            let frame = memory.receive(LONG).expect("in time").bytes;
            assert_eq!(number(&frame), n, "in order, and each once");
        }
        sent += burst;
        eventually("buffers come back", || guest.transmit.used_index() == guest.transmit.index());
        turn += 1;
        match turn % 40 {
            0 => guest.share(&guest.file).expect("taken"),
            10 => guest.start_again(1),
            20 => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
    }
    // And the other way; with as many buffers as the guest has.
    for n in 0..u32::from(guest.receive.size) {
        assert!(memory.send(MemFrame { bytes: frame(1, 2, n), ..MemFrame::default() }));
    }
    let mut received = Vec::new();
    eventually("frames to the guest", || {
        received.extend(guest.take());
        received.len() == usize::from(guest.receive.size)
    });
    assert!(received.iter().zip(0..).all(|(frame, n)| number(frame) == n));
    let counters = switch.port("guest").expect("there").counters;
    assert_eq!((counters.rx_frames, counters.drops.len()), (u64::from(FRAMES), 0), "{counters:?}");
    drop(switch);
    assert!(!folder.socket().exists());
}

#[test]
fn jumbo_frames_cross() {
    const MTU: u32 = 9000;
    let folder = Folder::new();
    let memory = MemPort::new(Capabilities::default(), MTU).expect("a port");
    let ports = [("guest", guest_at(&folder, Some(MTU))), ("memory", PortKind::Mem(memory.clone()))];
    let switch = switch_of(1, PollMode::default(), ports);
    let mut guest = Guest::boot(connect(&folder));
    for (n, len) in (0..).zip([1514, 1515, 2036, 2037, 9014]) {
        let mut from_guest = frame(2, 1, n);
        from_guest.resize(len, 1);
        write(&guest.memory, PLACES, &[&[0; HEADER_LEN], &from_guest[..]].concat());
        guest.transmit.descriptor(0, PLACES, HEADER_LEN + len, 0, 0);
        guest.transmit.offer(0);
        guest.kick.write(1).expect("rung");
        assert!(memory.receive(LONG).expect("in time").bytes == from_guest, "{len} bytes");

        let mut to_guest = frame(1, 2, n);
        to_guest.resize(len, 2);
        assert!(memory.send(MemFrame { bytes: to_guest.clone(), ..MemFrame::default() }));
        // In as many buffers as it takes.
        let mut received = Vec::new();
        eventually("a frame to the guest", || {
            for (head, written) in guest.receive.take_used() {
                received.extend(read(&guest.memory, BUFFERS + u64::from(head) * 2048, written as usize));
            }
            !received.is_empty()
        });
        assert!(received[HEADER_LEN..] == to_guest, "{len} bytes");
    }
    // And no longer ones, which would be more than a tag's length above the MTU.
    let mut long = frame(1, 2, 0);
    long.resize(9019, 0);
    assert!(memory.send(MemFrame { bytes: long, ..MemFrame::default() }));
    let drops = || switch.port("guest").expect("there").counters.drops;
    eventually("counted", || !drops().is_empty());
    assert!(guest.receive.take_used().is_empty());
}

#[test]
fn workers_that_sleep_are_woken() {
    through(PollMode::Wait);
}

#[test]
fn workers_that_spin_are_not_disturbed() {
    through(PollMode::Adaptive);
}

#[test]
fn workers_that_never_sleep_are_quick() {
    through(PollMode::Busy);
}
