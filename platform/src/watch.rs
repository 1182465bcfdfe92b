//! One value that many wait for: as tokio's `watch`, but waiters wake in the order in which they came.
//!
//! Tokio's spreads its waiters over several lists and picks by chance, which makes two runs of one simulated seed differ.
//! Here a waiter that finds nothing new stands in one queue. What is awaited are terms, phases, ends: rare, so one queue
//! is no bottleneck.
//!
//! Invariants:
//! * A change between a look at the value and the wait is not missed.
//! * When all senders are gone, waits end: with the value if it is as wanted, else with [`Closed`].
//!
//! Not here: queues of inputs (see `actor`).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Makes a value, with one sender and one receiver.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// Nobody is left who could change the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody is left who could change the value")
    }
}

impl std::error::Error for Closed {}

#[derive(Debug)]
struct Shared<T> {
    versioned: Mutex<Versioned<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

#[derive(Debug)]
struct Versioned<T> {
    version: u64,
    value: T,
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Looks at the value and waits for changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// What was looked at last by [`Receiver::changed`] and [`Receiver::mark_seen`].
    seen: u64,
}

impl<T> Sender<T> {
    /// A value without receivers.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            versioned: Mutex::new(Versioned { version: 0, value }),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
        }))
    }

    /// The value, locked: let go of it before anything else is done.
    pub fn borrow(&self) -> impl Deref<Target = T> + '_ {
        MutexGuard::map(self.0.versioned.lock(), |versioned| &mut versioned.value)
    }

    /// A receiver that has seen the value of now.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.versioned.lock().version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    /// Sets the value and wakes all; answers the old one.
    pub fn send_replace(&self, value: T) -> T {
        let mut old = value;
        self.send_modify(|known| std::mem::swap(known, &mut old));
        old
    }

    /// Changes the value and wakes all.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Wakes all if `change` says that it changed the value; answers what it says.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut versioned = self.0.versioned.lock();
        let is_changed = change(&mut versioned.value);
        if is_changed {
            versioned.version += 1;
        }
        drop(versioned);
        if is_changed {
            self.0.changed.notify_waiters();
        }
        is_changed
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The value, locked: let go of it before anything else is done.
    pub fn borrow(&self) -> impl Deref<Target = T> + '_ {
        MutexGuard::map(self.shared.versioned.lock(), |versioned| &mut versioned.value)
    }

    /// The next [`Receiver::changed`] waits for what is newer than now.
    pub fn mark_seen(&mut self) {
        self.seen = self.shared.versioned.lock().version;
    }

    /// Waits for a value that was not seen.
    ///
    /// # Errors
    /// If nobody is left who could change it.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.changed.notified();
            let is_closed = self.is_closed();
            let version = self.shared.versioned.lock().version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Waits until the value is as wanted, and answers it. It counts as seen.
    ///
    /// # Errors
    /// If nobody is left who could change it.
    pub async fn wait_for(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Result<T, Closed>
    where
        T: Clone,
    {
        loop {
            let notified = self.shared.changed.notified();
            let is_closed = self.is_closed();
            {
                let versioned = self.shared.versioned.lock();
                self.seen = versioned.version;
                if is_wanted(&versioned.value) {
                    return Ok(versioned.value.clone());
                }
            }
            if is_closed {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Read before the value, so that the last change of the last sender is not missed.
    fn is_closed(&self) -> bool {
        self.shared.senders.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_in_the_order_in_which_they_came() {
        let (sender, receiver) = channel(0_u32);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..64 {
            let (mut receiver, order) = (receiver.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                receiver.wait_for(|value| *value == 2).await.unwrap();
                order.lock().push(number);
            }));
        }
        // The clock goes on when nobody has anything to do any more.
        tokio::time::sleep(Duration::from_millis(1)).await;
        sender.send_replace(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        sender.send_replace(2);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..64).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_before_the_wait_counts() {
        let (sender, mut receiver) = channel("old");
        assert_eq!(sender.send_replace("new"), "old");
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), "new");
        assert_eq!(receiver.wait_for(|value| *value == "new").await, Ok("new"));
        sender.send_modify(|value| *value = "newer");
        receiver.mark_seen();
        assert!(!sender.send_if_modified(|_| false));
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed), "what was seen is no change");
    }

    #[tokio::test]
    async fn the_last_value_outlives_its_sender() {
        let (sender, mut receiver) = channel(1);
        let waiter = tokio::spawn(async move {
            let first = receiver.wait_for(|value| *value == 2).await;
            (first, receiver.wait_for(|value| *value == 3).await)
        });
        tokio::task::yield_now().await;
        sender.send_replace(2);
        drop(sender);
        assert_eq!(waiter.await.unwrap(), (Ok(2), Err(Closed)));
    }
}
