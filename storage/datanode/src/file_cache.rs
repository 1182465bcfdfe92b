//! Bounds the container files that are open at once.
//!
//! First in, first out among sealed containers: open ones are being written and stay. A closed file is opened again by
//! its next reader; readers under way keep theirs.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::container::Container;

/// The containers whose files are open, oldest first.
pub(crate) struct FileCache {
    capacity: usize,
    open: Mutex<VecDeque<Weak<Container>>>,
}

impl FileCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), open: Mutex::new(VecDeque::new()) }
    }

    /// `container` has opened its file: closes the oldest ones beyond the capacity.
    pub(crate) fn opened(&self, container: &Arc<Container>) {
        let mut open = self.open.lock();
        open.push_back(Arc::downgrade(container));
        // Each is looked at once at most: all may be open for writing.
        for _ in 0..open.len() {
            if open.len() <= self.capacity {
                break;
            }
            let Some(oldest) = open.pop_front() else { break };
            let Some(oldest_container) = oldest.upgrade() else { continue };
            if Arc::ptr_eq(&oldest_container, container) || !oldest_container.close_file_if_sealed() {
                open.push_back(oldest);
            }
        }
    }
}
