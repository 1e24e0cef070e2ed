//! A guest whose memory is in huge pages: its regions begin and end anywhere within them.

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const PAGE_LEN: u64 = 2 << 20;
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A huge page that is free until this is dropped.
struct Page {
    /// Whether there was none before. Others may reserve some meanwhile, so it is one less that there are to be then.
    is_ours: bool,
}

impl Page {
    fn new() -> Option<Page> {
        if count("free_hugepages")? > count("resv_hugepages")? {
            return Some(Page { is_ours: false });
        }
        let before = count("nr_hugepages")?;
        set_count(before + 1)?;
        (count("nr_hugepages")? > before).then_some(Page { is_ours: true })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if self.is_ours {
            count("nr_hugepages").and_then(|pages| set_count(pages.saturating_sub(1)));
        }
    }
}

fn count(what: &str) -> Option<u64> {
    std::fs::read_to_string(format!("{PAGES}/{what}")).ok()?.trim().parse().ok()
}

fn set_count(pages: u64) -> Option<()> {
    std::fs::write(format!("{PAGES}/nr_hugepages"), pages.to_string()).ok()
}

#[test]
fn memory_may_be_in_huge_pages() {
    let Some(_page) = Page::new() else {
        eprintln!("skipped: no huge pages");
        return;
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = File::from(memfd_create(c"guest", flags).expect("a file in memory"));
    file.set_len(PAGE_LEN).expect("that long");
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot_in(connect(&folder), file);
    talk(&mut port, &mut guest, 1);
    // The other half of the page.
    let slot = VhostUserMemoryRegionInfo {
        guest_phys_addr: LEN,
        userspace_addr: USER + LEN,
        mmap_offset: LEN,
        ..Guest::region(&guest.file)
    };
    guest.front_end.add_mem_region(&slot).expect("taken");
    let half = crate::virtio::memory::RegionSpec { file_offset: LEN, ..region(LEN, LEN) };
    let whole = guest.memory.with(half, guest.file.try_clone().expect("another handle")).expect("a region");
    talk_from(LEN + 4096, whole, &mut port, &mut guest);
    drop(port);
}
