//! `tap` and `internal` ports: a TAP device that the switch creates.
//!
//! The kernel's end of the device is an interface for the host, a container or a test; our end is an fd a worker. One
//! kernel crossing a direction, and with the `virtio_net_hdr` frames of up to 64 KiB cross it whole.
//!
//! The device lives as long as its fds: nothing is left behind, however the switch ends. It is opened in the switch's own
//! namespace and moved afterwards (see [`crate::sys::tun`] for why), so it dies with the namespace it is in, and
//! its fds then say `EBADFD`.
//!
//! With `--no-offload` it is a plain single-queue device of the `tun-tap` crate without the header.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Health, Inbound, OpenPort, PortQueue, Received, is_gone};
use crate::batch::{BATCH_FRAMES, Batch, FRAME_MAX};
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::spec::TapSpec;
use crate::stats::{Counters, DropReason};
use crate::sys::netlink::{LinkChange, Netlink};
use crate::sys::{self, netns, tun};

/// Frames that the kernel queues towards us while we are busy. Its default of 500 is dropped from without
/// back-pressure as soon as a TCP window of small frames arrives at once; a queue longer than this no longer fits the
/// second-level cache when it is full, and every frame costs a tenth more.
pub(super) const TX_QUEUE_FRAMES: u32 = 1000;

pub(super) fn check(spec: &TapSpec, workers: usize) -> Result<(), sys::Error> {
    sys::check_ifname(&spec.ifname)?;
    queues(spec, workers).map(drop)
}

pub(super) fn open(spec: &TapSpec, workers: usize) -> Result<OpenPort, sys::Error> {
    sys::check_ifname(&spec.ifname)?;
    let queues = queues(spec, workers)?;
    let target = spec.netns.as_ref().map(netns::open).transpose()?;
    let there = Netlink::open_in(target.as_ref().map(AsFd::as_fd))?;
    if there.link(&spec.ifname)?.is_some() {
        let place = spec.netns.as_ref().map_or(String::new(), |ns| format!(" in namespace '{ns}'"));
        let what = format!(
            "interface '{}' exists already{place}; choose another --ifname or delete it",
            spec.ifname
        );
        return Err(sys::Error::refused(io::ErrorKind::AlreadyExists, what));
    }
    // Under a name of the kernel's choice until it is where its own name is free.
    let name = if target.is_some() { "vswitch%d" } else { &spec.ifname };
    let cannot = |source| sys::Error::new(format!("cannot create TAP device '{}'", spec.ifname), source);
    let (fds, capabilities, name) = if spec.offload {
        let (tap, name) = tun::open(name, queues).map_err(cannot)?;
        (tap.queues, tap.capabilities, name)
    } else {
        let (fd, name) = tun::open_plain(name).map_err(cannot)?;
        (vec![fd], Capabilities::default(), name)
    };
    if let Some(target) = &target {
        let here = Netlink::open_in(None)?;
        let change =
            LinkChange { netns: Some(target.as_fd()), name: Some(&spec.ifname), ..LinkChange::default() };
        here.set_link(index_of(&here, &name)?, &change)?;
    }
    let (ifindex, mtu) = set_up(spec, &there)?;
    Ok(OpenPort {
        receiving: fds.len(),
        queues: share_out(fds, workers, ifindex as usize, spec.offload),
        capabilities,
        ifindex: Some(ifindex),
        mtu,
        strict_mtu: false,
        keep: Vec::new(),
        watches: Vec::new(),
        link: None,
        made: None,
    })
}

fn queues(spec: &TapSpec, workers: usize) -> Result<usize, sys::Error> {
    match spec.queues {
        Some(n) if !spec.offload && n != 1 => {
            let what =
                format!("port '{}': --no-offload has exactly one queue; leave --queues out", spec.ifname);
            Err(sys::Error::refused(io::ErrorKind::InvalidInput, what))
        }
        _ if !spec.offload => Ok(1),
        wanted => queues_of(&spec.ifname, wanted, workers),
    }
}

/// As many as are wanted, at most one a worker.
pub(super) fn queues_of(ifname: &str, wanted: Option<u16>, workers: usize) -> Result<usize, sys::Error> {
    let most = workers.min(tun::QUEUES_MAX);
    match wanted.map(usize::from) {
        Some(n) if n == 0 || n > most => {
            let what =
                format!("port '{ifname}': {n} queues; --queues takes 1 to {most}, at most one a worker");
            Err(sys::Error::refused(io::ErrorKind::InvalidInput, what))
        }
        wanted => Ok(wanted.unwrap_or(most)),
    }
}

fn index_of(netlink: &Netlink, name: &str) -> Result<u32, sys::Error> {
    let missing = || sys::Error::refused(io::ErrorKind::NotFound, format!("interface '{name}' vanished"));
    Ok(netlink.link(name)?.ok_or_else(missing)?.index)
}

/// Gives the interface what was asked for, and switches it on. Returns its index and MTU.
fn set_up(spec: &TapSpec, netlink: &Netlink) -> Result<(u32, u32), sys::Error> {
    spec.check().map_err(|what| sys::Error::refused(io::ErrorKind::InvalidInput, what))?;
    let index = index_of(netlink, &spec.ifname)?;
    let change =
        LinkChange { mac: spec.mac, mtu: spec.mtu, txqlen: Some(TX_QUEUE_FRAMES), ..LinkChange::default() };
    netlink.set_link(index, &change)?;
    for &(address, prefix) in &spec.addresses {
        netlink.add_address(index, address, prefix)?;
    }
    netlink.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    if let Some(gateway) = spec.gateway {
        netlink.add_default_route(index, gateway)?;
    }
    let mtu = netlink.link_by_index(index)?.map_or(1500, |link| link.mtu);
    Ok((index, mtu))
}

/// One queue a worker. With fewer fds than workers the others only send; `first` spreads the receiving over workers.
pub(super) fn share_out(
    fds: Vec<OwnedFd>,
    workers: usize,
    first: usize,
    offload: bool,
) -> Vec<Box<dyn PortQueue>> {
    let fds: Vec<Arc<OwnedFd>> = fds.into_iter().map(Arc::new).collect();
    let first = if fds.len() < workers { first } else { 0 };
    (0..workers)
        .map(|worker| {
            let turn = (worker + workers - first % workers) % workers;
            let fd = Arc::clone(&fds[turn % fds.len()]);
            Box::new(TapQueue { fd, receives: turn < fds.len(), offload }) as Box<dyn PortQueue>
        })
        .collect()
}

#[derive(Debug)]
struct TapQueue {
    fd: Arc<OwnedFd>,
    receives: bool,
    /// Whether reads and writes carry a `virtio_net_hdr`.
    offload: bool,
}

impl PortQueue for TapQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.fd.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        let counters = inbound.counters;
        if !self.receives {
            return Received::Drained;
        }
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() {
                break;
            }
            let spare = batch.spare();
            let read = if self.offload {
                sys::read(self.fd.as_fd(), spare)
            } else {
                spare[..VNET_HDR_LEN].fill(0);
                sys::read(self.fd.as_fd(), &mut spare[VNET_HDR_LEN..])
            };
            match read {
                // A longer frame (BIG TCP, by a macvtap) is cut to the buffer's length without a word.
                Ok(Some(read)) if read == VNET_HDR_LEN + FRAME_MAX => {
                    counters.drop_frame(DropReason::RxTruncated);
                }
                Ok(Some(read)) => {
                    let len = if self.offload { read.saturating_sub(VNET_HDR_LEN) } else { read };
                    if batch.take(len, None).is_err() {
                        counters.drop_frame(DropReason::BadOffload);
                    }
                }
                Ok(None) => return Received::Drained,
                Err(error) if is_gone(&error) => return Received::Gone,
                // The kernel had taken the frame from its queue; others may wait behind it.
                Err(_) => counters.drop_frame(DropReason::RxError),
            }
        }
        Received::More
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        for frame in frames {
            let written = match frame {
                Outgoing::Whole { bytes, .. } => {
                    sys::write(self.fd.as_fd(), if self.offload { bytes } else { &bytes[VNET_HDR_LEN..] })
                }
                Outgoing::Lent { .. } => unreachable!("a tap takes none that are lent"),
                Outgoing::Segment { .. } | Outgoing::Pieces { .. } => {
                    let slices = frame.slices().map(IoSlice::new);
                    sys::write_vectored(self.fd.as_fd(), if self.offload { &slices } else { &slices[1..] })
                }
            };
            match written {
                Ok(Some(_)) => counters.sent(frame.frame_len(), frame.segments()),
                Ok(None) => counters.drop_frame(DropReason::TxFull),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EIO) => counters.drop_frame(DropReason::PortDown),
                    Some(libc::ENOBUFS | libc::ENOMEM) => counters.drop_frame(DropReason::TxFull),
                    _ if is_gone(&error) => counters.drop_frame(DropReason::PortGone),
                    _ => counters.drop_frame(DropReason::TxError),
                },
            }
        }
        Health::Alive
    }
}
