//! Chooses which datanodes hold a new container or a copy.
//!
//! Members stand in distinct racks where racks exist. We pick at random among the emptier half rather than the emptiest,
//! since all allocators would agree on the latter.
//!
//! Invariants:
//! * No datanode is chosen twice.
//! * The same inputs and seed give the same choice; this module reads no clock and no RNG.
//!
//! Not here: who may be written to (`prepare`), what is copied (`replication`).

use std::collections::BTreeSet;

use wire::block::Replication;
use wire::ids::DatanodeId;

use crate::state::replicas_min;

/// A datanode that may be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: DatanodeId,
    pub(crate) available_bytes: u64,
    /// Empty if none was named: such nodes share no rack with anybody.
    pub(crate) rack: String,
}

/// How many replicas a container should have.
pub(crate) const fn replicas_wanted(replication: Replication) -> usize {
    match replication {
        Replication::One => 1,
        Replication::Three => 3,
    }
}

/// The members of a new container, or a message that says what is awaited.
pub(crate) fn place(
    replication: Replication,
    candidates: Vec<Candidate>,
    seed: u64,
) -> Result<Vec<DatanodeId>, String> {
    let wanted = replicas_wanted(replication);
    if candidates.len() < replicas_min(replication) {
        return Err(awaited(replication, candidates.len()));
    }
    Ok(choose(wanted, candidates, BTreeSet::new(), seed))
}

/// Up to `wanted` of the candidates, beside members in the racks `taken`.
pub(crate) fn choose(
    wanted: usize,
    mut candidates: Vec<Candidate>,
    mut taken: BTreeSet<String>,
    seed: u64,
) -> Vec<DatanodeId> {
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.available_bytes), candidate.id));
    let mut random = SplitMix(seed);
    let mut members = Vec::with_capacity(wanted);
    while members.len() < wanted && !candidates.is_empty() {
        let is_new_rack = |candidate: &Candidate| !taken.contains(&candidate.rack);
        let has_new_rack = candidates.iter().any(is_new_rack);
        let eligible: Vec<usize> =
            (0..candidates.len()).filter(|at| !has_new_rack || is_new_rack(&candidates[*at])).collect();
        // The emptier half, but no fewer than are still wanted: else the last choices would not be random.
        let emptier = eligible.len().div_ceil(2).max(wanted - members.len()).min(eligible.len());
        let chosen = candidates.remove(eligible[random.below(emptier)]);
        if !chosen.rack.is_empty() {
            taken.insert(chosen.rack);
        }
        members.push(chosen.id);
    }
    members
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
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
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
            rack: String::new(),
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
            assert!(members.iter().all(|id| id.0.as_u128() > 2), "{members:?} of the fullest quarter");
        }
    }

    #[test]
    fn racks_are_distinct_while_there_are_more() {
        for seed in 0..200 {
            let mut nodes = candidates(9);
            for (node, rack) in nodes.iter_mut().zip(["a", "a", "a", "a", "a", "a", "b", "b", "c"]) {
                node.rack = rack.to_owned();
            }
            let rack_of = |id: DatanodeId| match id.0.as_u128() {
                1..=6 => 'a',
                7 | 8 => 'b',
                _ => 'c',
            };
            let members = place(Replication::Three, nodes.clone(), seed).unwrap();
            let racks: BTreeSet<char> = members.iter().map(|id| rack_of(*id)).collect();
            assert_eq!(racks.len(), 3, "{members:?}");
            // Racks that run out are used again rather than leaving a container short.
            nodes.truncate(6);
            assert_eq!(place(Replication::Three, nodes, seed).unwrap().len(), 3);
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
