//! What a front end asks for to move its guest, and to outlive us.

use std::io::Read;
use std::os::unix::fs::FileExt;

use vhost::VhostUserDirtyLogRegion;
use vhost::vhost_user::message::VhostUserInflight;

use super::*;
use crate::addr::MacAddr;
use crate::virtio::inflight::InflightFile;
use crate::virtio::memory::Share;
use crate::virtio::ring::{Access, Records, Ring};
use crate::virtio::tests::rings::{look, open};
use crate::wire::arp;

/// Bytes of a log for all of a guest's memory.
pub(super) const LOG_LEN: u64 = LEN / 4096 / 8;
const RECEIVED: u64 = BUFFERS / 4096;

pub(super) fn log_of(file: &File, len: u64) -> Option<VhostUserDirtyLogRegion> {
    Some(VhostUserDirtyLogRegion { mmap_size: len, mmap_offset: 0, mmap_handle: file.as_raw_fd() })
}

/// Pages that are marked, as a front end takes them.
fn take_marked(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(LOG_LEN).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    file.write_all_at(&vec![0; bytes.len()], 0).expect("written");
    let bit = |page: &u64| bytes[usize::try_from(page / 8).expect("small")] & 1 << (page % 8) != 0;
    (0..8 * LOG_LEN).filter(bit).collect()
}

impl Guest {
    /// Has what is written logged, or not.
    pub(super) fn log(&mut self, on: bool) {
        let features = if on { FEATURES | LOG_ALL } else { FEATURES };
        self.front_end.set_features(features).expect("taken");
        for (index, driver) in [&self.receive, &self.transmit].into_iter().enumerate() {
            let addresses = VringConfigData {
                flags: u32::from(on),
                log_addr: Some(driver.used_addr()),
                ..addresses(&driver.setup(0, true))
            };
            self.front_end.set_vring_addr(index, &addresses).expect("taken");
        }
    }

    /// Its front end connects anew, and says of the rings what it knows: nothing of where they were.
    fn meet_again(&mut self, folder: &Folder) {
        let (nobody, _) = UnixStream::pair().expect("two sockets");
        // The one before goes first.
        self.front_end = Frontend::from_stream(nobody, 0);
        self.front_end = Guest::meet(connect(folder)).front_end;
        self.share(&self.file).expect("taken");
    }

    fn keep(&mut self, about: &VhostUserInflight, kept: &File) -> vhost::Result<()> {
        self.front_end.set_inflight_fd(about, kept.as_raw_fd())
    }
}

#[test]
fn what_is_written_is_logged_while_rings_run() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    talk(&mut port, &mut guest, 0);
    let log = file(LOG_LEN);
    guest.front_end.set_log_base(0, log_of(&log, LOG_LEN)).expect("taken");
    guest.front_end.set_log_fd(guest.call.as_raw_fd()).expect("taken, and not used");
    assert!(take_marked(&log).is_empty(), "not yet");
    guest.log(true);
    take_marked(&log);
    talk(&mut port, &mut guest, 1);
    let rings = [guest.receive.used_addr() / 4096, guest.transmit.used_addr() / 4096];
    // The second buffer is in the page of the first.
    assert_eq!(take_marked(&log), [rings[0], rings[1], RECEIVED]);
    talk(&mut port, &mut guest, 2);
    assert_eq!(take_marked(&log), [rings[0], rings[1], RECEIVED + 1]);

    // A larger log, as when memory is added.
    let other = file(2 * LOG_LEN);
    guest.front_end.set_log_base(0, log_of(&other, 2 * LOG_LEN)).expect("taken");
    take_marked(&log);
    take_marked(&other);
    talk(&mut port, &mut guest, 3);
    assert_eq!((take_marked(&log), take_marked(&other).len()), (vec![], 3));
    guest.log(false);
    take_marked(&other);
    talk(&mut port, &mut guest, 4);
    assert!(take_marked(&other).is_empty(), "no more");
    assert_eq!(port.counters().drops(DropReason::BadRing), 0);
}

#[test]
fn nothing_is_written_that_a_log_would_miss() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    // The log comes after the wish for one, as when a guest starts its device while it moves.
    guest.log(true);
    assert!(!port.is_up());
    let log = file(LOG_LEN);
    guest.front_end.set_log_base(0, log_of(&log, LOG_LEN)).expect("taken");
    talk(&mut port, &mut guest, 1);
    assert!(take_marked(&log).contains(&RECEIVED));
    // One that is too short for the buffers, but not for the rings.
    let short = file(3);
    guest.front_end.set_log_base(0, log_of(&short, 3)).expect("taken");
    port.send(0, &[1; 60]);
    assert!(!port.is_up());
    assert_eq!(port.counters().drops(DropReason::BadRing), 1);
}

#[test]
fn logs_and_records_are_refused_that_cannot_be() {
    let folder = Folder::new();
    let port = Port::new(&folder, SocketRole::Server, 1);
    let refused = |what: &str, ask: &dyn Fn(&mut Guest) -> bool| {
        let mut guest = Guest::boot(connect(&folder));
        assert!(!ask(&mut guest), "{what}");
        drop(guest);
        eventually("down", || !port.is_up());
    };
    let log =
        |guest: &Guest, file: &File, len: u64| guest.front_end.set_log_base(0, log_of(file, len)).is_ok();
    refused("a short log", &|guest| log(guest, &file(10), 11));
    refused("an empty log", &|guest| log(guest, &file(10), 0));
    // To which nobody expects an answer.
    refused("no log", &|guest| {
        guest.front_end.set_log_base(0, None).is_ok() && guest.front_end.get_features().is_ok()
    });
    refused("a log that is no file", &|guest| log(guest, &File::open("/dev/zero").expect("there"), 10));
    let keep = |guest: &mut Guest, len: u64, offset: u64, rings: u16, size: u16| {
        let kept = file(InflightFile::len(4, SIZE));
        guest.keep(&VhostUserInflight::new(len, offset, rings, size), &kept).is_ok()
    };
    let len = InflightFile::len(4, SIZE);
    refused("a short record", &|guest| keep(guest, len - 1, 0, 4, SIZE));
    refused("a record longer than its file", &|guest| keep(guest, len, 8, 4, SIZE));
    refused("a record anywhere", &|guest| keep(guest, len, u64::MAX - 3, 4, SIZE));
    refused("a record between words", &|guest| keep(guest, len / 2, 3, 2, SIZE));
    refused("a record of more rings", &|guest| keep(guest, 2 * len, 0, 5, SIZE));
    refused("a record of smaller rings", &|guest| keep(guest, len, 0, 4, SIZE / 2));
    refused("a record of impossible rings", &|guest| {
        guest.front_end.get_inflight_fd(&VhostUserInflight::new(0, 0, 4, 32_769)).is_ok()
    });
    refused("a record of another make", &|guest| {
        let kept = file(len);
        kept.write_all_at(&[9], 8).expect("written");
        guest.keep(&VhostUserInflight::new(len, 0, 4, SIZE), &kept).is_ok()
    });
}

#[test]
fn chains_in_flight_outlive_a_switch() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    let wanted = VhostUserInflight::new(0, 0, 2, SIZE);
    let (about, kept) = guest.front_end.get_inflight_fd(&wanted).expect("answered");
    assert_eq!((about.mmap_offset, about.num_queues, about.queue_size), (0, 2, SIZE));
    assert_eq!(kept.metadata().expect("there").len(), about.mmap_size);
    assert!(kept.set_len(0).is_err(), "sealed");
    guest.keep(&about, &kept).expect("taken");
    (0..3).for_each(|text| talk(&mut port, &mut guest, text));
    // A switch that has taken a frame of the guest and a buffer, and ends.
    let crash = |guest: &mut Guest, index: usize, access: Access| {
        let (file, memory) = (kept.try_clone().expect("another handle"), Arc::clone(&guest.memory));
        let setup = [&guest.receive, &guest.transmit][index].setup(4711, true);
        let kept =
            InflightFile::new(&Share::default(), file, 0, about.mmap_size, 2, SIZE).expect("long enough");
        let records = Records { log: None, inflight: Arc::new(kept).ring(index) };
        let mut ring = Ring::recorded(memory, &setup, records).expect("a ring");
        assert!(open(&mut ring).waiting(1).expect("fine") > 0);
        let chain = look(&mut ring, access).expect("a chain");
        open(&mut ring).take(chain.head).expect("recorded");
    };
    for text in 10..12 {
        guest.meet_again(&folder);
        guest.offer(&[text; 60]);
        crash(&mut guest, 1, Access::Read);
        crash(&mut guest, 0, Access::Write);
        guest.keep(&about, &kept).expect("taken");
        (0..2).for_each(|index| guest.set_up(index, 7));
        assert_eq!(port.receive_any(), [vec![text; 60]]);
        assert_eq!(guest.transmit.take_used(), [(0, 0)], "once");
        port.send(0, &[text; 60]);
        assert_eq!(guest.take(), [vec![text; 60]]);
        talk(&mut port, &mut guest, text);
    }
    // A front end that stops its rings before anybody looked has all of it back.
    guest.meet_again(&folder);
    guest.offer(&[20; 60]);
    crash(&mut guest, 1, Access::Read);
    guest.keep(&about, &kept).expect("taken");
    guest.set_up(1, 7);
    guest.front_end.set_vring_enable(1, false).expect("taken");
    let base = guest.front_end.get_vring_base(1).expect("answered");
    assert_eq!(base, u32::from(guest.transmit.index()));
    assert_eq!(guest.transmit.take_used(), [(0, 0)]);
    guest.transmit = Driver::new(&guest.memory, TRANSMITQ, SIZE, 0);
    (0..2).for_each(|index| guest.set_up(index, 0));
    talk(&mut port, &mut guest, 21);
    assert_eq!(port.counters().drops(DropReason::BadRing), 0);
}

#[test]
fn a_guest_that_moved_is_announced() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 3);
    let stream = connect(&folder);
    let mut raw = stream.try_clone().expect("another handle");
    let _guest = Guest::boot(stream);
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    let mut ask = |mac: MacAddr| {
        let mut message: Vec<u8> = [19u32, 9, 8].iter().flat_map(|word| word.to_ne_bytes()).collect();
        message.extend_from_slice(&mac.0);
        message.extend_from_slice(&[0; 2]);
        raw.write_all(&message).expect("sent");
        let mut reply = [0; 20];
        raw.read_exact(&mut reply).is_ok() && reply[12..] == [0; 8]
    };
    assert!(ask(mac));
    assert_eq!(port.receive_any(), [arp::announcement(mac).to_vec()]);
    assert!(port.receive_any().is_empty(), "once");
    assert!(!ask(MacAddr::BROADCAST));
    assert!(port.receive_any().is_empty());
}

/// Eight regions, as a front end has that knows of no more; a log, and records.
#[test]
fn all_of_a_guest_can_be_replaced_while_others_have_all_they_can() {
    use crate::sys::sigbus::tests::{in_child, use_up};
    // The watches are of the whole process.
    if !in_child(concat!(
        "port::vhost_user::tests::migration::",
        "all_of_a_guest_can_be_replaced_while_others_have_all_they_can"
    )) {
        return;
    }
    let _others = use_up();
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    let more = file(7 * 4096);
    let log = file(LOG_LEN);
    for text in 1..4 {
        let region = |n| VhostUserMemoryRegionInfo {
            guest_phys_addr: n * LEN,
            memory_size: 4096,
            userspace_addr: USER + n * LEN,
            mmap_offset: (n - 1) * 4096,
            mmap_handle: more.as_raw_fd(),
        };
        let table: Vec<_> = std::iter::once(Guest::region(&guest.file)).chain((1..8).map(region)).collect();
        guest.front_end.set_mem_table(&table).expect("taken");
        guest.front_end.set_log_base(0, log_of(&log, LOG_LEN)).expect("taken");
        let wanted = VhostUserInflight::new(0, 0, 2, SIZE);
        let (about, kept) = guest.front_end.get_inflight_fd(&wanted).expect("answered");
        guest.keep(&about, &kept).expect("taken");
        talk(&mut port, &mut guest, text);
    }
}
