//! A front end that means harm, beside others under the same worker.

use std::time::Duration;

use super::load::frame;
use super::{Folder, Guest, connect};
use crate::offload::Capabilities;
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, SocketRole, VhostUserSpec};
use crate::switch::{Missing, Options, Switch};
use crate::sys::caller::make_blocking;

const LONG: Duration = Duration::from_secs(10);

/// A switch with one worker, a port for a guest, and one that shall not notice.
fn switch(folder: &Folder) -> (Switch, MemPort) {
    let switch = Switch::start(&Options { workers: Some(1), ..Options::default() }).expect("a switch");
    switch.add_bridge(BridgeSpec::new("br0")).expect("a bridge");
    let memory = MemPort::new(Capabilities::default(), 1500).expect("a port");
    let spec = VhostUserSpec { path: folder.socket(), role: SocketRole::Server, queues: Some(2), mtu: None };
    for (name, kind) in [("guest", PortKind::VhostUser(spec)), ("memory", PortKind::Mem(memory.clone()))] {
        let (name, bridge) = (name.to_owned(), "br0".to_owned());
        let port = PortSpec { name, bridge, kind, settings: PortSettings::default() };
        switch.add_port(port, Missing::Refuse).expect("a port");
    }
    (switch, memory)
}

#[test]
fn who_cannot_be_rung_holds_up_nobody() {
    let folder = Folder::new();
    let (switch, memory) = switch(&folder);
    let mut guest = Guest::boot(connect(&folder));
    // Behind the back of whoever looked at it, and by the file that both have.
    let _ = guest.call.read();
    make_blocking(&guest.call);
    guest.call.write(u64::MAX - 1).expect("full");
    for n in 0..3 {
        // It wants to be told of each frame, in both directions.
        guest.transmit.set_used_event(guest.transmit.index());
        guest.receive.set_used_event(guest.receive.used_index());
        guest.send(n..n + 1);
        let received = memory.receive(LONG);
        if received.is_none() {
            // Or the switch would never end.
            guest.call.read().expect("full");
        }
        assert!(received.is_some(), "the worker goes on");
        assert!(memory.send(MemFrame { bytes: frame(1, 2, n), ..MemFrame::default() }));
    }
    super::eventually("frames to the guest", || guest.receive.used_index() == 3);
    assert_eq!(guest.call.read().expect("full"), u64::MAX, "it was rung all the same");
    drop(switch);
}
