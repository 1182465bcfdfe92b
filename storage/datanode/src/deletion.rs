//! Deleting blocks, sealing containers and dropping replicas: what SCM commands.
//!
//! A deletion is four steps, each safe to die after. (1) One durable index commit removes the rows, writes intents with
//! the extents, bars the ids and records the transaction's number; from then on it is reported as done. (2) Writes under
//! way to those ids end in a refusal. (3) When the last reader has gone the extent is punched and the hole synced.
//! (4) The intent is dropped. Space is never given out twice, so punching again after a crash is harmless.
//!
//! Invariants:
//! * An extent is punched only if its header names the block, or is gone already.
//! * A repeat of a deletion transaction changes nothing.

use std::io;
use std::sync::Arc;

use platform::disk::OpenMode;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, Generation, LocalId};

use crate::container::{Container, file_name};
use crate::disk::Disk;
use crate::error::BlockError;
use crate::extent::{PAGE_BYTES, encode_seal};
use crate::index::{Extent, IndexBatch, IndexError};
use crate::metrics;

/// A deletion on its way into the index.
pub(crate) struct Deletion<'a> {
    pub(crate) container: &'a Arc<Container>,
    pub(crate) transaction: u64,
    /// Live blocks that go.
    pub(crate) removed: Vec<(LocalId, Extent)>,
    /// Suspects of those ids: OM owes them to nobody.
    pub(crate) suspects: Vec<(LocalId, Extent)>,
}

/// Deletes `blocks`, durably; the space follows when their readers have gone. Only the transaction after the last one
/// that was done is taken: a number says that all before it were done too.
pub(crate) fn delete_blocks(
    container: &Arc<Container>,
    transaction: u64,
    blocks: &[LocalId],
) -> Result<(), BlockError> {
    let disk = &container.disk;
    disk.check(container.id())?;
    {
        let _writer = disk.index_writer.lock();
        disk.check_index_room()?;
        // Ids are barred before the look: a write that settles later is refused, one that settled is found. OM has freed
        // them for ever, so they stay barred if the rest fails.
        let (recent, suspects) = {
            let mut state = container.state.lock();
            if state.deletion_done >= transaction {
                return Ok(());
            }
            if state.deletion_done + 1 != transaction {
                return Err(BlockError::Refused(container.id(), "an earlier deletion is not done here"));
            }
            if !state.is_sealed {
                state.deleted.extend(blocks);
            }
            let recent: Vec<Option<Extent>> =
                blocks.iter().map(|local| state.recent.get(local).copied()).collect();
            let suspects = state.suspects.iter().filter(|(local, _)| blocks.contains(local));
            (recent, suspects.copied().collect::<Vec<_>>())
        };
        let mut removed = Vec::new();
        for (local, recent) in blocks.iter().zip(recent) {
            let indexed = disk.index.block(container.id(), *local);
            // A damaged row cannot say what to punch; the block goes, its space stays.
            let extent = recent.or(indexed.unwrap_or(None));
            removed.extend(extent.map(|extent| (*local, extent)));
        }
        let to_punch = removed.iter().chain(&suspects);
        let mut batch = IndexBatch {
            remove_blocks: blocks.iter().map(|local| (container.id(), *local)).collect(),
            put_intents: to_punch.map(|(local, extent)| (container.id(), *local, *extent)).collect(),
            remove_suspects: suspects.iter().map(|(_, extent)| (container.id(), extent.offset)).collect(),
            ..IndexBatch::default()
        };
        if !container.state.lock().is_sealed {
            batch.put_deleted = batch.remove_blocks.clone();
        }
        let deletion = Deletion { container, transaction, removed, suspects };
        metrics::blocks_deleted(deletion.removed.len() as u64);
        disk.flush_index_with(batch, true, Some(&deletion))?;
        wire::failpoint::hit("datanode_delete_intent");
    }
    disk.changed(container.id());
    punch_deleted(container)
}

/// Punches what nobody reads any more.
pub(crate) fn punch_deleted(container: &Arc<Container>) -> Result<(), BlockError> {
    let disk = &container.disk;
    disk.check(container.id())?;
    // One at a time: two would take the same extents.
    let _writer = disk.index_writer.lock();
    let due: Vec<(LocalId, Extent)> = {
        let state = container.state.lock();
        // What is being copied from here is as it was when the copy began.
        if state.is_dropped || state.fetches > 0 {
            return Ok(());
        }
        state.to_punch.iter().filter(|(local, _)| !state.pins.contains_key(local)).copied().collect()
    };
    if due.is_empty() {
        return Ok(());
    }
    let file = container.file()?;
    for (local, extent) in &due {
        if is_punchable(container, *local, extent)? {
            let punched = file.punch(extent.offset, extent.size);
            punched.map_err(|error| disk.io_failed("punch a block", error))?;
        }
    }
    disk.sync("sync a punched container", container.id(), || file.sync_all())?;
    wire::failpoint::hit("datanode_delete_punched");
    container.state.lock().to_punch.retain(|entry| !due.contains(entry));
    let batch = IndexBatch {
        remove_intents: due.iter().map(|(_, extent)| (container.id(), extent.offset)).collect(),
        ..IndexBatch::default()
    };
    // Not durable: an intent that comes back is worked off again.
    disk.flush_index_with(batch, false, None)
}

/// Looks before it punches: an index that is wrong must not cost another block its bytes.
fn is_punchable(container: &Arc<Container>, local: LocalId, extent: &Extent) -> Result<bool, BlockError> {
    let layout = container.layout;
    let page = container
        .file()?
        .read_at(extent.offset, layout.header_bytes())
        .map_err(|error| container.read_failed(error))?;
    if page.iter().all(|byte| *byte == 0) {
        return Ok(true);
    }
    let header = layout.decode_header(&page, extent.offset, &container.header.salt);
    let is_right = header.is_some_and(|header| {
        header.block == container.block(local)
            && header.generation == container.header.generation
            && layout.extent_bytes(header.reserved) == extent.size
    });
    if !is_right {
        container.found_damage("the extent of a deleted block does not begin with its header: kept");
    }
    Ok(is_right)
}

/// Takes no more blocks; seals durably once the writes under way have ended. Called again until it is sealed.
///
/// Writes get a while to end by themselves. Those whose bytes have not all come by then are broken off: a container that is
/// not sealed everywhere is not repaired, and a client may take hours for a block. One that waits for its sync alone ends as
/// ever.
pub(crate) fn close(container: &Arc<Container>) -> Result<(), BlockError> {
    let disk = &container.disk;
    disk.check(container.id())?;
    {
        let mut state = container.state.lock();
        state.is_closing = true;
        if state.is_sealed || state.is_dropped {
            return Ok(());
        }
        let now_ns = wire::clock::steady_ns();
        let since_ns = *state.closing_since_ns.get_or_insert(now_ns);
        if !state.in_flight.is_empty() {
            drop(state);
            if now_ns.saturating_sub(since_ns) >= disk.closing_patience_ns() {
                container.cut_short();
            }
            return Ok(());
        }
    }
    disk.flush_index(true)?;
    seal(container)
}

/// Cuts off what no extent got, and writes the seal. The index must be durable and no write under way.
pub(crate) fn seal(container: &Arc<Container>) -> Result<(), BlockError> {
    let disk = &container.disk;
    // Nobody grows or zero-fills the file meanwhile; the next to come finds that it must not.
    let _growth = container.growth.lock();
    let end = {
        let state = container.state.lock();
        if state.is_sealed || state.is_dropped {
            return Ok(());
        }
        state.next_offset
    };
    let file = container.file()?;
    if state_end(container) > end {
        file.set_length(end).map_err(|error| disk.io_failed("cut a container", error))?;
    }
    file.write_at(PAGE_BYTES, &[&encode_seal(&container.header, end, 0)])
        .map_err(|error| disk.io_failed("seal a container", error))?;
    disk.sync("seal a container", container.id(), || file.sync_data())?;
    wire::failpoint::hit("datanode_container_sealed");
    {
        let mut state = container.state.lock();
        state.is_sealed = true;
        state.deleted = Default::default();
        (state.allocated_end, state.zeroed_end) = (end, end);
    }
    disk.mark_dirty(container);
    disk.changed(container.id());
    tracing::info!(container = %container.id(), "container sealed");
    // The seal bars every id, so the barred ones need no rows. Not durable: rows that come back do no harm.
    let _writer = disk.index_writer.lock();
    let batch = IndexBatch { clear_deleted: Some(container.id()), ..IndexBatch::default() };
    if let Err(error) = disk.flush_index_with(batch, false, None) {
        tracing::warn!(container = %container.id(), %error, "barred ids of a sealed container keep their rows");
    }
    Ok(())
}

fn state_end(container: &Container) -> u64 {
    container.state.lock().allocated_end
}

/// Drops the replica: the tombstone is durable before the file goes.
pub(crate) fn drop_replica(container: &Arc<Container>, now_ms: UnixMs) -> Result<(), BlockError> {
    let disk = &container.disk;
    disk.check(container.id())?;
    container.state.lock().is_dropped = true;
    disk.drop_replica(container.id(), container.header.generation, now_ms)?;
    remove_file(disk, container.id())?;
    tracing::info!(container = %container.id(), "container replica dropped");
    Ok(())
}

/// The same for what a disk has of a replica that is not in service: its rows, its file, or one without the other.
pub(crate) fn drop_leftovers(
    disk: &Disk,
    id: ContainerId,
    generation: Generation,
    now_ms: UnixMs,
) -> Result<(), BlockError> {
    disk.check(id)?;
    let has_file = match disk.io.open(&file_name(id), OpenMode::Existing) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // No verdict on the disk: it may be that no more files can be opened.
        Err(error) => return Err(BlockError::from_io(error)),
    };
    let row = disk.index.container(id);
    // A row that is damaged is there too.
    let has_row = match row {
        Ok(row) => row.is_some(),
        Err(IndexError::Corrupt(_)) => true,
        Err(error) => return Err(BlockError::Index(error.to_string())),
    };
    if has_file || has_row {
        disk.drop_replica(id, generation, now_ms)?;
    }
    if has_file {
        remove_file(disk, id)?;
        tracing::info!(container = %id, "the file of a lost replica dropped");
    }
    Ok(())
}

fn remove_file(disk: &Disk, id: ContainerId) -> Result<(), BlockError> {
    disk.io
        .remove(&file_name(id))
        .and_then(|()| disk.io.sync_names())
        .map_err(|error| disk.io_failed("remove a container", error))
}
