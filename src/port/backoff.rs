//! How long to wait before the next peer or the next try of a port.
//!
//! A peer that comes and goes, or one that cannot be reached, must not keep the whole switch busy with handing over a port. So after
//! each connection that did not last, and each try that failed, the pause is twice as long as the one before, up to a longest one. A connection that
//! lasted begins at the first pause again. Time is an argument.

use std::time::{Duration, Instant};

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// A connection that lasted so long was a good one.
pub(crate) const GOOD: Duration = Duration::from_secs(2);

/// The pauses between the connections of one port.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    /// When the connection began that there is.
    since: Option<Instant>,
    due: Option<Instant>,
}

impl Backoff {
    /// The first try is due at once; no pause is longer than `longest`.
    #[must_use]
    pub(crate) const fn new(longest: Duration) -> Backoff {
        Backoff::starting_with(FIRST, longest)
    }

    /// The same, but that the first pause is `first`.
    #[must_use]
    pub(crate) const fn starting_with(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, pause: first, since: None, due: None }
    }

    /// When the next try is due, unless it has been already.
    #[must_use]
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the pause is over, if there was one; then nothing is due any more.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        if self.due.is_some_and(|due| now < due) {
            return false;
        }
        self.due = None;
        true
    }

    /// A connection begins.
    pub(crate) fn began(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// It has ended.
    pub(crate) fn ended(&mut self, now: Instant) {
        if self.since.take().is_some_and(|since| now.duration_since(since) >= GOOD) {
            self.pause = self.first;
        }
        self.hold_off(now);
    }

    /// There was none to be had.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.since = None;
        self.hold_off(now);
    }

    fn hold_off(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(500);

    /// The pause that is left, in milliseconds.
    fn left(backoff: &Backoff, now: Instant) -> Option<u128> {
        backoff.due().map(|due| due.duration_since(now).as_millis())
    }

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let (mut backoff, mut now) = (Backoff::new(LONGEST), Instant::now());
        assert!(backoff.is_over(now), "the first try is due at once");
        for pause in [100, 200, 400, 500, 500] {
            backoff.failed(now);
            assert_eq!(left(&backoff, now), Some(pause));
            now += LONGEST;
        }
    }

    #[test]
    fn nothing_is_due_when_a_pause_is_over() {
        let (mut backoff, now) = (Backoff::new(LONGEST), Instant::now());
        backoff.failed(now);
        assert!(!backoff.is_over(now + Duration::from_millis(99)));
        assert!(backoff.due().is_some());
        assert!(backoff.is_over(now + Duration::from_millis(100)));
        assert_eq!(backoff.due(), None);
    }

    #[test]
    fn only_what_lasted_begins_again() {
        let (mut backoff, start) = (Backoff::new(LONGEST), Instant::now());
        let mut lasts = |time: Duration| {
            backoff.began(start);
            backoff.ended(start + time);
            left(&backoff, start + time)
        };
        assert_eq!(lasts(Duration::ZERO), Some(100));
        assert_eq!(lasts(GOOD.checked_sub(Duration::from_millis(1)).expect("longer")), Some(200));
        assert_eq!(lasts(GOOD), Some(100));
        assert_eq!(lasts(Duration::ZERO), Some(200));
    }

    #[test]
    fn a_connection_that_nobody_ended_is_none_that_lasted() {
        let (mut backoff, now) = (Backoff::new(LONGEST), Instant::now());
        backoff.began(now);
        backoff.failed(now + GOOD);
        backoff.ended(now + GOOD);
        assert_eq!(left(&backoff, now + GOOD), Some(200));
    }
}
