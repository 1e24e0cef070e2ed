//! A guest's memory: regions of files that its front end shares with us.
//!
//! A table is immutable; adding or removing a region makes another that shares the mappings. Access is through
//! [`VolatileSlice`]s, which are bounded by their mapping and never become references, because the guest writes all the while. A file that shrinks is
//! survived (`sys/sigbus.rs`) and makes the table broken.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};

pub use super::room::Share;
use super::room::{Bytes, Claim};
use crate::sys::mem::SharedPages;
use crate::sys::sigbus::{self, Watch};

/// Most regions of a guest's memory: what QEMU can have at most.
pub const REGIONS_MAX: usize = 509;

const PAGE: u64 = 4096;

/// Where a region is, as its front end says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionSpec {
    /// Guest physical address: what descriptors use.
    pub guest_addr: u64,
    /// Address in the front end's process: what rings are given by.
    pub user_addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
}

/// Why a region is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It is empty, or wraps around.
    #[error("a memory region of {0:#x} bytes at {1:#x} is impossible")]
    Range(u64, u64),
    /// It covers addresses of another.
    #[error("memory regions overlap at {0:#x}")]
    Overlap(u64),
    /// More than [`REGIONS_MAX`].
    #[error("more than {REGIONS_MAX} memory regions")]
    TooMany,
    /// There is no such region to remove.
    #[error("there is no memory region at {0:#x}")]
    Unknown(u64),
    /// The file is shorter than the region, or none that can be mapped.
    #[error("the memory file has {file} bytes, the region ends at {end}")]
    Short {
        /// Bytes of the file.
        file: u64,
        /// Where the region would end.
        end: u64,
    },
    /// The file is on something else than memory.
    #[error("the memory file is neither a memfd nor on tmpfs or hugetlbfs")]
    NoMemory,
    /// More bytes than its port may have.
    #[error(
        "{} more of guest memory beside {} is more than the {} that this port may share; \
         give the port a higher --memory-max, or vswitchd a higher --guest-memory-max",
        Bytes(*more), Bytes(*has), Bytes(*most)
    )]
    TooMuch {
        /// Bytes that it was to be.
        more: u64,
        /// Bytes that the port has.
        has: u64,
        /// Bytes that it may have.
        most: u64,
    },
    /// More bytes than the other ports leave.
    #[error(
        "{} more of guest memory is too much beside the {} of all guests, who may share {} together \
         (a port without --memory-max leaves as much as it has); give vswitchd a higher --guest-memory-max",
        Bytes(*more), Bytes(*taken), Bytes(*most)
    )]
    AllTaken {
        /// Bytes that it was to be.
        more: u64,
        /// Bytes that all ports have.
        taken: u64,
        /// Bytes that they may have.
        most: u64,
    },
    /// The kernel does not map it.
    #[error("cannot map a memory region: {0}")]
    Map(#[from] io::Error),
}

#[derive(Debug)]
struct Mapping {
    // Goes first.
    watch: Watch,
    pages: SharedPages,
    // Given back when it is not mapped any more.
    _claim: Claim,
}

#[derive(Clone, Debug)]
struct Region {
    spec: RegionSpec,
    /// Where in the mapping it begins.
    offset: usize,
    len: usize,
    /// Device and inode of its file.
    file: (u64, u64),
    mapping: Arc<Mapping>,
}

/// The memory of a guest.
#[derive(Debug)]
pub struct GuestMemory {
    /// By guest address.
    regions: Vec<Region>,
    /// What its port has of the mappings of all ports.
    share: Share,
    /// How many mappings, of anybody, had broken when none of these had.
    looked: AtomicUsize,
}

impl GuestMemory {
    /// None, of a port whose other mappings have this share.
    #[must_use]
    pub fn none(share: &Share) -> GuestMemory {
        GuestMemory { regions: Vec::new(), share: share.clone(), looked: AtomicUsize::new(usize::MAX) }
    }

    /// Of the same port.
    fn of(&self, regions: Vec<Region>) -> GuestMemory {
        GuestMemory { regions, ..GuestMemory::none(&self.share) }
    }
}

impl Default for GuestMemory {
    /// None, of a port that has no other.
    fn default() -> GuestMemory {
        GuestMemory::none(&Share::default())
    }
}

impl Clone for GuestMemory {
    fn clone(&self) -> GuestMemory {
        self.of(self.regions.clone())
    }
}

/// A piece of a guest's memory, inside one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    region: usize,
    offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Area {
    /// What is behind its first `len` bytes, if anything is.
    #[inline]
    #[must_use]
    pub fn behind(self, len: usize) -> Option<Area> {
        let rest = self.len.checked_sub(len).filter(|&rest| rest > 0)?;
        Some(Area { offset: self.offset + len, len: rest, ..self })
    }
}

impl GuestMemory {
    /// The same with one region more. One that is there already stays: QEMU up to 8.1 adds each once a queue pair.
    ///
    /// # Errors
    /// It overlaps another, its file is too short, or it cannot be mapped.
    pub fn with(&self, spec: RegionSpec, file: File) -> Result<GuestMemory, MemoryError> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(MemoryError::TooMany);
        }
        let impossible = MemoryError::Range(spec.len, spec.guest_addr);
        let end = |start: u64| start.checked_add(spec.len);
        let (Some(guest_end), Some(user_end), Some(file_end)) =
            (end(spec.guest_addr), end(spec.user_addr), end(spec.file_offset))
        else {
            return Err(impossible);
        };
        if spec.len == 0 || i64::try_from(file_end).is_err() {
            return Err(impossible);
        }
        let file = MemoryFile::new(file)?;
        for Region { spec: other, file: its, .. } in &self.regions {
            if *other == spec && *its == file.identity {
                return Ok(self.clone());
            }
            if spec.guest_addr < other.guest_addr + other.len && other.guest_addr < guest_end {
                return Err(MemoryError::Overlap(spec.guest_addr));
            }
            if spec.user_addr < other.user_addr + other.len && other.user_addr < user_end {
                return Err(MemoryError::Overlap(spec.user_addr));
            }
        }
        let region = map(spec, file, file_end, &self.share)?;
        let mut regions = self.regions.clone();
        let place = regions.partition_point(|other| other.spec.guest_addr < spec.guest_addr);
        regions.insert(place, region);
        Ok(self.of(regions))
    }

    /// The same with one region more that belongs to no file, for an interpreter that knows of none.
    #[cfg(miri)]
    pub(crate) fn with_private(&self, spec: RegionSpec) -> GuestMemory {
        let len = usize::try_from(spec.len).expect("small");
        let pages = SharedPages::of_nothing(len);
        let claim = self.share.claim(spec.len).expect("small");
        let mapping = Arc::new(Mapping { watch: Watch::of_nothing(), pages, _claim: claim });
        let mut regions = self.regions.clone();
        let place = regions.partition_point(|other| other.spec.guest_addr < spec.guest_addr);
        regions.insert(place, Region { spec, offset: 0, len, file: (0, 0), mapping });
        self.of(regions)
    }

    /// The same without the region of these addresses.
    ///
    /// # Errors
    /// There is none.
    pub fn without(&self, guest_addr: u64, user_addr: u64, len: u64) -> Result<GuestMemory, MemoryError> {
        let mut regions = self.regions.clone();
        let is = |region: &Region| {
            let spec = &region.spec;
            (spec.guest_addr, spec.user_addr, spec.len) == (guest_addr, user_addr, len)
        };
        let place = regions.iter().position(is).ok_or(MemoryError::Unknown(guest_addr))?;
        regions.remove(place);
        Ok(self.of(regions))
    }

    /// Whether a file has shrunk: nothing here can be believed any more.
    #[inline]
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let broken = sigbus::broken();
        self.looked.load(Ordering::Relaxed) != broken && self.look(broken)
    }

    #[cold]
    fn look(&self, broken: usize) -> bool {
        let found = self.regions.iter().any(|region| region.mapping.watch.is_broken());
        if !found {
            self.looked.store(broken, Ordering::Relaxed);
        }
        found
    }

    /// What of `len` bytes at a guest physical address is in one piece: at least one byte.
    #[inline]
    #[must_use]
    pub fn guest(&self, addr: u64, len: usize) -> Option<Area> {
        let region = self.regions.partition_point(|region| region.spec.guest_addr <= addr).checked_sub(1)?;
        self.area(region, addr - self.regions[region].spec.guest_addr, len)
    }

    /// Exactly `len` bytes at an address of the front end.
    #[must_use]
    pub fn user(&self, addr: u64, len: usize) -> Option<Area> {
        let distance = |region: &Region| addr.checked_sub(region.spec.user_addr);
        let inside = |region: &Region| distance(region).is_some_and(|distance| distance < region.spec.len);
        let region = self.regions.iter().position(inside)?;
        self.area(region, distance(&self.regions[region])?, len).filter(|area| area.len == len)
    }

    /// The guest physical address of an area of this table.
    #[inline]
    #[must_use]
    pub fn addr(&self, area: Area) -> Option<u64> {
        let region = self.regions.get(area.region)?;
        let distance = area.offset.checked_sub(region.offset)?;
        Some(region.spec.guest_addr + u64::try_from(distance).ok()?)
    }

    fn area(&self, region: usize, distance: u64, len: usize) -> Option<Area> {
        let Region { offset, len: size, .. } = self.regions[region];
        let distance = usize::try_from(distance).ok()?;
        let rest = size.checked_sub(distance).filter(|&rest| rest > 0)?;
        Some(Area { region, offset: offset + distance, len: len.min(rest) })
    }

    /// The bytes of an area of this table; `None` if it is of another.
    #[inline]
    #[must_use]
    pub fn slice(&self, area: Area) -> Option<VolatileSlice<'_>> {
        self.regions.get(area.region)?.mapping.pages.get_slice(area.offset, area.len).ok()
    }
}

/// A file that is memory and nothing else.
struct MemoryFile {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    len: u64,
    /// Length of its pages.
    page: u64,
}

impl MemoryFile {
    fn new(file: File) -> Result<MemoryFile, MemoryError> {
        // Only files of tmpfs and hugetlbfs, and memfds, have seals. Of any other not even its kind is asked: the answer may come from a server, or
        // from somebody's program, and never. Whoever touched its pages would wait likewise.
        fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| MemoryError::NoMemory)?;
        let system = fstatfs(file.as_fd()).map_err(io::Error::from)?;
        let page = match (system.filesystem_type(), u64::try_from(system.block_size())) {
            (HUGETLBFS_MAGIC, Ok(size)) if size.is_power_of_two() => size,
            (HUGETLBFS_MAGIC, _) => return Err(MemoryError::NoMemory),
            _ => PAGE,
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(MemoryError::NoMemory);
        }
        Ok(MemoryFile { identity: (about.dev(), about.ino()), len: about.size(), page, file })
    }
}

/// Maps what a region covers, in whole pages of whatever size its file has.
fn map(spec: RegionSpec, file: MemoryFile, file_end: u64, share: &Share) -> Result<Region, MemoryError> {
    let MemoryFile { file, identity, len: file_len, page } = file;
    if file_len < file_end {
        return Err(MemoryError::Short { file: file_len, end: file_end });
    }
    let start = spec.file_offset & !(page - 1);
    let size = (file_end - start).next_multiple_of(page);
    let sizes = [spec.file_offset - start, spec.len, size].map(usize::try_from);
    let [Ok(offset), Ok(len), Ok(size)] = sizes else {
        return Err(MemoryError::Range(spec.len, spec.guest_addr));
    };
    let claim = share.claim(size as u64)?;
    // The file is closed: a front end has descriptors of ours only for its eventfds.
    let pages = SharedPages::new(&file, start, size)?;
    let watch = share.watch(&pages)?;
    let mapping = Arc::new(Mapping { watch, pages, _claim: claim });
    Ok(Region { spec, offset, len, file: identity, mapping })
}
