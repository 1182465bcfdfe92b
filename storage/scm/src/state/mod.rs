//! The core: applies logged commands to rows. Pure: no clock, no randomness, no settings.
//!
//! One file a noun. Apply validates again what `prepare` saw, since the state may have moved in between; each command
//! may be applied twice with the effect of once.
//!
//! Not here: liveness and reports (`prepare`), the calls (`server`).

mod container;
mod datanode;
mod deletion;
mod lease;
mod pipeline;
mod replica;
#[cfg(test)]
mod tests;
mod token_key;

use consensus::{Entry, Rows, StateMachine, StoreError, Table, WriteBatch};
use wire::clock::UnixMs;
use wire::scm::{Degraded, Lease};

pub(crate) use self::container::{address, locate, replicas_min};
pub(crate) use self::token_key::live_keys;
use crate::command::Command;
use crate::schema::{META, TABLES, load, meta, save};

/// The answer of apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Done, or done before.
    Done,
    /// The lease granted, or granted before.
    Lease(Box<Lease>),
    /// No open container fits and the command names no datanodes for a new one.
    NoContainer,
    /// An earlier part of the batch is missing: another batch of the same number came in between.
    OutOfOrder,
    /// Whether a writer may leave out who did not acknowledge.
    Degraded(Degraded),
    /// The state has moved on, or never allowed it: nothing was done.
    Refused(&'static str),
}

/// SCM as a state machine. All of its state is in rows.
#[derive(Debug, Default)]
pub(crate) struct ScmState;

impl StateMachine for ScmState {
    type Reply = Reply;
    const TABLES: &'static [Table] = TABLES;

    fn apply(&mut self, batch: &mut WriteBatch<'_>, entry: Entry<'_>) -> Result<Reply, StoreError> {
        let command = Command::decode(entry.command)
            .expect("the log holds commands of this version or an older one; a newer binary wrote this");
        apply(batch, command)
    }
}

/// Applies one command.
pub(crate) fn apply(batch: &mut WriteBatch<'_>, command: Command) -> Result<Reply, StoreError> {
    match command {
        Command::GrantLease(command) => lease::grant(batch, command),
        Command::ReturnLeases(command) => lease::give_back(batch, &command.leases),
        Command::CloseContainers(command) => container::close(batch, &command),
        Command::SealContainer(command) => container::seal(batch, &command),
        Command::LogDeletions(command) => deletion::log(batch, command),
        Command::PassDeletions(command) => deletion::pass(batch, &command),
        Command::RegisterDatanode(command) => datanode::register(batch, command),
        Command::AddTokenKey(command) => token_key::add(batch, &command),
        Command::DegradeContainer(command) => container::degrade(batch, &command),
        Command::RetireContainer(command) => container::retire(batch, command.container),
        Command::RaiseContainers(command) => container::raise(batch, &command),
        Command::InvalidateReplicas(command) => replica::invalidate(batch, &command),
        Command::BeginCopy(command) => replica::begin_copy(batch, &command),
        Command::EndCopy(command) => replica::end_copy(batch, &command),
        Command::DeleteReplicas(command) => replica::delete(batch, &command),
        Command::ForgetReplicas(command) => replica::forget(batch, &command),
        Command::SetDatanode(command) => datanode::set(batch, &command),
        Command::ForgetDatanode(command) => datanode::forget(batch, &command),
    }
}

/// Gives the next number of a counter in [`META`]. Numbers begin at 1.
fn next_number(batch: &mut WriteBatch<'_>, name: &[u8]) -> Result<u64, StoreError> {
    let number = last_number(batch, name)? + 1;
    save(batch, META, name, &number)?;
    Ok(number)
}

/// The last number given; 0 if none.
fn last_number(rows: &impl Rows, name: &[u8]) -> Result<u64, StoreError> {
    Ok(load(rows, META, name)?.unwrap_or(0))
}

/// State's time: the command's, but never before an earlier command's.
fn advance_clock(batch: &mut WriteBatch<'_>, now_ms: UnixMs) -> Result<UnixMs, StoreError> {
    let last_ms = last_number(batch, meta::CLOCK)?;
    if now_ms > last_ms {
        save(batch, META, meta::CLOCK, &now_ms)?;
    }
    Ok(now_ms.max(last_ms))
}
