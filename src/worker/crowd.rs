//! Whether others need the CPU on which a worker spins. Time is an argument.
//!
//! A spinning worker yields between two looks. Where nobody waits for the CPU it has it back at once. In a conversation over an otherwise
//! idle machine the two programs have it for a part of the time; where programs compute all the time, such as emulated guests, they
//! have nearly all of it, and every look costs them two switches.

use std::time::{Duration, Instant};

/// Whoever has the CPU for so long after one yield needs it; an answer in a conversation takes some 10 µs.
const LONG: Duration = Duration::from_micros(80);
/// So do those who had it for more than three quarters of so long a time, a little at each yield.
const WINDOW: Duration = Duration::from_micros(500);
/// A yield that took so long gave the CPU to somebody; to ask takes less than half of that.
const GIVEN_AWAY: Duration = Duration::from_micros(3);

/// Those who were given the CPU in the present window.
#[derive(Debug)]
pub(super) struct Crowd {
    /// When the window began.
    since: Instant,
    /// The time that they had.
    had: Duration,
}

impl Crowd {
    /// Nobody yet.
    pub(super) fn new(now: Instant) -> Crowd {
        Crowd { since: now, had: Duration::ZERO }
    }

    /// Whether somebody needs the CPU, after a yield from `before` to `back`.
    pub(super) fn needs_cpu(&mut self, before: Instant, back: Instant) -> bool {
        if before.duration_since(self.since) > 2 * WINDOW {
            // The worker slept in between, or had much to do itself.
            *self = Crowd::new(before);
        }
        let away = back.duration_since(before);
        if away > GIVEN_AWAY {
            self.had += away;
        }
        let time = back.duration_since(self.since);
        let most = time > WINDOW && self.had * 4 > time * 3;
        if time > WINDOW {
            *self = Crowd::new(back);
        }
        away > LONG || most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Whether the CPU is needed by then, if the worker looks for `own` and others have it for `theirs`, again and again.
    fn needed(own: u32, theirs: u32, time: Duration) -> bool {
        let start = Instant::now();
        let (mut crowd, mut now) = (Crowd::new(start), start);
        while now < start + time {
            let before = now + own * MICROSECOND;
            now = before + theirs * MICROSECOND;
            if crowd.needs_cpu(before, now) {
                return true;
            }
        }
        false
    }

    #[test]
    fn nobody_needs_it_whose_turn_is_no_switch() {
        assert!(!needed(0, 2, 10 * WINDOW));
        assert!(!needed(1, 1, 10 * WINDOW));
    }

    #[test]
    fn a_conversation_is_not_a_crowd() {
        assert!(!needed(10, 20, 10 * WINDOW));
        assert!(!needed(10, 29, 10 * WINDOW));
    }

    #[test]
    fn those_who_take_nearly_all_of_it_need_it() {
        assert!(needed(1, 40, 2 * WINDOW));
        assert!(needed(10, 40, 2 * WINDOW));
    }

    #[test]
    fn one_who_keeps_it_needs_it_at_once() {
        assert!(needed(1000, 81, MICROSECOND));
        assert!(!needed(1000, 79, 10 * WINDOW), "what the worker does itself is not theirs");
    }

    #[test]
    fn what_was_before_a_sleep_does_not_count() {
        let start = Instant::now();
        let mut crowd = Crowd::new(start);
        let before = start + Duration::from_secs(1);
        assert!(!crowd.needs_cpu(before, before + 50 * MICROSECOND));
        assert!(crowd.had == 50 * MICROSECOND && crowd.since == before);
    }
}
