//! Log lines that anybody can cause, and so as often as they like.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in a row.
const BURST: u32 = 10;
/// Time for another one.
const PACE: Duration = Duration::from_secs(6);

/// Bounds how often something is told: ten times in a row, then once in six seconds.
#[derive(Debug, Default)]
pub struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When all of [`BURST`] may be told again.
    whole_again: Option<Instant>,
    left_out: u64,
}

impl Told {
    /// Whether it is to be told now; with it, how often it was not since the last time.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whole_again = state.whole_again.map_or(now, |then| then.max(now)) + PACE;
        if whole_again > now + PACE * BURST {
            state.left_out += 1;
            return None;
        }
        state.whole_again = Some(whole_again);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_row_and_then_one_in_six_seconds() {
        let (told, began) = (Told::default(), Instant::now());
        let tries = |at: Duration| (0..100).filter_map(|_| told.due_at(began + at)).collect::<Vec<_>>();
        assert_eq!(tries(Duration::ZERO), [0; 10]);
        assert!(tries(Duration::from_secs(5)).is_empty());
        assert_eq!(tries(Duration::from_secs(6)), [190]);
        assert_eq!(tries(Duration::from_secs(13)), [99]);
        assert_eq!(tries(Duration::from_secs(1000)).len(), 10);
    }
}
