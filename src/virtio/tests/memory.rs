use std::os::fd::AsFd;

use super::super::driver::{USER, file, memory, read, region, write};
use super::super::memory::{GuestMemory, MemoryError, REGIONS_MAX, RegionSpec};

const PAGE: u64 = 4096;

#[test]
fn impossible_regions_are_refused() {
    let one = memory(&[(0x10000, 2 * PAGE)]);
    let refused = |spec: RegionSpec, len: u64| one.with(spec, file(len)).expect_err("refused");
    let at = |addr: u64, len: u64| refused(region(addr, len), len);
    assert!(matches!(at(0x20000, 0), MemoryError::Range(..)));
    let wraps = RegionSpec { guest_addr: u64::MAX - PAGE + 1, user_addr: 0, len: PAGE, file_offset: 0 };
    assert!(matches!(refused(wraps, PAGE), MemoryError::Range(..)));
    let wraps = RegionSpec { guest_addr: 0x20000, user_addr: u64::MAX - PAGE + 1, len: PAGE, file_offset: 0 };
    assert!(matches!(refused(wraps, PAGE), MemoryError::Range(..)));
    let wraps = RegionSpec { guest_addr: 0x20000, user_addr: 0, len: PAGE, file_offset: u64::MAX - 10 };
    assert!(matches!(refused(wraps, PAGE), MemoryError::Range(..)));
    for overlapping in [0x10000, 0x10000 - PAGE, 0x10000 + PAGE] {
        assert!(matches!(at(overlapping, 2 * PAGE), MemoryError::Overlap(_)), "{overlapping:#x}");
    }
    let same_user = RegionSpec { user_addr: 0x10000 + USER, ..region(0x40000, PAGE) };
    assert!(matches!(refused(same_user, PAGE), MemoryError::Overlap(_)));
    assert!(matches!(refused(region(0x40000, 2 * PAGE), PAGE), MemoryError::Short { file: 4096, end: 8192 }));
    let behind = RegionSpec { file_offset: PAGE, ..region(0x40000, PAGE) };
    assert!(matches!(refused(behind, PAGE), MemoryError::Short { .. }));
    let folder = std::fs::File::open("/").expect("a folder");
    assert!(one.with(region(0x40000, PAGE), folder).is_err());
    let pipe =
        std::fs::File::from(std::io::pipe().expect("a pipe").0.as_fd().try_clone_to_owned().expect("a copy"));
    assert!(one.with(region(0x40000, PAGE), pipe).is_err());
    assert!(one.without(0x10000, 0x10000 + USER, PAGE).is_err());
}

#[test]
fn a_region_is_looked_at_before_it_is_mapped() {
    // So long that it is refused.
    const WHOLE: u64 = 1 << 47;
    let endless = || {
        let file = file(0);
        file.set_len(WHOLE).expect("sparse");
        file
    };
    let empty = GuestMemory::default();
    assert!(matches!(empty.with(region(0, WHOLE), endless()), Err(MemoryError::TooMuch { .. })));
    let one = memory(&[(0x10000, PAGE)]);
    assert!(matches!(one.with(region(0, WHOLE), endless()), Err(MemoryError::Overlap(_))));
}

#[test]
fn what_is_not_memory_is_not_asked_what_it_is() {
    let on_disk = std::env::temp_dir().join(format!("vswitch-memory-{}", std::process::id()));
    let file = std::fs::File::create_new(&on_disk).expect("a file");
    std::fs::remove_file(&on_disk).expect("removed");
    let is_tmpfs = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS).is_ok();
    file.set_len(PAGE).expect("that long");
    assert_eq!(GuestMemory::default().with(region(0, PAGE), file).is_ok(), is_tmpfs);
    let program = std::fs::File::open("/proc/self/status").expect("a file of the kernel's");
    assert!(matches!(GuestMemory::default().with(region(0, PAGE), program), Err(MemoryError::NoMemory)));
    let socket = std::os::unix::net::UnixStream::pair().expect("a pair").0;
    let socket = std::fs::File::from(std::os::fd::OwnedFd::from(socket));
    assert!(matches!(GuestMemory::default().with(region(0, PAGE), socket), Err(MemoryError::NoMemory)));
}

#[test]
fn there_is_a_most_of_regions() {
    let mut memory = GuestMemory::default();
    for n in 0..REGIONS_MAX as u64 {
        memory = memory.with(region(n * PAGE, PAGE), file(PAGE)).expect("room");
    }
    let more = region(REGIONS_MAX as u64 * PAGE, PAGE);
    assert!(matches!(memory.with(more, file(PAGE)), Err(MemoryError::TooMany)));
    let fewer = memory.without(PAGE, PAGE + USER, PAGE).expect("it is there");
    assert!(fewer.guest(PAGE, 1).is_none() && memory.guest(PAGE, 1).is_some());
}

#[test]
fn addresses_are_translated_and_bounded() {
    let memory = memory(&[(0x1000, PAGE), (0x2000, PAGE), (0x8000, PAGE)]);
    assert_eq!(memory.guest(0x1ff0, 0x20).expect("there").len, 0x10, "up to the region's end");
    assert!(memory.guest(0xfff, 1).is_none());
    assert!(memory.guest(0x3000, 1).is_none());
    assert!(memory.guest(0x9000, 1).is_none());
    assert!(memory.guest(u64::MAX, 1).is_none());
    assert!(memory.user(0x1ff0 + USER, 0x10).is_some());
    assert!(memory.user(0x1ff0 + USER, 0x11).is_none(), "a ring lies in one region");
    assert!(memory.user(0x1000, 1).is_none());
    write(&memory, 0x1ffe, b"abcd");
    assert_eq!(read(&memory, 0x1ffe, 4), b"abcd");
    let other = super::super::driver::memory(&[]);
    assert!(other.slice(memory.guest(0x1000, 1).expect("there")).is_none());
}

#[test]
fn a_region_may_begin_anywhere_in_its_file() {
    let file = file(4 * PAGE);
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 2 * PAGE + 100).expect("written");
    let spec = RegionSpec { file_offset: 2 * PAGE + 100, ..region(0x5000, PAGE) };
    let memory = GuestMemory::default().with(spec, file).expect("a region");
    assert_eq!(read(&memory, 0x5000, 4), b"here");
}

#[test]
fn a_file_that_shrinks_is_survived() {
    let file = file(2 * PAGE);
    let shared = file.try_clone().expect("another handle");
    let memory = GuestMemory::default().with(region(0, 2 * PAGE), file).expect("a region");
    write(&memory, PAGE, b"there");
    assert!(!memory.is_broken());
    shared.set_len(0).expect("shorter");
    assert_eq!(read(&memory, PAGE, 5), [0; 5]);
    write(&memory, 0, b"nowhere");
    assert!(memory.is_broken());
    drop(memory);
    // Its place is free for another.
    let again =
        GuestMemory::default().with(region(0, PAGE), super::super::driver::file(PAGE)).expect("a region");
    assert!(!again.is_broken());
}

#[test]
fn a_file_is_closed_once_it_is_mapped() {
    // A front end may have hundreds, and descriptors are everybody's.
    let name = format!("vswitch-closed-{}", std::process::id());
    let file = nix::sys::memfd::memfd_create(&*name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a file");
    let file = std::fs::File::from(file);
    file.set_len(PAGE).expect("that long");
    let memory = GuestMemory::default().with(region(0, PAGE), file).expect("a region");
    let links = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let open = links.filter_map(|fd| fd.path().read_link().ok());
    assert_eq!(open.filter(|link| link.to_string_lossy().contains(&name)).count(), 0);
    write(&memory, 0, b"there");
    assert_eq!(read(&memory, 0, 5), b"there");
}
