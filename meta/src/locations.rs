//! Where containers are: what SCM said lately, bounded.
//!
//! Two generations of entries: when the young one is full it becomes the old one, and what nobody asked for since is
//! forgotten with the next. So the cache needs neither a list nor a clock of its own, and behaves the same in every run.
//!
//! Not here: asking SCM (see `leases`).

use std::collections::BTreeMap;
use std::mem;

use wire::block::ContainerLocation;
use wire::ids::ContainerId;

/// Entries of one generation: both together are about 10 MiB.
const GENERATION_ENTRIES_MAX: usize = 32_768;

/// See the module.
#[derive(Debug)]
pub(crate) struct LocationCache {
    life_ms: u64,
    young: BTreeMap<ContainerId, Entry>,
    old: BTreeMap<ContainerId, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    location: ContainerLocation,
    expires_ms: u64,
}

impl LocationCache {
    /// Entries are believed for `life_ms`.
    pub(crate) fn new(life_ms: u64) -> Self {
        Self { life_ms, young: BTreeMap::new(), old: BTreeMap::new() }
    }

    /// What is known of a container. `now_ms` is steady time.
    pub(crate) fn get(&mut self, container: ContainerId, now_ms: u64) -> Option<ContainerLocation> {
        let entry = match self.young.get(&container) {
            Some(entry) => entry.clone(),
            None => {
                let entry = self.old.remove(&container)?;
                self.put(container, entry.clone());
                entry
            }
        };
        (entry.expires_ms > now_ms).then_some(entry.location)
    }

    /// Remembers what SCM said.
    pub(crate) fn insert(&mut self, location: ContainerLocation, now_ms: u64) {
        let expires_ms = now_ms + self.life_ms;
        self.put(location.container, Entry { location, expires_ms });
    }

    /// Forgets a container.
    pub(crate) fn remove(&mut self, container: ContainerId) {
        self.young.remove(&container);
        self.old.remove(&container);
    }

    fn put(&mut self, container: ContainerId, entry: Entry) {
        if self.young.len() >= GENERATION_ENTRIES_MAX {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(container, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(container: u64) -> ContainerLocation {
        ContainerLocation { container: ContainerId(container), replicas: Vec::new() }
    }

    #[test]
    fn what_was_said_is_believed_for_a_while() {
        let mut cache = LocationCache::new(100);
        cache.insert(location(1), 1000);
        assert_eq!(cache.get(ContainerId(1), 1099), Some(location(1)));
        assert_eq!(cache.get(ContainerId(1), 1100), None);
        assert_eq!(cache.get(ContainerId(2), 1000), None);
        cache.insert(location(1), 2000);
        cache.remove(ContainerId(1));
        assert_eq!(cache.get(ContainerId(1), 2000), None);
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        let mut cache = LocationCache::new(u64::MAX / 2);
        let count = GENERATION_ENTRIES_MAX as u64 * 4;
        for container in 0..count {
            cache.insert(location(container), 0);
            assert!(cache.get(ContainerId(0), 0).is_some(), "asked for all the time");
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION_ENTRIES_MAX);
        assert!(cache.get(ContainerId(1), 0).is_none(), "long forgotten");
    }
}
