//! The life of a replica.
//!
//! ```text
//!   begin_copy()          end_copy()            invalidate()
//!  ------------> COPYING -----------> VALID -----------------> INVALID
//!                   |                   |                         |
//!                   +-------------------+------delete()-----------+----> DELETING --forget()--> no row
//! ```
//!
//! Invariants:
//! * Every VALID replica holds every acknowledged block of its container: only replicas of CLOSED containers are copied,
//!   and a copy becomes VALID only while the replica it was copied from is.
//! * No command takes a container's last VALID replica, but for a container that OM has declared empty.
//! * A datanode has one replica of a container at most.
//! * A generation is given once.
//! * A replica is dropped only after this was logged.
//!
//! Not here: which replica to copy or drop (`replication`).

use consensus::{StoreError, WriteBatch};
use wire::ids::{DatanodeId, Generation};
use wire::scm::ContainerState;

use super::container::save_container;
use super::{Reply, advance_clock};
use crate::command::{BeginCopy, DeleteReplicas, EndCopy, ForgetReplicas, InvalidateReplicas};
use crate::schema::{ContainerRow, ReplicaRow, ReplicaState, container};

/// VALID -> INVALID, but for the last. Writers of an open container would write on without them, so it is closed.
pub(super) fn invalidate(
    batch: &mut WriteBatch<'_>,
    command: &InvalidateReplicas,
) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    let mut is_changed = false;
    for (datanode, generation) in &command.replicas {
        is_changed |= row.change_valid(*datanode, *generation, ReplicaState::Invalid);
    }
    if is_changed {
        let now_ms = advance_clock(batch, command.now_ms)?;
        if row.state == ContainerState::Open {
            row.close(now_ms);
        }
        save_container(batch, command.container, &row)?;
    }
    Ok(Reply::Done)
}

/// Logs a COPYING replica on a datanode that has none, or an INVALID one, which the copy replaces.
pub(super) fn begin_copy(batch: &mut WriteBatch<'_>, command: &BeginCopy) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else {
        return Ok(Reply::Refused("this container was never opened"));
    };
    let is_copyable = row.state == ContainerState::Closed
        || (row.state == ContainerState::Closing && wire::planted::is_on("copy_from_unsealed"));
    if !is_copyable {
        return Ok(Reply::Refused("only sealed containers are copied"));
    }
    if !row.is_valid(command.source) {
        return Ok(Reply::Refused("the source is not valid"));
    }
    let there = row.replicas.iter().find(|replica| replica.datanode == command.target);
    if there.is_some_and(|replica| replica.state != ReplicaState::Invalid) {
        return Ok(Reply::Refused("the target has a replica"));
    }
    row.replicas.retain(|replica| replica.datanode != command.target);
    let generation = Generation(row.last_generation().0 + 1);
    row.last_generation = generation;
    row.replicas.push(ReplicaRow {
        datanode: command.target,
        generation,
        index: 0,
        state: ReplicaState::Copying,
        source: Some(command.source),
    });
    save_container(batch, command.container, &row)?;
    Ok(Reply::Done)
}

/// COPYING -> VALID; or DELETING if the source is VALID no more, or the copy is behind what others have forgotten.
pub(super) fn end_copy(batch: &mut WriteBatch<'_>, command: &EndCopy) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    let life = (command.datanode, command.generation);
    let Some(place) = row.replicas.iter().position(|replica| replica.life() == life) else {
        return Ok(Reply::Done);
    };
    if row.replicas[place].state != ReplicaState::Copying {
        return Ok(Reply::Done);
    }
    let has_source = row.replicas[place].source.is_some_and(|source| row.is_valid(source));
    let is_good = has_source && command.deletion_done >= row.purged_deletion;
    let replica = &mut row.replicas[place];
    replica.state = if is_good { ReplicaState::Valid } else { ReplicaState::Deleting };
    replica.source = None;
    save_container(batch, command.container, &row)?;
    Ok(Reply::Done)
}

/// Anything -> DELETING, but for the last VALID replica.
pub(super) fn delete(batch: &mut WriteBatch<'_>, command: &DeleteReplicas) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    let mut is_changed = false;
    for life in &command.replicas {
        is_changed |= row.change_valid(life.0, life.1, ReplicaState::Deleting);
        let other = row.replicas.iter_mut().find(|replica| replica.life() == *life);
        if let Some(replica) = other
            && matches!(replica.state, ReplicaState::Invalid | ReplicaState::Copying)
        {
            replica.state = ReplicaState::Deleting;
            replica.source = None;
            is_changed = true;
        }
    }
    if is_changed {
        save_container(batch, command.container, &row)?;
    }
    Ok(Reply::Done)
}

/// Strikes off DELETING replicas that are gone.
pub(super) fn forget(batch: &mut WriteBatch<'_>, command: &ForgetReplicas) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    let before = row.replicas.len();
    row.replicas.retain(|replica| {
        replica.state != ReplicaState::Deleting || !command.replicas.contains(&replica.life())
    });
    if row.replicas.len() < before {
        row.finish_deleting();
        save_container(batch, command.container, &row)?;
    }
    Ok(Reply::Done)
}

impl ReplicaRow {
    /// What tells it from every other replica there ever was of its container.
    pub(crate) fn life(&self) -> (DatanodeId, Generation) {
        (self.datanode, self.generation)
    }
}

impl ContainerRow {
    /// Whether this replica holds every acknowledged block.
    pub(crate) fn is_valid(&self, life: (DatanodeId, Generation)) -> bool {
        self.valid().any(|replica| replica.life() == life)
    }

    /// Changes a VALID replica, unless it is the last one.
    fn change_valid(&mut self, datanode: DatanodeId, generation: Generation, state: ReplicaState) -> bool {
        let is_last = self.valid().count() <= 1 && !wire::planted::is_on("last_valid_marked_invalid");
        let found = self
            .replicas
            .iter_mut()
            .find(|replica| replica.life() == (datanode, generation) && replica.state == ReplicaState::Valid);
        match found {
            Some(replica) if !is_last => {
                replica.state = state;
                true
            }
            _ => false,
        }
    }
}
