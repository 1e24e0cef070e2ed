//! What a front end says of its device (QEMU's `docs/interop/vhost-user.rst`), and the rings that come of it.
//!
//! Messages come in any order and at any time. Each is kept, and then each ring that has all it needs is made and given to the workers,
//! and each that has not is taken from them. So a table of memory that is replaced, a ring that is moved, or a new eventfd while it
//! runs is one case: taken out, made anew from where it was, put in.
//!
//! A request that makes no sense is refused, which ends the connection.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{Eventfd, QueueIndex, Rings};
use crate::addr::MacAddr;
use crate::sys::bells;
use crate::topology::PortShared;
use crate::virtio::dirty::{DirtyLog, RingLog};
use crate::virtio::inflight::InflightFile;
use crate::virtio::memory::{MemoryError, REGIONS_MAX, RegionSpec, Share};
use crate::virtio::net::{NetRing, capabilities};
use crate::virtio::ring::{Records, SIZE_MAX, Setup};
use crate::virtio::{GuestMemory, feature};

/// What we can do. Not here: features that a switch has no say in, and those whose messages the library does not know (see [`PROTOCOL`]).
const FEATURES: u64 = feature::NET_CSUM
    | feature::NET_GUEST_CSUM
    | feature::NET_MTU
    | feature::NET_GUEST_TSO4
    | feature::NET_GUEST_TSO6
    | feature::NET_GUEST_ECN
    | feature::NET_HOST_TSO4
    | feature::NET_HOST_TSO6
    | feature::NET_HOST_ECN
    | feature::NET_MRG_RXBUF
    | feature::NET_STATUS
    | feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_GUEST_ANNOUNCE
    | feature::NET_MQ
    | feature::LOG_ALL
    | feature::ANY_LAYOUT
    | feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1
    | feature::IN_ORDER
    | feature::NET_GUEST_USO4
    | feature::NET_GUEST_USO6
    | feature::NET_HOST_USO;

/// Not MTU and STATUS, whose messages the library refuses.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// The addresses of a ring, in the front end's process.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
    /// Where the used ring is for the dirty log, if it is logged.
    log: Option<u64>,
}

/// A virtqueue as far as it is known.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    addresses: Option<Addresses>,
    base: u16,
    /// Started, when there is one.
    kick: Option<Arc<OwnedFd>>,
    call: Option<Eventfd>,
    enabled: bool,
    /// Whether workers have it.
    runs: bool,
}

/// The device of one connection.
#[derive(Debug)]
pub(super) struct Device {
    rings: Arc<Rings>,
    port: Arc<PortShared>,
    features: u64,
    protocol: u64,
    /// Of memory, log and records together.
    share: Share,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<Arc<InflightFile>>,
    vrings: Vec<Vring>,
}

impl Device {
    pub(super) fn new(rings: Arc<Rings>, port: Arc<PortShared>, share: Share) -> Device {
        let vrings = (0..2 * rings.pairs()).map(|_| Vring::default()).collect();
        let (memory, log, inflight) = (Arc::new(GuestMemory::none(&share)), None, None);
        Device { rings, port, features: 0, protocol: 0, share, memory, log, inflight, vrings }
    }

    /// Whether it says of each request that it was done, when asked to.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Takes a ring from the workers.
    fn take(&mut self, index: usize) -> Option<NetRing> {
        let vring = &mut self.vrings[index];
        if !std::mem::take(&mut vring.runs) {
            return None;
        }
        let place = QueueIndex::new(index);
        if let (Some(bells), Some(kick)) = (self.rings.bells_of(place), &vring.kick) {
            bells.remove(kick);
        }
        self.rings.take(place)
    }

    /// The same, and remembers where it was.
    fn stop(&mut self, index: usize) -> Option<NetRing> {
        let mut ring = self.take(index)?;
        ring.leave();
        self.vrings[index].base = ring.base();
        Some(ring)
    }

    /// Makes a ring of what is known; none if that is not enough.
    fn make(&self, index: usize) -> Result<Option<NetRing>> {
        let vring = &self.vrings[index];
        let Some(addresses) = vring.addresses else { return Ok(None) };
        let buffers = self.features & feature::LOG_ALL != 0;
        let log = match &self.log {
            _ if !buffers && addresses.log.is_none() => None,
            Some(log) => Some(RingLog { log: Arc::clone(log), buffers, used: addresses.log }),
            // What it wrote would be lost.
            None => return Ok(None),
        };
        let setup = Setup {
            size: vring.size,
            descriptors: addresses.descriptors,
            available: addresses.available,
            used: addresses.used,
            base: vring.base,
            event_idx: self.features & feature::RING_EVENT_IDX != 0,
            indirect: self.features & feature::RING_INDIRECT_DESC != 0,
            in_order: self.features & feature::IN_ORDER != 0,
        };
        let records = Records { log, inflight: self.inflight.as_ref().and_then(|file| file.ring(index)) };
        let memory = Arc::clone(&self.memory);
        NetRing::recorded(memory, &setup, self.features, vring.call.clone(), records)
            .map(Some)
            .map_err(|fault| refuse(&format!("virtqueue {index}: {fault}")))
    }

    /// Gives a ring to the workers if it has all it needs.
    fn start(&mut self, index: usize) -> Result<()> {
        let vring = &self.vrings[index];
        let (true, Some(kick)) = (vring.enabled, vring.kick.clone()) else { return Ok(()) };
        let Some(ring) = self.make(index)? else { return Ok(()) };
        let place = QueueIndex::new(index);
        if let Some(bells) = self.rings.bells_of(place) {
            bells.add(&kick).map_err(Error::ReqHandlerError)?;
        }
        self.vrings[index].runs = true;
        self.rings.put(place, ring);
        Ok(())
    }

    /// Makes a ring anew after `change`, from where it was.
    fn restart(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        self.vring(index)?;
        let index = index as usize;
        self.stop(index);
        change(&mut self.vrings[index]);
        self.start(index)
    }

    fn stop_all(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
        }
    }

    /// Makes all rings anew after `change`. What that replaces should go before it maps other things: both together may be more than a port can
    /// have watched ([`Share`]).
    fn restart_all(&mut self, change: impl FnOnce(&mut Device) -> Result<()>) -> Result<()> {
        self.stop_all();
        change(self)?;
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    /// The front end is gone, or begins anew. Nothing more is shown to its guest: it may have looked already.
    fn forget(&mut self) {
        for index in 0..self.vrings.len() {
            self.take(index);
        }
        self.vrings.fill_with(Vring::default);
        (self.log, self.inflight) = (None, None);
        self.port.set_taken(capabilities(0));
    }

    /// What was mapped for the front end; remembers why it was not, for operators.
    fn taken<T>(&self, mapped: std::result::Result<T, MemoryError>) -> Result<T> {
        let refusal = mapped.as_ref().err().map(ToString::to_string);
        self.rings.set_refusal(refusal);
        mapped.map_err(|error| refuse(&error.to_string()))
    }

    fn set_memory(&mut self, memory: std::result::Result<GuestMemory, MemoryError>) -> Result<()> {
        self.memory = Arc::new(self.taken(memory)?);
        Ok(())
    }

    /// How many rings are to be tracked, and of what size at most.
    fn inflight_size(&self, about: &VhostUserInflight) -> Result<(u16, u16)> {
        let (rings, size) = (about.num_queues, about.queue_size);
        if usize::from(rings) > self.vrings.len() || size > SIZE_MAX {
            return Err(refuse(&format!("{rings} virtqueues of {size} descriptors to track")));
        }
        Ok((rings, size))
    }

    /// Says in the guest's stead where it is now.
    pub(super) fn send_rarp(&mut self, mac: MacAddr) -> Result<()> {
        if self.protocol & VhostUserProtocolFeatures::RARP.bits() == 0 {
            return Err(NOT_OFFERED);
        }
        if !mac.is_station() {
            return Err(refuse(&format!("{mac} is no station's address")));
        }
        self.rings.announce(mac);
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The front end asked for something impossible.
fn refuse(why: &str) -> Error {
    Error::ReqHandlerError(std::io::Error::new(std::io::ErrorKind::InvalidInput, why.to_owned()))
}

fn eventfd(file: Option<File>) -> Result<Option<Arc<OwnedFd>>> {
    let Some(file) = file else { return Ok(None) };
    let fd = OwnedFd::from(file);
    bells::check(&fd).map_err(Error::ReqHandlerError)?;
    Ok(Some(Arc::new(fd)))
}

fn region(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        user_addr: region.user_addr,
        len: region.memory_size,
        file_offset: region.mmap_offset,
    }
}

const NOT_OFFERED: Error = Error::InvalidOperation("a feature that was not offered");

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.forget();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.forget();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(refuse(&format!("features {:#x} were not offered", features & !FEATURES)));
        }
        let port = Arc::clone(&self.port);
        self.restart_all(|device| {
            device.features = features;
            if features & feature::PROTOCOL_FEATURES == 0 {
                // Such a front end does not know how to enable them.
                device.vrings.iter_mut().for_each(|vring| vring.enabled = true);
            }
            // Before any ring runs.
            port.set_taken(capabilities(features));
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let add = |memory: GuestMemory, (spec, file): (&VhostUserMemoryRegion, File)| {
            memory.with(region(spec), file)
        };
        self.restart_all(|device| {
            let none = || GuestMemory::none(&device.share);
            device.memory = Arc::new(none());
            device.set_memory(regions.iter().zip(files).try_fold(none(), add))
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= SIZE_MAX);
        let size = size.ok_or_else(|| refuse(&format!("virtqueue {index} of {num} descriptors")))?;
        self.restart(index, |vring| vring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        self.restart(index, |vring| vring.addresses = Some(Addresses { descriptors, available, used, log }))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        // A split ring's index is 16 bits of it.
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.restart(index, |vring| vring.base = base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        let index_of = index as usize;
        let mut ring = self.stop(index_of);
        if ring.is_none() && self.inflight.is_some() {
            // Stopped already, and what was in flight then is to come back all the same. Where it cannot be, the base stays.
            ring = self.make(index_of).unwrap_or_default();
        }
        let vring = &mut self.vrings[index_of];
        if let Some(mut ring) = ring {
            ring.settle();
            vring.base = ring.base();
        }
        vring.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Without one the front end wants us to poll for ever.
        let kick = eventfd(fd)?.ok_or_else(|| refuse("a virtqueue without a kick eventfd"))?;
        self.restart(index.into(), |vring| vring.kick = Some(kick))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = eventfd(fd)?;
        let vring = self.vring(index.into())?;
        vring.call.clone_from(&call);
        // Often while it runs: guests mask interrupts.
        if let Some(ring) = self.rings.slot(QueueIndex::new(index.into())).0.lock().ring.as_mut() {
            ring.set_call(call);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _: Option<File>) -> Result<()> {
        self.vring(index.into()).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !PROTOCOL.bits() != 0 {
            return Err(NOT_OFFERED);
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.pairs() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.restart(index, |vring| vring.enabled = enable)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        slot: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self.memory.with(region(slot), file);
        self.restart_all(|device| device.set_memory(memory))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, slot: &VhostUserSingleMemoryRegion) -> Result<()> {
        match self.memory.without(slot.guest_phys_addr, slot.user_addr, slot.memory_size) {
            // QEMU up to 8.1 asks once a queue pair.
            Err(MemoryError::Unknown(_)) => Ok(()),
            memory => self.restart_all(|device| device.set_memory(memory)),
        }
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (rings, size) = self.inflight_size(wanted)?;
        let file = InflightFile::create(rings, size).map_err(Error::ReqHandlerError)?;
        Ok((VhostUserInflight::new(InflightFile::len(rings, size), 0, rings, size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let (rings, size) = self.inflight_size(given)?;
        self.restart_all(|device| {
            device.inflight = None;
            let (offset, len) = (given.mmap_offset, given.mmap_size);
            let file = InflightFile::new(&device.share, file, offset, len, rings, size);
            let file = device.taken(file)?;
            device.inflight = Some(Arc::new(file));
            Ok(())
        })
    }

    fn set_log_base(&mut self, given: &VhostUserLog, file: File) -> Result<()> {
        self.restart_all(|device| {
            device.log = None;
            let log = DirtyLog::new(&device.share, file, given.mmap_offset, given.mmap_size);
            let log = device.taken(log)?;
            device.log = Some(Arc::new(log));
            Ok(())
        })
    }

    // What was not offered is not asked for; the rest of the protocol is of other devices.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }
}
