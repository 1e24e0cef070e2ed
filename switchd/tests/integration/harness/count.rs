//! A numbered stream of frames: none may be lost, doubled or out of order while something happens to the switch.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::frame::{Mac, TEST, frame};
use super::raw::Raw;

/// Payload before the number.
const MARK: &[u8; 4] = b"#seq";
/// Frames sent at once, then a pause: at most some 7,000 a second.
const BURST: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);
/// Most frames on the way. The shortest queue there, the ring of a packet port, has twice as many slots: a switch that gets no CPU for a while,
/// because other tests have it, finds all of them when it gets one, and whatever is missing the switch has lost.
const WINDOW: u32 = 128;
/// What has not arrived for so long is lost, and not waited for.
const STALL: Duration = Duration::from_millis(500);

/// How many were sent, and what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub sent: u32,
    pub received: u32,
    pub missing: u32,
    pub doubled: u32,
    pub late: u32,
}

impl Count {
    #[track_caller]
    pub fn complete(self, least: u32) {
        assert!(self.sent >= least, "too little was sent to tell: {self:?}");
        assert_eq!((self.missing, self.doubled, self.late), (0, 0, 0), "{self:?}");
    }
}

/// Sends a stream from one station to another while `meanwhile` runs.
#[track_caller]
pub fn count<T>(from: (&Raw, Mac), to: (&Raw, Mac), meanwhile: impl FnOnce() -> T) -> (Count, T) {
    let stop = AtomicBool::new(false);
    let finished = AtomicBool::new(false);
    // One more than the highest number that has arrived.
    let arrived = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut number = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                while number - arrived.load(Ordering::Relaxed) > WINDOW - BURST && since.elapsed() < STALL {
                    std::thread::sleep(PAUSE);
                }
                for _ in 0..BURST {
                    let mut payload = MARK.to_vec();
                    payload.extend(number.to_be_bytes());
                    payload.resize(46, 0);
                    from.0.send(&frame(to.1, from.1, &[], TEST, &payload)).expect("sent");
                    number += 1;
                }
                std::thread::sleep(PAUSE);
            }
            finished.store(true, Ordering::Release);
            number
        });
        let receiver = scope.spawn(|| {
            let mut seen = Vec::<bool>::new();
            let mut count = Count::default();
            let mut quiet_since = Instant::now();
            while !finished.load(Ordering::Acquire) || quiet_since.elapsed() < Duration::from_millis(300) {
                let Some(frame) = to.0.next(Duration::from_millis(20)) else { continue };
                quiet_since = Instant::now();
                let Some(number) = number(&frame.bytes) else { continue };
                let index = number as usize;
                count.late += u32::from(index + 1 < seen.len());
                if seen.len() <= index {
                    seen.resize(index + 1, false);
                    arrived.store(number + 1, Ordering::Relaxed);
                }
                count.doubled += u32::from(std::mem::replace(&mut seen[index], true));
                count.received += 1;
            }
            count.missing = seen.iter().filter(|seen| !**seen).count() as u32;
            (count, seen.len() as u32)
        });
        // So that `meanwhile` is in the middle of it.
        std::thread::sleep(Duration::from_millis(100));
        let result = meanwhile();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (mut count, known) = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        count.missing += sent - known;
        count.sent = sent;
        (count, result)
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    let payload = bytes.get(14..)?.strip_prefix(MARK)?;
    Some(u32::from_be_bytes(*payload.first_chunk()?))
}
