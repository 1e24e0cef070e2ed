//! How often lines of one kind may be in the log.
//!
//! Links that flap, guests that come and go, tables that are full and callers that exhaust what
//! there is can cause a line each time, for ever. So lines are counted by *subject*: the place in
//! the code that logs, and the object that the line is about. A subject has [`BURST`] lines at once
//! and gets one more every [`REFILL`]; a warning or an error that says the very same again within
//! [`REPEAT`] has none. What is left out is counted, and the count is told: with the subject's next
//! line, or by a line of its own after a pause, of [`PAUSE_MIN`] at first and twice as long each
//! time.
//!
//! So the first lines about each of a thousand ports appear, and one port's link that flaps for a
//! day leaves a line or two a minute. Memory is bounded by [`SUBJECTS_MAX`]; where outsiders cause
//! more than that, those beyond share one subject a place.
//!
//! The time is an argument. Reading the clock and writing are the caller's.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

/// Lines about a subject at once.
pub(super) const BURST: u32 = 10;
/// Until a subject has a line more.
pub(super) const REFILL: Duration = Duration::from_secs(60);
/// A warning or error that comes again within this time is the same one going on.
pub(super) const REPEAT: Duration = Duration::from_secs(1);
/// From the first line that is left out until the count is told: at first, and at most.
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(5);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Subjects kept.
pub(super) const SUBJECTS_MAX: usize = 8192;
/// Subjects kept of one place, so that what outsiders cause there takes no room of other places.
const PLACE_MAX: usize = SUBJECTS_MAX / 2;
/// A subject that was silent for so long is as good as new.
const FORGET: Duration = Duration::from_secs(600);
/// Bytes kept of a line that was left out.
const TEXT_MAX_BYTES: usize = 300;

/// A line that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub level: Level,
    pub text: String,
    /// Lines about the same subject that were not.
    pub left_out: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    place: Identifier,
    /// A hash of the object's name.
    object: Option<u64>,
}

/// An account of one subject.
#[derive(Debug)]
struct Account {
    lines: u32,
    refilled: Instant,
    seen: Instant,
    last: u64,
    pause: Duration,
    /// What was left out, and when that is due to be told.
    left_out: u64,
    line: Option<(Level, String)>,
    due: Option<Instant>,
}

impl Account {
    fn new(now: Instant) -> Account {
        Account {
            lines: BURST,
            refilled: now,
            seen: now,
            last: 0,
            pause: PAUSE_MIN,
            left_out: 0,
            line: None,
            due: None,
        }
    }

    fn refill(&mut self, now: Instant) {
        while self.lines < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.lines += 1;
            self.refilled += REFILL;
        }
        if self.lines == BURST {
            self.refilled = now;
        }
    }

    /// The line is one to write, or is left out.
    fn ask(&mut self, level: Level, text: String, now: Instant) -> Option<Line> {
        self.refill(now);
        let silent = now.saturating_duration_since(self.seen);
        if silent > PAUSE_MAX {
            self.pause = PAUSE_MIN;
        }
        let hash = hash(&text);
        let repeated = level <= Level::WARN && self.last == hash && silent < REPEAT;
        (self.seen, self.last) = (now, hash);
        if repeated || self.lines == 0 {
            self.left_out += 1;
            self.due.get_or_insert(now + self.pause);
            self.line = Some((level, text));
            return None;
        }
        self.lines -= 1;
        self.due = None;
        self.line = None;
        Some(Line { level, text, left_out: std::mem::take(&mut self.left_out) })
    }

    /// What was left out.
    fn told(&mut self) -> Option<Line> {
        let (level, text) = self.line.take()?;
        self.due = None;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Some(Line { level, text, left_out: std::mem::take(&mut self.left_out) })
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The accounts of all subjects.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    accounts: HashMap<Subject, Account>,
    /// How many of them are of each place; there are as many places as lines of code that log.
    places: HashMap<Identifier, usize>,
}

impl Limiter {
    /// Takes a line that is logged at `place` about `object`: returns it if it is to be written.
    pub(super) fn ask(
        &mut self,
        place: Identifier,
        object: &str,
        level: Level,
        text: &str,
        now: Instant,
    ) -> Option<Line> {
        let mut subject = Subject { place, object: Some(hash(object)) };
        if !self.accounts.contains_key(&subject) {
            if self.is_full(&subject.place) {
                self.forget(now);
            }
            if self.is_full(&subject.place) {
                subject.object = None;
            }
        }
        let end = (0..=TEXT_MAX_BYTES.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
        let kept = if text.len() > TEXT_MAX_BYTES { &text[..end.unwrap_or(0)] } else { text };
        let of_place = self.places.entry(subject.place.clone()).or_default();
        let account = self.accounts.entry(subject).or_insert_with(|| {
            *of_place += 1;
            Account::new(now)
        });
        let line = account.ask(level, kept.to_owned(), now);
        line.map(|line| Line { text: text.to_owned(), ..line })
    }

    /// Whether there is no room for a subject of this place.
    fn is_full(&self, place: &Identifier) -> bool {
        self.accounts.len() >= SUBJECTS_MAX || self.places.get(place).is_some_and(|&here| here >= PLACE_MAX)
    }

    /// Forgets subjects that were silent.
    fn forget(&mut self, now: Instant) {
        let places = &mut self.places;
        self.accounts.retain(|subject, account| {
            let keep = account.left_out > 0 || now.saturating_duration_since(account.seen) < FORGET;
            if let (false, Some(here)) = (keep, places.get_mut(&subject.place)) {
                *here -= 1;
            }
            keep
        });
    }

    /// When the next count is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.accounts.values().filter_map(|account| account.due).min()
    }

    /// The counts that are due; all there are when there is no time.
    pub(super) fn take_due(&mut self, now: Option<Instant>) -> Vec<Line> {
        let is_due = |due: Instant| now.is_none_or(|now| due <= now);
        let due = self.accounts.values_mut().filter(|account| account.due.is_some_and(is_due));
        due.filter_map(Account::told).collect()
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite as _;
    use tracing::callsite::DefaultCallsite;

    use super::*;

    /// A place in the code.
    fn place() -> Identifier {
        static META: tracing::Metadata<'static> = tracing::metadata! {
            name: "test", target: "test", level: Level::INFO, fields: &[],
            callsite: &CALLSITE, kind: tracing::metadata::Kind::EVENT,
        };
        static CALLSITE: DefaultCallsite = DefaultCallsite::new(&META);
        CALLSITE.metadata().callsite()
    }

    /// Another one.
    fn another_place() -> Identifier {
        static META: tracing::Metadata<'static> = tracing::metadata! {
            name: "other", target: "test", level: Level::INFO, fields: &[],
            callsite: &CALLSITE, kind: tracing::metadata::Kind::EVENT,
        };
        static CALLSITE: DefaultCallsite = DefaultCallsite::new(&META);
        CALLSITE.metadata().callsite()
    }

    struct Log {
        limiter: Limiter,
        start: Instant,
        now: Duration,
    }

    impl Log {
        fn new() -> Log {
            Log { limiter: Limiter::default(), start: Instant::now(), now: Duration::ZERO }
        }

        fn line(&mut self, level: Level, object: &str, text: &str) -> Option<u64> {
            let now = self.start + self.now;
            self.limiter.ask(place(), object, level, text, now).map(|line| line.left_out)
        }

        /// Time goes on; the counts that are told meanwhile.
        fn wait(&mut self, time: Duration) -> Vec<u64> {
            self.now += time;
            let now = self.start + self.now;
            self.limiter.take_due(Some(now)).iter().map(|line| line.left_out).collect()
        }
    }

    #[test]
    fn a_link_that_flaps_all_day_leaves_a_few_lines() {
        let mut log = Log::new();
        let (mut lines, mut told, mut counted) = (0, 0, 0);
        for flap in 0..86_400u64 {
            let text = if flap % 2 == 0 { "port 'p' is down" } else { "port 'p' is up" };
            if let Some(left_out) = log.line(Level::INFO, "p", text) {
                lines += 1;
                counted += 1 + left_out;
            }
            if flap < u64::from(BURST) {
                assert_eq!(lines, flap + 1, "the first are all there");
            }
            for left_out in log.wait(Duration::from_secs(1)) {
                told += 1;
                counted += left_out;
            }
        }
        counted += log.limiter.take_due(None).iter().map(|line| line.left_out).sum::<u64>();
        assert_eq!(counted, 86_400, "each was written or counted");
        assert!(lines + told < 3 * 1440, "{lines} lines and {told} counts");
    }

    #[test]
    fn the_first_line_about_each_of_many_appears() {
        let mut log = Log::new();
        for number in 0..4096 {
            assert_eq!(log.line(Level::INFO, &number.to_string(), "is up"), Some(0));
        }
    }

    #[test]
    fn an_error_that_goes_on_is_one_line_and_then_a_count() {
        let mut log = Log::new();
        assert_eq!(log.line(Level::WARN, "", "cannot accept"), Some(0));
        let mut told = Vec::new();
        for _ in 0..99 {
            told.extend(log.wait(Duration::from_millis(50)));
            assert_eq!(log.line(Level::WARN, "", "cannot accept"), None);
        }
        assert_eq!(told, [] as [u64; 0]);
        assert_eq!(log.wait(Duration::from_secs(5)), [99], "told although nothing more comes");
        assert_eq!((log.wait(Duration::from_secs(60)), log.limiter.due()), (Vec::new(), None));
        assert_eq!(log.line(Level::WARN, "", "cannot accept"), Some(0), "another time is another line");
        assert_eq!(log.line(Level::WARN, "", "it is something else"), Some(0));
    }

    #[test]
    fn what_was_left_out_is_told_with_the_next_line() {
        let mut log = Log::new();
        for _ in 0..BURST {
            assert_eq!(log.line(Level::INFO, "p", "x"), Some(0));
        }
        assert_eq!(log.line(Level::INFO, "p", "x"), None);
        log.now += REFILL;
        assert_eq!(log.line(Level::INFO, "p", "x"), Some(1));
        assert_eq!(log.line(Level::INFO, "p", "x"), None);
        assert_eq!(log.line(Level::INFO, "q", "x"), Some(0), "another object has lines of its own");
    }

    #[test]
    fn memory_is_bounded() {
        let mut log = Log::new();
        let written =
            (0..2 * SUBJECTS_MAX).filter(|number| log.line(Level::INFO, &number.to_string(), "x").is_some());
        assert_eq!(written.count(), PLACE_MAX + BURST as usize);
        assert_eq!(log.limiter.accounts.len(), PLACE_MAX + 1);
        // What fills one place hides nothing of another.
        let now = log.start + log.now;
        for port in 0..100 {
            let told = log.limiter.ask(another_place(), &port.to_string(), Level::INFO, "down", now);
            assert!(told.is_some(), "port {port}");
        }
        log.wait(FORGET * 2);
        assert_eq!(log.line(Level::INFO, "new", "x"), Some(0));
        assert!(log.limiter.accounts.len() < 3);
        // A long line in parts of characters.
        let long = "ä".repeat(TEXT_MAX_BYTES);
        assert_eq!(log.line(Level::INFO, "long", &long), Some(0));
    }
}
