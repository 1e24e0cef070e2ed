//! `packet` ports: an interface that exists already (a veth end, a NIC, a VF, a tap whose fd QEMU holds).
//!
//! At most two workers receive, by an AF_PACKET socket each; the kernel shares flows out among
//! them, and the other workers send by the same sockets (see [`crate::sys::packet`]). The interface
//! is promiscuous for as long as the sockets are open.
//!
//! What a packet socket sees, the host's own stack sees too, and would answer: ARP for any local address, router
//! solicitations, forwarding. So everything is dropped at the interface's ingress, behind the packet sockets
//! ([`sys::bpf`]); closing the port, or dying, undoes it. The interface should have no address: it would not be reachable.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{Health, Inbound, OpenPort, PortQueue, Received, is_gone, refused};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::big::{BIG_PIECES_MAX, Big};
use crate::offload::{BadOffload, Capabilities, MAX_HEADERS_LEN, VNET_HDR_LEN};
use crate::spec::{PacketSpec, PortKind};
use crate::stats::{Counters, DropReason};
use crate::sys::long::LongWay;
use crate::sys::netlink::{Link, Netlink};
use crate::sys::packet::{self, PacketSocket, Peeked, Spares};
use crate::sys::{self, bpf, netns};

/// What is opened and left for later when many ports are to come.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Sockets of namespaces, each by its identity; `None` is the switch's own.
    spares: HashMap<Option<(u64, u64)>, Spares>,
    /// The host is silenced later.
    pub silence_later: bool,
}

impl Preparation {
    /// Opens the sockets of these ports, as far as they are packet ports.
    pub fn prepare<'a>(&mut self, ports: impl Iterator<Item = &'a PortKind>, workers: usize) {
        // By what the namespace is, which may be called by several names.
        let mut places: HashMap<_, (usize, Option<OwnedFd>)> = HashMap::new();
        for kind in ports {
            let PortKind::Packet(spec) = kind else { continue };
            let Ok(target) = spec.netns.as_ref().map(netns::open).transpose() else { continue };
            let Ok(identity) = target.as_ref().map(AsFd::as_fd).map(netns::identity_of).transpose() else {
                continue;
            };
            places.entry(identity).or_insert((0, target)).0 += 1;
        }
        for (identity, (ports, target)) in places {
            let target = target.as_ref().map(AsFd::as_fd);
            if let Ok(spares) = netns::run_in(target, || Spares::open(ports, workers)) {
                self.spares.insert(identity, spares);
            }
        }
    }

    /// Sockets that were opened and not needed.
    pub fn left(&mut self) -> Vec<PacketSocket> {
        self.spares.drain().flat_map(|(_, spares)| spares.into_sockets()).collect()
    }
}

pub(super) fn open(
    spec: &PacketSpec,
    workers: usize,
    preparation: &mut Preparation,
) -> Result<OpenPort, sys::Error> {
    let name = &spec.ifname;
    sys::check_known_ifname(name)?;
    let target = spec.netns.as_ref().map(netns::open).transpose()?;
    let target = target.as_ref().map(AsFd::as_fd);
    let netlink = Netlink::open_in(target)?;
    let link = netlink.link(name)?.ok_or_else(|| {
        let place = spec.netns.as_ref().map_or(String::new(), |ns| format!(" in namespace '{ns}'"));
        let existing = netlink.links().unwrap_or_default();
        let existing: Vec<_> = existing.iter().map(|link| link.name.as_str()).collect();
        let what = format!("no interface '{name}'{place}; existing: {}", existing.join(", "));
        sys::Error::refused(std::io::ErrorKind::NotFound, what)
    })?;
    check_link(&netlink, &link)?;
    if let Some((address, prefix)) = netlink.addresses(link.index)?.iter().find(|(ip, _)| !is_link_local(ip))
    {
        tracing::warn!(
            "interface '{name}' has address {address}/{prefix}, which nobody can reach while it is a port; \
             move it to an internal port"
        );
    }
    let cannot =
        |source| sys::Error::new(format!("cannot open packet sockets on interface '{name}'"), source);
    // Each waits for the kernel, so both at once.
    let identity = target.map(netns::identity_of).transpose()?;
    let silence_later = preparation.silence_later;
    let mut none = Spares::default();
    let spares = preparation.spares.get_mut(&identity).unwrap_or(&mut none);
    let (sockets, silence) = sys::thread::both(
        || netns::run_in(target, || packet::open(link.index, workers, spares)),
        || (!silence_later).then(|| bpf::silence_host(link.index, target)),
    );
    let sockets = sockets.map_err(cannot)?.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if !link.up && workers > 1 => sys::Error::refused(
            std::io::ErrorKind::NotFound,
            format!(
                "interface '{name}' is down, and this kernel (before Linux 6.13) cannot share out its frames then; \
                 switch it on first: ip link set {name} up"
            ),
        ),
        _ => cannot(source),
    })?;
    let mut long = None;
    let mut keep = Vec::new();
    // Long frames want tcx, as silencing the host does. Where that is put off, whether there is
    // tcx is not known yet; a way that cannot be opened drops such frames.
    let long_way = || LongWay::new(link.index, target).map(Arc::new).map_err(cannot);
    match silence {
        None => long = Some(long_way()?),
        Some(Ok(silence)) => {
            keep.push(silence);
            long = Some(long_way()?);
        }
        // That passes, and what is done now is for long.
        Some(Err(error)) if sys::thread::is_lacking(&error.source) => return Err(error),
        Some(Err(error)) => warn_of_host(name, &error),
    }
    Ok(OpenPort {
        receiving: sockets.receiving,
        watches: sockets.watches,
        queues: sockets
            .queues
            .into_iter()
            .map(|socket| Box::new(PacketQueue { socket, long: long.clone() }) as Box<dyn PortQueue>)
            .collect(),
        // The kernel finishes for the device whatever the device cannot.
        capabilities: Capabilities { csum: true, tso4: true, tso6: true, uso: true },
        ifindex: Some(link.index),
        mtu: link.mtu,
        strict_mtu: long.is_none(),
        keep,
        link: None,
        made: None,
    })
}

/// Says that the host's stack hears what the port does.
pub(crate) fn warn_of_host(ifname: &str, error: &sys::Error) {
    tracing::warn!("the host's own stack stays awake on interface '{ifname}': {error}");
}

/// Refuses what Linux's bridge refuses: what has no Ethernet frames, and what is part of something else.
fn check_link(netlink: &Netlink, link: &Link) -> Result<(), sys::Error> {
    let refuse = |what| Err(sys::Error::refused(std::io::ErrorKind::InvalidInput, what));
    let name = &link.name;
    if !link.ethernet {
        return refuse(format!(
            "interface '{name}' does not carry Ethernet frames, so it cannot be a port; choose a veth end, a tap or a NIC"
        ));
    }
    let Some(master) = link.master else { return Ok(()) };
    let master = netlink.link_by_index(master)?.map_or_else(|| master.to_string(), |link| link.name);
    refuse(format!(
        "interface '{name}' belongs to '{master}', which would take its frames as well; \
         take it out with: ip link set {name} nomaster"
    ))
}

/// fe80::/10, which every interface gives itself.
fn is_link_local(address: &std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[derive(Debug)]
struct PacketQueue {
    socket: PacketSocket,
    /// For frames that the socket refuses as too long; one a port.
    long: Option<Arc<LongWay>>,
}

impl PacketQueue {
    /// Takes a frame of more than 64 KiB in pieces, or drops it.
    #[cold]
    fn receive_big(&mut self, batch: &mut Batch) -> io::Result<Result<(), DropReason>> {
        let mut head = [0; VNET_HDR_LEN + MAX_HEADERS_LEN];
        let Some(Peeked { len, tag }) = self.socket.peek(&mut head)? else {
            return Ok(Err(DropReason::RxTruncated));
        };
        let [header, frame] = [&head[..VNET_HDR_LEN], &head[VNET_HDR_LEN..]];
        let big = header.first_chunk().ok_or(BadOffload::Headers);
        let Ok(big) = big.and_then(|header| Big::of(header, frame, len)) else {
            self.socket.receive_scattered(&mut [IoSliceMut::new(&mut [0; VNET_HDR_LEN])])?;
            return Ok(Err(DropReason::BadOffload));
        };
        let mut again = [0; VNET_HDR_LEN + MAX_HEADERS_LEN];
        let again = &mut again[..VNET_HDR_LEN + big.received_len()];
        let mut slices = ArrayVec::<IoSliceMut<'_>, { BIG_PIECES_MAX + 1 }>::new();
        slices.push(IoSliceMut::new(again));
        slices.extend(batch.big_room(&big).into_iter().map(IoSliceMut::new));
        let received = self.socket.receive_scattered(&mut slices)?;
        drop(slices);
        if received != VNET_HDR_LEN + len || !head.starts_with(again) {
            return Ok(Err(DropReason::RxTruncated));
        }
        Ok(batch.take_big(&big, tag).map_err(|_| DropReason::BadOffload))
    }
}

impl PortQueue for PacketQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.receives().then(|| self.socket.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        let counters = inbound.counters;
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() {
                break;
            }
            match self.socket.receive(batch.spare()) {
                Ok(packet::Received::Empty) => return Received::Drained,
                Ok(packet::Received::Truncated) => counters.drop_frame(DropReason::RxTruncated),
                Ok(packet::Received::Undescribed) => counters.drop_frame(DropReason::RxUndescribed),
                Ok(packet::Received::Longer) if !batch.takes_big() => break,
                Ok(packet::Received::Longer) => match self.receive_big(batch) {
                    Ok(Ok(())) => {}
                    Ok(Err(reason)) => counters.drop_frame(reason),
                    Err(_) => return Received::Drained,
                },
                Ok(packet::Received::Frame { len, tag }) => {
                    if batch.take(len, tag).is_err() {
                        counters.drop_frame(DropReason::BadOffload);
                    }
                }
                // Down, or gone: the control side hears of either, and a packet socket survives the former.
                Err(_) => return Received::Drained,
            }
        }
        Received::More
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let long = self.long.as_ref();
        // The kernel stops at a frame that it refuses, so one that goes the other way keeps its place.
        let another_way = |index: usize, error: io::Error| match long {
            Some(long) if error.raw_os_error() == Some(libc::EMSGSIZE) => long.send(&frames[index]),
            _ => Err(error),
        };
        let outcome = |index, outcome: io::Result<()>| outcome.or_else(|error| another_way(index, error));
        self.socket.send(frames, |index, refused_or_not| match outcome(index, refused_or_not) {
            Ok(()) => counters.sent(frames[index].frame_len(), frames[index].segments()),
            Err(error) if is_gone(&error) => counters.drop_frame(DropReason::PortGone),
            Err(error) => counters.drop_frame(refused(&error)),
        });
        Health::Alive
    }

    fn take_missed(&mut self) -> u64 {
        self.socket.take_kernel_drops()
    }

    fn take_lost(&mut self) -> u64 {
        self.long.as_ref().map_or(0, |long| long.take_lost())
    }

    fn ring_bytes(&self) -> u64 {
        self.socket.ring_bytes()
    }

    fn leave_ring(&mut self, delivered: u64) -> bool {
        self.socket.leave_ring(delivered)
    }
}
