//! Chooses which datanodes hold a new container.
//!
//! We pick at random among the emptier half rather than the emptiest, since all allocators would agree on the latter.
//!
//! Invariants:
//! * No datanode is chosen twice.
//! * The same inputs and seed give the same choice; this module reads no clock and no RNG.
//!
//! Not here: racks, which come with the first cluster of several hosts.

use wire::block::Replication;
use wire::ids::DatanodeId;

/// A datanode that may be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: DatanodeId,
    pub(crate) available_bytes: u64,
}

/// How many replicas a container should have.
pub(crate) const fn replicas_wanted(replication: Replication) -> usize {
    match replication {
        Replication::One => 1,
        Replication::Three => 3,
    }
}

/// With fewer live datanodes than this no container is opened: two keep THREE going, under-replicated from birth.
const fn replicas_min(replication: Replication) -> usize {
    match replication {
        Replication::One => 1,
        Replication::Three => 2,
    }
}

/// The members of a new container, or a message that says what is awaited.
pub(crate) fn place(
    replication: Replication,
    mut candidates: Vec<Candidate>,
    seed: u64,
) -> Result<Vec<DatanodeId>, String> {
    let wanted = replicas_wanted(replication);
    if candidates.len() < replicas_min(replication) {
        return Err(awaited(replication, candidates.len()));
    }
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.available_bytes), candidate.id));
    let emptier = candidates.len().div_ceil(2).max(wanted).min(candidates.len());
    candidates.truncate(emptier);
    let mut random = SplitMix(seed);
    let mut members = Vec::with_capacity(wanted);
    while members.len() < wanted && !candidates.is_empty() {
        let choice = random.below(candidates.len());
        members.push(candidates.swap_remove(choice).id);
    }
    Ok(members)
}

/// What an operator reads when too few datanodes live.
pub(crate) fn awaited(replication: Replication, live: usize) -> String {
    let wanted = replicas_wanted(replication);
    let missing = wanted.saturating_sub(live);
    let name = match replication {
        Replication::One => "ONE",
        Replication::Three => "THREE",
    };
    let more = if live == 0 { "" } else { " more" };
    let noun = if missing == 1 { "datanode" } else { "datanodes" };
    format!("replication {name} awaits {missing}{more} {noun} ({live} of {wanted} can be written)")
}

/// SplitMix64 (Steele, Lea, Flood 2014): spreads one drawn number over several choices.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(count: u128) -> Vec<Candidate> {
        let candidate = |number: u128| Candidate {
            id: DatanodeId(uuid::Uuid::from_u128(number)),
            available_bytes: (number as u64) << 30,
        };
        (1..=count).map(candidate).collect()
    }

    #[test]
    fn three_distinct_nodes_of_the_emptier_half() {
        for seed in 0..200 {
            let mut members = place(Replication::Three, candidates(8), seed).unwrap();
            assert_eq!(members, place(Replication::Three, candidates(8), seed).unwrap());
            members.sort();
            members.dedup();
            assert_eq!(members.len(), 3);
            assert!(members.iter().all(|id| id.0.as_u128() > 4), "{members:?} of the fuller half");
        }
    }

    #[test]
    fn two_nodes_carry_three_but_one_does_not() {
        assert_eq!(place(Replication::Three, candidates(2), 1).unwrap().len(), 2);
        let refused = place(Replication::Three, candidates(1), 1).unwrap_err();
        assert_eq!(refused, "replication THREE awaits 2 more datanodes (1 of 3 can be written)");
        let refused = place(Replication::One, Vec::new(), 1).unwrap_err();
        assert_eq!(refused, "replication ONE awaits 1 datanode (0 of 1 can be written)");
    }
}
