//! A loop that owns its state and takes inputs from a bounded queue.
//!
//! In production it has a thread of its own, so that it may block in fsync. When simulated it is a task. It never waits
//! by itself: time reaches it as inputs (see [`ticks`]).
//!
//! Invariants:
//! * Inputs are taken in order; all that wait are handed over together.
//!
//! Not here: what the inputs mean.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::{node, task};

/// Inputs handed over together at most.
const INPUTS_MAX: usize = 4096;

/// Resolves when the loop has ended and its state is dropped.
pub type Ended = oneshot::Receiver<()>;

/// Starts a loop named `name`. `step` gets the inputs that wait, at least one, and empties the list; it ends the loop
/// with `Break`. When all senders are gone the loop ends too.
///
/// # Errors
/// If the machine gives no thread.
pub fn start<T: Send + 'static>(
    name: &str,
    mut inbox: mpsc::Receiver<T>,
    mut step: impl FnMut(&mut Vec<T>) -> ControlFlow<()> + Send + 'static,
) -> io::Result<Ended> {
    let (ended, receiver) = oneshot::channel();
    if node::current().is_some() {
        task::spawn(async move {
            let mut inputs = Vec::new();
            while inbox.recv_many(&mut inputs, INPUTS_MAX).await > 0 {
                if step(&mut inputs).is_break() {
                    break;
                }
                inputs.clear();
            }
            drop(step);
            let _ = ended.send(());
        });
        return Ok(receiver);
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut inputs = Vec::new();
        while inbox.blocking_recv_many(&mut inputs, INPUTS_MAX) > 0 {
            if step(&mut inputs).is_break() {
                break;
            }
            inputs.clear();
        }
        drop(step);
        let _ = ended.send(());
    })?;
    Ok(receiver)
}

/// Sends `tick()` to a loop at every `interval` until the loop has ended. A tick that finds the queue half full is left out: a
/// loop that is behind has no use for stale time, and its other inputs need the room. Needs a runtime.
pub fn ticks<T: Send + 'static>(
    sender: mpsc::WeakSender<T>,
    interval: Duration,
    tick: impl Fn() -> T + Send + 'static,
) {
    task::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(sender) = sender.upgrade() else { return };
            if sender.capacity() < sender.max_capacity() / 2 {
                continue;
            }
            if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(tick()) {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn adds_up_and_ends() {
        let (sender, inbox) = mpsc::channel(16);
        let sum = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&sum);
        let ended = start("sum", inbox, move |inputs: &mut Vec<u32>| {
            for input in inputs.drain(..) {
                counted.fetch_add(input, Ordering::SeqCst);
                if input == 0 {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        for input in [1, 2, 3, 0] {
            sender.send(input).await.unwrap();
        }
        ended.await.unwrap();
        assert_eq!(sum.load(Ordering::SeqCst), 6);
    }

    #[tokio::test]
    async fn on_a_thread() {
        adds_up_and_ends().await;
    }

    #[tokio::test]
    async fn as_a_task_of_a_simulated_node() {
        node::scope(Some(1), adds_up_and_ends()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn time_leaves_room_for_other_inputs() {
        let (sender, mut inbox) = mpsc::channel::<u32>(16);
        ticks(sender.downgrade(), Duration::from_secs(1), || 0);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        for input in 1..=7 {
            sender.try_send(input).unwrap();
        }
        let mut inputs = Vec::new();
        inbox.recv_many(&mut inputs, 16).await;
        assert_eq!(inputs.iter().filter(|input| **input > 0).count(), 7);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(inbox.recv().await, Some(0), "time goes on when there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn killed_node_takes_nothing_more() {
        let (sender, inbox) = mpsc::channel::<()>(16);
        let steps = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&steps);
        node::enter(Some(2), || {
            ticks(sender.downgrade(), Duration::from_secs(1), || ());
            start("count", inbox, move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                ControlFlow::Continue(())
            })
        })
        .unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        node::kill(2);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(steps.load(Ordering::SeqCst), 2);
    }
}
