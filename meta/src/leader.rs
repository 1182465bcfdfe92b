//! Terms of leadership: what a leader knows and does begins anew with each, and ends with it.
//!
//! ```text
//!   leadership changes --> this replica leads term T --> fresh LeaderMemory of T, workers start
//!                      --> it does not, or leads T'  --> workers are dropped where they stand
//! ```
//!
//! Dropping a worker between two steps is harmless: every step is a logged command that settles itself in apply, or a call
//! of SCM that SCM answers the same when it comes again (see `worker`). A command that a leader proposed in its term stands
//! in the log before everything of a later term, or nowhere.
//!
//! Not here: who leads (consensus).

use std::sync::Weak;

use tokio::sync::watch;

use crate::interim::Leadership;
use crate::server::Om;

/// Starts and stops the workers as leadership comes and goes, until told to stop or nobody needs this OM any more.
pub(crate) async fn follow(
    om: Weak<Om>,
    mut leadership: watch::Receiver<Leadership>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let begun = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            begun = leadership.wait_for(|now| now.is_leading) => begun.map(|now| now.term),
        };
        let Ok(term) = begun else { return };
        let Some(leading) = om.upgrade() else { return };
        let memory = leading.memory_of(term);
        leading.workers().start(&leading, &memory);
        drop(leading);
        tracing::info!(term, "om leads");
        let is_stopping = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            ended = leadership.wait_for(|now| !now.is_leading || now.term != term) => ended.is_err(),
        };
        // Nobody left: its workers hold no more than a weak reference, and end by themselves.
        let Some(led) = om.upgrade() else { return };
        led.workers().stop().await;
        if is_stopping {
            return;
        }
        tracing::info!(term, "om leads no longer");
    }
}
