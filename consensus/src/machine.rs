//! What a service gives to be replicated: its tables and its `apply`.

use crate::error::StoreError;
use crate::store::{ReadView, Table, WriteBatch};

/// One committed command.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its place in the log: unique and ascending, with gaps where raft logs entries of its own.
    pub index: u64,
    /// The term in which it was logged.
    pub term: u64,
    /// What the proposer handed over.
    pub command: &'a [u8],
}

/// The deterministic core of a replicated service.
///
/// Pure: the same rows and the same commands give the same rows and the same replies on every replica and at every
/// replay. No clock, no randomness, no configuration that may differ between replicas, no iteration over hash maps.
///
/// A fault must leave nothing half done. So `apply` **reads before it writes**: when it returns an error the rows it
/// wrote are taken back, but its own fields are not.
pub trait StateMachine: Send + 'static {
    /// What a proposer gets back: the outcome or a rejection.
    type Reply: Send + 'static;

    /// Every table, each at the position its [`Table`] names. Append only: the list is checked at open.
    const TABLES: &'static [Table];

    /// Applies one command. A rejection is part of the reply.
    ///
    /// # Errors
    /// A fault. A [`StoreError::Corrupt`] under a sole voter fails this command only; everything else stops the
    /// replica.
    fn apply(&mut self, batch: &mut WriteBatch<'_>, entry: Entry<'_>) -> Result<Self::Reply, StoreError>;

    /// Called once after the last command of a batch, before its transaction commits: for counters that are written
    /// once per batch. How commands fall into batches differs between replicas, so it must not show in the rows.
    ///
    /// # Errors
    /// As [`StateMachine::apply`]; the batch is then taken back and its commands are applied one by one.
    fn finish_batch(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        let _ = batch;
        Ok(())
    }

    /// Called at start with the recovered rows before any command is applied, and again whenever a whole batch was
    /// taken back: forget every cached row and fill the caches from these.
    ///
    /// # Errors
    /// What reading met; the group then does not open.
    fn recovered(&mut self, view: &ReadView) -> Result<(), StoreError> {
        let _ = view;
        Ok(())
    }
}
