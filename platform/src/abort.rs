//! Ending the process when going on would be wrong: after a failed sync, or where an invariant broke.
//!
//! No destructor runs in production. A simulated node ends instead: nothing of it is polled again, what it did not sync
//! may be lost, and the simulator hears why.

use std::cell::RefCell;
use std::panic;

use crate::node::{self, NodeIndex};

thread_local! {
    static ABORTED: RefCell<Vec<(NodeIndex, String)>> = const { RefCell::new(Vec::new()) };
}

/// What a simulated abort unwinds with.
#[derive(Debug)]
pub struct NodeAborted;

/// Ends the process, or the simulated node that is running.
pub fn abort(why: &str) -> ! {
    match node::current() {
        None => std::process::abort(),
        Some(index) => {
            ABORTED.with_borrow_mut(|aborted| aborted.push((index, why.to_owned())));
            node::kill(index);
            panic::panic_any(NodeAborted)
        }
    }
}

/// Nodes that ended themselves since the last call, with the reason. For the simulator.
pub fn take_aborted() -> Vec<(NodeIndex, String)> {
    ABORTED.with_borrow_mut(std::mem::take)
}

/// Whether the node has ended itself since [`take_aborted`] was called. For the simulator.
pub fn has_aborted(node: NodeIndex) -> bool {
    ABORTED.with_borrow(|aborted| aborted.iter().any(|(ended, _)| *ended == node))
}

/// Ends the process if the thread that holds it panics: a server whose one thread died alone answers nothing.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        match node::current() {
            None => std::process::abort(),
            // The panic itself reaches the simulator, which has the last word.
            Some(index) => node::kill(index),
        }
    }
}
