//! How far this replica's clock is off its peers': each packet says when it was sent.
//!
//! Who leads stamps commands with its time, and what waits for time (an upload nobody completed, a block whose grace is
//! over) would be done too early by a leader whose clock runs ahead. So a leader that is off its peers' median leaves that to
//! be done later, or by another. A packet is on its way for milliseconds; the bound is half a minute.
//!
//! Invariants:
//! * One peer whose clock is wrong convinces nobody: of two middle values the one nearer to this clock counts.
//!
//! Not here: what is left undone (the services' part).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::Driver;

/// A clock that is further off than this is not acted by.
const OFF_MAX_MS: u64 = 30_000;

/// What a peer said longer ago than so many ticks says nothing of now.
const FRESH_TICKS: u64 = 100;

/// How far peers' clocks are ahead of ours, in ms, and when they said so.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    ahead: BTreeMap<u64, (i64, u64)>,
}

impl Clocks {
    /// A packet of `peer` was sent at `sent_ms` by its clock and arrived at `now_ms` by ours. 0 says nothing.
    pub(super) fn note(&mut self, peer: u64, sent_ms: u64, now_ms: u64, tick: u64) {
        if sent_ms != 0 {
            let ahead = i64::try_from(i128::from(sent_ms) - i128::from(now_ms)).unwrap_or(i64::MAX);
            self.ahead.insert(peer, (ahead, tick));
        }
    }

    /// How far we are off the median of those who have spoken of late.
    fn off_ms(&mut self, tick: u64) -> u64 {
        self.ahead.retain(|_, (_, heard)| *heard + FRESH_TICKS > tick);
        let mut all: Vec<i64> = self.ahead.values().map(|(ahead, _)| *ahead).collect();
        all.sort_unstable();
        let middle = |at: usize| all.get(at).map_or(0, |ahead| ahead.unsigned_abs());
        match all.len() {
            0 => 0,
            count => middle((count - 1) / 2).min(middle(count / 2)),
        }
    }
}

impl<R: Send + 'static> Driver<R> {
    /// Compares clocks, and says so once when ours is off.
    pub(super) fn compare_clocks(&mut self) {
        let members = &self.membership;
        self.clocks.ahead.retain(|peer, _| members.contains(*peer));
        let off_ms = self.clocks.off_ms(self.now);
        let is_off = off_ms > OFF_MAX_MS;
        if self.shared.clock_is_off.swap(is_off, Ordering::AcqRel) != is_off {
            let group = &self.shared.name;
            if is_off {
                tracing::error!(
                    group,
                    off_ms,
                    "this node's clock is off its peers': set it; nothing is done by it"
                );
            } else {
                tracing::info!(group, "this node's clock agrees with its peers' again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off(ahead: &[i64]) -> u64 {
        let mut clocks = Clocks::default();
        for (peer, ahead) in (2..).zip(ahead) {
            clocks.note(peer, (1_000_000 + ahead) as u64, 1_000_000, 5);
        }
        clocks.off_ms(6)
    }

    #[test]
    fn the_median_counts_and_one_peer_convinces_nobody() {
        assert_eq!(off(&[]), 0);
        assert_eq!(off(&[40_000]), 40_000);
        assert_eq!(off(&[3_600_000, 10]), 10);
        assert_eq!(off(&[-900_000, -3]), 3);
        assert_eq!(off(&[-60_000, -60_010]), 60_000);
        assert_eq!(off(&[5, 999_000, 999_001, -7]), 5);
    }

    #[test]
    fn what_was_said_long_ago_says_nothing() {
        let mut clocks = Clocks::default();
        clocks.note(2, 1_000_000, 1, 5);
        clocks.note(3, 0, 1, 5);
        assert_eq!(clocks.off_ms(5), 999_999);
        assert_eq!(clocks.off_ms(5 + FRESH_TICKS), 0);
    }
}
