//! Neighbour: ARP requests and neighbour solicitations are answered by the switch where it knows the answer, instead of being
//! flooded into tunnels that suppress them.
//!
//! As Linux's bridge does with `neigh_suppress`: a bridge with such a tunnel looks at ARP and at neighbour discovery (RFC 826,
//! RFC 4861). Who is heard becomes known, if the frame comes from the address that it tells. Who is asked for by somebody who is not behind
//! such a tunnel is answered for, if both the neighbour and where its station is are known, and the asker's frames may go there. The
//! question still goes to the other ports.
//!
//! Unlike there, a learned neighbour is answered for only while what is known of it is fresh
//! ([`Neighbour::is_current`]); and what only the others can know is never suppressed: gratuitous ARP, probes for an address that may be a duplicate
//! (RFC 5227, RFC 4862), and unicast requests, which ask whether a station is alive. So duplicates are found across tunnels, and
//! news travel. In a bridge that does not filter VLANs tags are payload, and what is behind one is not looked at.

use std::net::{IpAddr, Ipv4Addr};

use super::answer::About;
use super::{Context, Outbox, relay};
use crate::addr::MacAddr;
use crate::batch::Batch;
use crate::bridge::fdb::{Key, Tick};
use crate::bridge::neighbours::{Heard, Neighbour, Neighbours, is_host};
use crate::frame::{ETH_HEADER_LEN, Frame, TAG_LEN};
use crate::offload::Gso;
use crate::topology::{Bridge, Port, Topology};
use crate::wire::arp;
use crate::wire::ethernet::{EtherType, field};
use crate::wire::ndisc::{self, Kind, Message};

const ARP: [u8; 2] = EtherType::ARP.0.to_be_bytes();
const IPV6: [u8; 2] = EtherType::IPV6.0.to_be_bytes();

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let Context { topology, port: from, bridge, now, .. } = *context;
    let Some(neighbours) = &bridge.neighbours else { return };
    let learning = from.learning && bridge.learning;
    let mut look = Look { topology, from, bridge, neighbours, learning, now, outbox: context.outbox };
    let counters = &from.shared.counters[context.worker];
    let (frames, arena) = batch.split();
    for frame in frames.iter_mut().filter(|frame| frame.live && frame.offload.gso == Gso::None) {
        if frame.tagged && !bridge.filtering {
            continue;
        }
        let header_len = if frame.tagged { ETH_HEADER_LEN + TAG_LEN } else { ETH_HEADER_LEN };
        let Some((header, packet)) = arena.bytes(frame).split_at_checked(header_len) else { continue };
        let answered = match header.last_chunk() {
            Some(&ARP) => look.arp(frame, header, packet),
            Some(&IPV6) if ndisc::may_be(packet) => look.ndisc(frame, header, packet),
            _ => None,
        };
        if answered == Some(true) {
            frame.answered = true;
            counters.neigh_answered.add(1);
        }
    }
}

/// What is needed to look at the frames of one port.
struct Look<'a> {
    topology: &'a Topology,
    from: &'a Port,
    bridge: &'a Bridge,
    neighbours: &'a Neighbours,
    learning: bool,
    now: Tick,
    outbox: &'a mut Outbox,
}

impl Look<'_> {
    /// Whether an ARP packet was answered; `None` if there was nothing to answer.
    #[cold]
    fn arp(&mut self, frame: &Frame, header: &[u8], packet: &[u8]) -> Option<bool> {
        let packet = arp::parse(packet)?;
        let (sender, target) = (packet.sender_ipv4_addr(), packet.target_ipv4_addr());
        if packet.sender_mac != frame.source.mac().0
            || !matches!(packet.operation, arp::Operation::REQUEST | arp::Operation::REPLY)
        {
            return None;
        }
        self.hear(frame, sender.into(), Some(false), true);
        if packet.operation != arp::Operation::REQUEST || sender == Ipv4Addr::UNSPECIFIED || sender == target
        {
            return None;
        }
        let mac = self.known(frame, target.into())?.mac;
        let reply = arp::reply(&packet, mac).to_bytes();
        Some(self.answer(frame, header, mac, &reply))
    }

    /// The same for IPv6.
    #[cold]
    fn ndisc(&mut self, frame: &Frame, header: &[u8], packet: &[u8]) -> Option<bool> {
        let Message { source, target, kind, .. } = ndisc::parse(packet)?;
        let sender = frame.source.mac();
        match kind {
            Kind::Advertisement { router, overrides, target_mac } => {
                match target_mac {
                    Some(mac) if mac == sender => {
                        self.hear(frame, target.into(), Some(router), overrides);
                    }
                    // The answer to a unicast question may leave the address out.
                    None => self.confirm(frame, target.into()),
                    Some(_) => {}
                }
                None
            }
            Kind::Solicitation { source_mac } => {
                if source_mac == Some(sender) {
                    self.hear(frame, source.into(), None, true);
                }
                if source_mac.is_some_and(|mac| mac != sender) || source.is_unspecified() || source == target
                {
                    return None;
                }
                let Neighbour { mac, router, .. } = *self.known(frame, target.into())?;
                let router = router?;
                let answer = ndisc::Advertisement { target, destination: source, mac, router };
                Some(self.answer(frame, header, mac, &answer.write()))
            }
        }
    }

    /// Who sent the frame has this address.
    fn hear(&mut self, frame: &Frame, address: IpAddr, router: Option<bool>, overrides: bool) {
        if !self.learning || !is_host(address) {
            return;
        }
        let mac = frame.source.mac();
        match self.neighbours.get(&(frame.vid, address)) {
            Some(known) if known.is_fixed() => {}
            Some(known)
                if known.mac == mac
                    && known.heard_by == Some(self.from.device)
                    && (router.is_none() || router == known.router) =>
            {
                known.refresh(self.now);
            }
            Some(known) if known.mac != mac && !overrides => known.doubt(),
            Some(known)
                if known.mac != mac && self.from.guard_local && self.is_local(frame.vid, known.mac) => {}
            _ => {
                // When there is no more room, the next frame tells it.
                let heard = Heard { port: self.from.id, vid: frame.vid, address, mac, router };
                let _ = self.outbox.heard.try_push(heard);
            }
        }
    }

    /// A station that is known to have an address says that it still has it.
    fn confirm(&self, frame: &Frame, address: IpAddr) {
        let known = self.neighbours.get(&(frame.vid, address)).filter(|_| self.learning);
        if let Some(known) =
            known.filter(|known| known.mac == frame.source.mac() && known.heard_by == Some(self.from.device))
        {
            known.refresh(self.now);
        }
    }

    /// Whether a station is known at a port that is no tunnel.
    fn is_local(&self, vid: u16, mac: MacAddr) -> bool {
        let key = Key::new(mac, vid);
        let known = self.bridge.fdb.lookup(key, self.bridge.fdb.hash(key));
        known.and_then(|entry| self.topology.port(entry.port)).is_some_and(|port| port.group == 0)
    }

    /// Whom a frame asks for, if the asker may be answered.
    fn known(&self, frame: &Frame, target: IpAddr) -> Option<&Neighbour> {
        let neighbour = self.neighbours.get(&(frame.vid, target))?;
        let destination = frame.destination.mac();
        if !destination.is_multicast() {
            // The asker wants to know whether it is alive.
            if destination == neighbour.mac {
                neighbour.doubt();
            }
            return None;
        }
        // There is no way back to a tunnel's stranger.
        let stranger = self.from.group != 0 && self.from.id == self.from.device;
        if stranger || self.from.neigh_suppress || !neighbour.is_current(self.now) {
            return None;
        }
        let key = Key::new(neighbour.mac, frame.vid);
        let station = self.bridge.fdb.lookup(key, self.bridge.fdb.hash(key))?;
        let to = self.topology.port(station.port).filter(|to| to.bridge == self.from.bridge)?;
        let reached =
            to.device != self.from.device && relay::may_leave(self.bridge, self.from, frame, to).is_ok();
        reached.then_some(neighbour)
    }

    /// Sends a packet back to whom a frame came from, under the tag it came with; whether it could be.
    fn answer(&mut self, frame: &Frame, header: &[u8], from: MacAddr, packet: &[u8]) -> bool {
        self.outbox.answers.push(About::Neighbour, self.now, |out| {
            let (head, body) = out.split_at_mut_checked(header.len())?;
            head.copy_from_slice(header);
            head[field::DST].copy_from_slice(&frame.source.mac().0);
            head[field::SRC].copy_from_slice(&from.0);
            body.get_mut(..packet.len())?.copy_from_slice(packet);
            Some(header.len() + packet.len())
        })
    }
}
