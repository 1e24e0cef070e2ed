//! A guest with two queue pairs, under fewer, as many and more workers.

use super::*;

/// Where the second pair's rings are; its buffers are those of the first, because frames are taken one by one.
const SECOND: u64 = 256 << 10;

#[test]
fn frames_cross_every_pair_each_way() {
    for workers in 1..=3 {
        let folder = Folder::new();
        let mut port = Port::new(&folder, SocketRole::Server, workers);
        let mut guest = Guest::boot(connect(&folder));
        let mut second = (
            Driver::new(&guest.memory, SECOND, SIZE, 0),
            Driver::new(&guest.memory, SECOND + TRANSMITQ, SIZE, 0),
        );
        for text in 0..6 {
            // The pairs take turns to be the guest's `receive` and `transmit`: 0, 1, 0, …
            let pair = usize::from(text % 2);
            if text == 1 {
                guest.start_pair(1);
            }
            let frame = vec![text; 100];
            guest.offer(&frame);
            assert_eq!(port.receive_any(), [&frame[..]], "by pair {pair}, {workers} workers");
            assert_eq!(guest.transmit.take_used(), [(0, 0)]);
            assert!(port.receive_any().is_empty());
            // Workers choose by their number, once there is a choice.
            for worker in (0..workers).filter(|worker| text == 0 || worker % 2 == pair) {
                let frame = vec![0x80 | text << 2 | u8::try_from(worker).expect("small"); 100];
                port.send(worker, &frame);
                assert_eq!(guest.take(), [frame], "by pair {pair}, of worker {worker} of {workers}");
            }
            std::mem::swap(&mut guest.receive, &mut second.0);
            std::mem::swap(&mut guest.transmit, &mut second.1);
        }
        // With one pair less, all go by the other, whose turn it is not.
        guest.front_end.set_vring_enable(0, false).expect("taken");
        std::mem::swap(&mut guest.receive, &mut second.0);
        for worker in 0..workers {
            port.send(worker, &[7; 60]);
            assert_eq!(guest.take(), [[7; 60]]);
        }
        let dropped: u64 = DropReason::ALL.iter().map(|&reason| port.counters().drops(reason)).sum();
        assert_eq!(dropped, 0);
    }
}
