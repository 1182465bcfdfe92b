//! Any order of commands, repeats and lies in reports: ids are never granted twice, numbers never return.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wire::scm::ContainerState;

use super::{Core, Reply, close, delete, give_back, grant, pass, register, seal};
use crate::command::Command;

fn commands() -> impl Strategy<Value = Command> {
    let id = 1..6u64;
    prop_oneof![
        (1..8u64, prop::option::of(id.clone()), 0..4u64, 0..5000u64).prop_map(
            |(request, container, members, now_ms)| {
                let members: Vec<u64> = (1..=members).collect();
                grant(request, container, &members, now_ms)
            }
        ),
        prop::collection::vec(1..20u64, 0..4).prop_map(|leases| give_back(&leases)),
        (id.clone(), 0..5000u64).prop_map(|(container, now_ms)| close(container, now_ms)),
        (id.clone(), 0..4u64).prop_map(|(container, members)| {
            let members: Vec<u64> = (1..=members).collect();
            seal(container, &members)
        }),
        (1..9u64, 0..3u32, id.clone(), prop::collection::vec(1..500u64, 1..4))
            .prop_map(|(batch, part, container, blocks)| delete(batch, part, container, &blocks)),
        (id, prop::collection::vec(0..12u64, 0..4)).prop_map(|(container, through)| {
            let done: Vec<_> = (1..).zip(through).collect();
            pass(container, &done)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn ids_and_numbers_never_return(commands in prop::collection::vec(commands(), 1..60)) {
        let mut core = Core::new();
        for node in 1..=3 {
            core.apply(&register(node));
        }
        let mut granted: BTreeMap<u64, BTreeSet<(u64, u64, u64)>> = BTreeMap::new();
        let mut states: BTreeMap<u64, (u8, u64, u64)> = BTreeMap::new();
        for command in &commands {
            if let Reply::Lease(lease) = core.apply_twice(command) {
                granted.entry(lease.container.0).or_default().insert((lease.first.0, lease.count, lease.id.0));
            }
            let view = core.store.view();
            for id in 1..=9 {
                let Some(row) = crate::schema::container(&view, wire::ids::ContainerId(id)).unwrap() else {
                    continue;
                };
                let rank = match row.state {
                    ContainerState::Open => 0,
                    ContainerState::Closing => 1,
                    ContainerState::Closed => 2,
                    ContainerState::Deleting | ContainerState::Deleted => 3,
                };
                let now = (rank, row.next_local.0, row.last_deletion);
                let before = states.insert(id, now).unwrap_or((0, 0, 0));
                prop_assert!(before.0 <= now.0 && before.1 <= now.1 && before.2 <= now.2, "{before:?} {now:?}");
                prop_assert!(row.purged_deletion <= row.last_deletion);
                // What is kept is exactly what is not passed: no gap, nothing beyond.
                let kept: Vec<u64> =
                    core.deletions().keys().filter(|(of, _)| *of == id).map(|(_, number)| *number).collect();
                let expected: Vec<u64> = (row.purged_deletion + 1..=row.last_deletion).collect();
                prop_assert_eq!(kept, expected);
            }
            let active = crate::schema::active_containers(&view).unwrap();
            for (id, (rank, ..)) in &states {
                prop_assert_eq!(active.contains(&wire::ids::ContainerId(*id)), *rank < 2);
            }
        }
        for (container, ranges) in granted {
            let mut next = 1;
            for (first, count, lease) in ranges {
                prop_assert!(first >= next, "container {container} lease {lease} grants {first} again");
                next = first + count;
            }
        }
    }

    #[test]
    fn bytes_that_are_no_command_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Refused or decoded, but never a panic or a huge allocation.
        let _ = Command::decode(&bytes);
    }
}
