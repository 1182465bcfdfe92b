//! Terms of leadership, one after the other: what a daemon does only while its replica leads.
//!
//! ```text
//!   leadership changes --> this replica leads term T --> `begun` answers T, the daemon sets to work
//!                      --> it does not, or leads T'  --> `ended` answers, the daemon drops that work
//! ```
//!
//! A term that comes and goes unseen is passed over: whoever follows looks at what holds now.
//!
//! Invariants:
//! * `begun` answers only once an entry of the term is applied here: what the daemon reads then is whole.
//! * After `Follower::stop` nothing that it started runs any more.
//!
//! Not here: who leads (`driver`), what a leader knows and does (the daemons).

use std::future::Future;

use parking_lot::Mutex;
use platform::watch;
use tokio::task::JoinHandle;

use crate::group::Leadership;

/// The terms that this replica leads.
pub struct Terms {
    leadership: watch::Receiver<Leadership>,
    stop: watch::Receiver<bool>,
}

impl Terms {
    /// Waits until the replica leads. None if nothing is to be followed any more: told to stop, or the group is gone.
    pub async fn begun(&mut self) -> Option<u64> {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => None,
            begun = self.leadership.wait_for(|now| now.is_leading) => begun.ok().map(|now| now.term),
        }
    }

    /// Waits until the replica no longer leads `term`. False if nothing is to be followed any more.
    pub async fn ended(&mut self, term: u64) -> bool {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => false,
            ended = self.leadership.wait_for(|now| !now.is_leading || now.term != term) => ended.is_ok(),
        }
    }
}

/// The task of a daemon that goes through its [`Terms`], and its end.
#[derive(Default)]
pub struct Follower {
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Follower {
    /// Starts the task: once, when what it follows for is whole.
    pub fn start<F>(&self, leadership: watch::Receiver<Leadership>, follow: impl FnOnce(Terms) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let terms = Terms { leadership, stop: self.stop.subscribe() };
        *self.task.lock() = Some(platform::task::spawn_vital(follow(terms)));
    }

    /// Ends the task and waits for its end.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task {
            // A panic ends the process, or is the simulator's to judge; log and state are closed in order all the same.
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// More than any test here tells.
    const TERMS_MAX: usize = 16;

    fn leads(term: u64, is_leading: bool) -> Leadership {
        Leadership { term, is_leading, leader: is_leading.then_some(1) }
    }

    fn follow() -> (Follower, watch::Sender<Leadership>, mpsc::Receiver<(u64, bool)>) {
        let (sender, leadership) = watch::channel(leads(1, false));
        let (told, terms) = mpsc::channel(TERMS_MAX);
        let follower = Follower::default();
        follower.start(leadership, |mut terms| async move {
            while let Some(term) = terms.begun().await {
                told.send((term, true)).await.unwrap();
                let goes_on = terms.ended(term).await;
                told.send((term, false)).await.unwrap();
                if !goes_on {
                    return;
                }
            }
        });
        (follower, sender, terms)
    }

    #[tokio::test]
    async fn every_term_begins_and_ends() {
        let (follower, leadership, mut terms) = follow();
        leadership.send_replace(leads(2, true));
        assert_eq!(terms.recv().await, Some((2, true)));
        leadership.send_replace(leads(2, false));
        assert_eq!(terms.recv().await, Some((2, false)));
        leadership.send_replace(leads(4, true));
        assert_eq!(terms.recv().await, Some((4, true)));
        // Lost and won again between two looks: still the end of the one and the begin of the other.
        leadership.send_replace(leads(6, true));
        assert_eq!(terms.recv().await, Some((4, false)));
        assert_eq!(terms.recv().await, Some((6, true)));
        follower.stop().await;
        assert_eq!(terms.recv().await, Some((6, false)));
        assert_eq!(terms.recv().await, None, "the task has ended");
    }

    #[tokio::test]
    async fn a_group_that_is_gone_ends_the_task() {
        let (follower, leadership, mut terms) = follow();
        leadership.send_replace(leads(2, true));
        assert_eq!(terms.recv().await, Some((2, true)));
        drop(leadership);
        assert_eq!(terms.recv().await, Some((2, false)));
        assert_eq!(terms.recv().await, None);
        follower.stop().await;
        follower.stop().await;
    }
}
