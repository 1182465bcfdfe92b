//! Opening the disks of a datanode: formats empty ones, refuses foreign ones, recovers after a crash.
//!
//! After an orderly end the index is the truth and open containers go on. After any other, the containers that are not
//! sealed are read beyond what the last checkpoint knew (`recovery`), what is found is indexed durably, and they are
//! sealed: a container whose end was a crash takes no further blocks. A lost or broken index is made again from the files.
//!
//! Open deletion intents are taken up last, by the datanode's housekeeping.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;

use uuid::Uuid;
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};

use crate::config::DatanodeConfig;
use crate::container::{Container, State, container_of, file_name};
use crate::deletion;
use crate::disk::{CLEAN_NAME, Changes, Disk, INDEX_NAME};
use crate::error::OpenError;
use crate::extent::{ContainerHeader, PAGE_BYTES, Salt, decode_seal};
use crate::file_cache::FileCache;
use crate::identity::{self, Identity};
use crate::index::{ContainerRow, Index, IndexBatch, IndexError};
use crate::layout::{LAYOUT_CURRENT, layout};
use crate::metrics;
use crate::recovery::{Scan, scan};
use platform::disk::{BlockFile, DiskIo, OpenMode};

/// Where an index goes that could not be opened.
const INDEX_DAMAGED_NAME: &str = "index.damaged";
/// A tombstone is kept for a day: tokens live half an hour.
const TOMBSTONE_LIFE_MS: u64 = 24 * 60 * 60 * 1000;

/// What stands on the disks of a datanode.
pub(crate) struct Opened {
    pub(crate) datanode: DatanodeId,
    pub(crate) disks: Vec<Arc<Disk>>,
    pub(crate) containers: BTreeMap<ContainerId, Arc<Container>>,
    pub(crate) tombstones: BTreeMap<ContainerId, Generation>,
}

/// Opens all disks.
pub(crate) fn open_disks(
    config: &DatanodeConfig,
    ios: Vec<Arc<dyn DiskIo>>,
    changes: &Arc<Changes>,
    now_ms: u64,
) -> Result<Opened, OpenError> {
    let datanode = identify(config, &ios)?;
    let files = Arc::new(FileCache::new(config.open_files_max));
    let mut opened =
        Opened { datanode, disks: Vec::new(), containers: BTreeMap::new(), tombstones: BTreeMap::new() };
    for io in ios {
        open_disk(config, io, &files, changes, now_ms, &mut opened)?;
    }
    Ok(opened)
}

/// Locks every disk, checks whose it is, and formats the empty ones.
fn identify(config: &DatanodeConfig, ios: &[Arc<dyn DiskIo>]) -> Result<DatanodeId, OpenError> {
    if ios.is_empty() {
        return Err(OpenError::NoDisks);
    }
    let mut datanode = None;
    let mut empty = Vec::new();
    for io in ios {
        let locked = io.lock().map_err(|source| OpenError::Io { disk: io.name(), source })?;
        if !locked {
            return Err(OpenError::Locked { disk: io.name() });
        }
        match identity::read(&**io, config.cluster)? {
            None => empty.push(io),
            Some(found) => {
                let expected = *datanode.get_or_insert(found.datanode);
                if expected != found.datanode {
                    return Err(OpenError::WrongDatanode {
                        disk: io.name(),
                        found: found.datanode,
                        expected,
                    });
                }
            }
        }
    }
    let datanode = datanode.unwrap_or_else(DatanodeId::random);
    for io in empty {
        let disk = uuid::Builder::from_random_bytes(wire::random::array()).into_uuid();
        debug_assert_ne!(disk, Uuid::nil());
        identity::write(&**io, &Identity { cluster: config.cluster, datanode, disk })?;
        tracing::info!(disk = %io.name(), %datanode, "disk formatted");
    }
    Ok(datanode)
}

fn open_disk(
    config: &DatanodeConfig,
    io: Arc<dyn DiskIo>,
    files: &Arc<FileCache>,
    changes: &Arc<Changes>,
    now_ms: u64,
    opened: &mut Opened,
) -> Result<(), OpenError> {
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let names: BTreeSet<String> = io.list().map_err(failed)?.into_iter().collect();
    let was_clean = names.contains(CLEAN_NAME);
    if was_clean {
        // Gone before anything is written: from here on an end is an orderly one only if it says so again.
        io.remove(CLEAN_NAME).and_then(|()| io.sync_names()).map_err(failed)?;
    }
    let index_failed = |error: IndexError| OpenError::Index { disk: io.name(), reason: error.to_string() };
    let index = open_index(&*io, config.index_cache_bytes)?;
    let room = io.room().map_err(failed)?;
    let tombstones = index.tombstones().map_err(index_failed)?;
    let disk = Disk::new(io.clone(), index, files.clone(), changes.clone(), config, room);
    if let Err(error) = disk.check_index_room() {
        tracing::warn!(disk = %disk.io.name(), %error, "opening a disk without room for its index");
    }
    let mut batch = IndexBatch::default();
    for (container, generation, at_ms) in tombstones {
        if now_ms.saturating_sub(at_ms) > TOMBSTONE_LIFE_MS && !names.contains(&file_name(container)) {
            batch.remove_tombstones.push(container);
        } else {
            opened.tombstones.insert(container, generation);
        }
    }
    let mut to_seal = Vec::new();
    for name in &names {
        if name.ends_with(".new") {
            // A file that got no name yet holds nothing that was acknowledged.
            io.remove(name).map_err(failed)?;
            continue;
        }
        let Some(container) = container_of(name) else { continue };
        let recovered = recover_container(&disk, container, was_clean, &opened.tombstones, &mut batch)?;
        let Some((recovered, is_to_seal)) = recovered else { continue };
        let recovered = Arc::new(recovered);
        disk.files.opened(&recovered);
        if is_to_seal {
            to_seal.push(recovered.clone());
        }
        if opened.containers.insert(container, recovered).is_some() {
            return Err(OpenError::Duplicate { container });
        }
    }
    // Durable before the seals: a seal says that the index knows the file.
    disk.index.commit(&batch, true).map_err(index_failed)?;
    for container in to_seal {
        deletion::seal(&container).map_err(|error| OpenError::Index {
            disk: disk.io.name(),
            reason: format!("container {} cannot be sealed: {error}", container.id()),
        })?;
    }
    opened.disks.push(disk);
    Ok(())
}

/// Opens the index. One that cannot be opened is put aside and made again: the files tell what it held.
fn open_index(io: &dyn DiskIo, cache_bytes: usize) -> Result<Index, OpenError> {
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let file = io.open(INDEX_NAME, OpenMode::Either).map_err(failed)?;
    io.sync_names().map_err(failed)?;
    match Index::open(file, cache_bytes) {
        Ok(index) => Ok(index),
        Err(error) => {
            tracing::error!(disk = %io.name(), %error, "block index cannot be opened: it is made again from the containers");
            io.rename(INDEX_NAME, INDEX_DAMAGED_NAME).map_err(failed)?;
            let file = io.open(INDEX_NAME, OpenMode::Fresh).map_err(failed)?;
            io.sync_names().map_err(failed)?;
            Index::open(file, cache_bytes)
                .map_err(|error| OpenError::Index { disk: io.name(), reason: error.to_string() })
        }
    }
}

/// One container file; None if there is nothing to serve. The flag says whether it must be sealed.
fn recover_container(
    disk: &Arc<Disk>,
    id: ContainerId,
    was_clean: bool,
    tombstones: &BTreeMap<ContainerId, Generation>,
    batch: &mut IndexBatch,
) -> Result<Option<(Container, bool)>, OpenError> {
    let io = &disk.io;
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let index_failed = |error: IndexError| OpenError::Index { disk: io.name(), reason: error.to_string() };
    let file = io.open(&file_name(id), OpenMode::Existing).map_err(failed)?;
    let page = file.read_at(0, PAGE_BYTES as usize).map_err(failed)?;
    let row = match disk.index.container(id) {
        Ok(row) => row,
        // A damaged row is as good as none: the file tells the rest.
        Err(IndexError::Corrupt(_)) => None,
        Err(error) => return Err(index_failed(error)),
    };
    let decoded = ContainerHeader::decode(&page).filter(|header| header.container == id);
    let is_header_right = decoded.is_some();
    let Some(header) = decoded.or_else(|| row.as_ref().map(|row| header_of_row(id, row))) else {
        tracing::error!(container = %id, "container file has no readable header and no index row: it is kept, not served");
        return Ok(None);
    };
    if tombstones.get(&id).is_some_and(|dead| *dead >= header.generation) {
        io.remove(&file_name(id)).and_then(|()| io.sync_names()).map_err(failed)?;
        return Ok(None);
    }
    let Some(rules) = layout(header.layout) else {
        return Err(OpenError::UnknownVersion {
            disk: format!("{} (container {id})", io.name()),
            version: header.layout,
            known: LAYOUT_CURRENT,
        });
    };
    let seal_page = file.read_at(PAGE_BYTES, PAGE_BYTES as usize).map_err(failed)?;
    let sealed_end = decode_seal(&seal_page, &header);
    let is_sealed = sealed_end.is_some() || !is_header_right;
    let deleted: HashSet<LocalId> = disk.index.deleted_of(id).map_err(index_failed)?.into_iter().collect();

    let first = rules.first_extent();
    let mut state = state_of(row.as_ref(), first);
    state.allocated_end = file.length().map_err(failed)?;
    state.is_sealed = is_sealed;
    state.is_unhealthy |= !is_header_right;
    let must_scan = is_header_right && (row.is_none() || (!is_sealed && !was_clean));
    if must_scan {
        let from = row.as_ref().map_or(first, |row| row.checkpoint_end);
        let (mut known, mut used_bytes, mut block_count) = (Vec::new(), 0, 0);
        // A container may hold a million blocks: only those beyond the checkpoint are kept.
        let corrupt_rows = disk
            .index
            .visit_blocks(id, |_, extent| {
                used_bytes += extent.length;
                block_count += 1;
                if extent.offset >= from {
                    known.push((extent.offset, extent.size));
                }
            })
            .map_err(index_failed)?;
        state.is_unhealthy |= corrupt_rows > 0;
        if row.is_none() {
            (state.used_bytes, state.block_count) = (used_bytes, block_count);
        }
        known.sort_unstable();
        let found = scan(&*file, &header, rules, from, &known).map_err(failed)?;
        take_found(disk, id, found, &deleted, &mut state, batch).map_err(index_failed)?;
    }
    state.to_punch.extend(disk.index.intents_of(id).map_err(index_failed)?);
    if let Some(end) = sealed_end {
        state.next_offset = state.next_offset.max(end);
    }
    state.zeroed_end = state.zeroed_end.max(state.next_offset);
    if !state.is_sealed {
        state.deleted = deleted;
    }
    let is_to_seal = !state.is_sealed && !was_clean;
    state.is_closing = is_to_seal;
    let container = Container::new(header, rules, disk.clone(), file as Arc<dyn BlockFile>, state);
    let row = container.row(&container.state.lock());
    batch.put_containers.push((id, row));
    Ok(Some((container, is_to_seal)))
}

/// Enters what a scan found.
fn take_found(
    disk: &Disk,
    id: ContainerId,
    found: Scan,
    deleted: &HashSet<LocalId>,
    state: &mut State,
    batch: &mut IndexBatch,
) -> Result<(), IndexError> {
    state.suspect_pages = found.suspect_pages;
    for (local, extent) in found.found {
        if deleted.contains(&local) {
            // A write that a deletion had overtaken: it was refused, and goes now.
            state.to_punch.push((local, extent));
            batch.put_intents.push((id, local, extent));
        } else if is_indexed(disk, id, local)? {
            // The indexed one was durable first; this one was given up by its writer.
            state.suspect_pages += extent.size / PAGE_BYTES;
        } else {
            state.used_bytes += extent.length;
            state.block_count += 1;
            batch.put_blocks.push((id, local, extent));
        }
    }
    state.next_offset = state.next_offset.max(found.end);
    if state.suspect_pages > 0 {
        state.is_unhealthy = true;
        metrics::suspect_pages(state.suspect_pages);
        tracing::warn!(container = %id, pages = state.suspect_pages, "container holds bytes that are no whole block: kept");
    }
    Ok(())
}

fn is_indexed(disk: &Disk, id: ContainerId, local: LocalId) -> Result<bool, IndexError> {
    match disk.index.block(id, local) {
        Ok(extent) => Ok(extent.is_some()),
        // A damaged row is replaced by what the file says.
        Err(IndexError::Corrupt(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn state_of(row: Option<&ContainerRow>, first: u64) -> State {
    let Some(row) = row else {
        return State { next_offset: first, zeroed_end: first, ..State::default() };
    };
    State {
        next_offset: row.next_offset,
        zeroed_end: row.zeroed_end,
        is_unhealthy: row.is_unhealthy,
        suspect_pages: row.suspect_pages,
        used_bytes: row.used_bytes,
        block_count: row.block_count,
        deletion_done: row.deletion_done,
        deletion_begun: row.deletion_done,
        ..State::default()
    }
}

/// A stand-in for a header page that is damaged: enough to read through the index. Nothing will be written with it.
fn header_of_row(id: ContainerId, row: &ContainerRow) -> ContainerHeader {
    ContainerHeader {
        layout: LAYOUT_CURRENT,
        container: id,
        generation: row.generation,
        replication: row.replication,
        replica_index: 0,
        cluster: Default::default(),
        salt: Salt([0; 16]),
    }
}

/// Makes a container's file: its header is durable before its name is.
pub(crate) fn create_container(
    disk: &Arc<Disk>,
    header: ContainerHeader,
) -> Result<Arc<Container>, crate::error::BlockError> {
    let failed = |error| disk.io_failed("create a container", error);
    let rules = layout(header.layout).expect("new containers have the current layout");
    let first = rules.first_extent();
    let step = disk.growth_step().max(first.next_multiple_of(PAGE_BYTES));
    let allocated = [step, first + PAGE_BYTES];
    let new_name = format!("{:016x}.new", header.container.0);
    let file = disk.io.open(&new_name, OpenMode::Fresh).map_err(failed)?;
    let mut allocated_end = None;
    for end in allocated {
        if !disk.has_room(end)? {
            continue;
        }
        match file.allocate(0, end) {
            Ok(()) => {
                allocated_end = Some(end);
                break;
            }
            Err(error) if crate::error::is_full(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let Some(allocated_end) = allocated_end else {
        // Best effort: a file without its name is removed at the next start too.
        let _ = disk.io.remove(&new_name);
        return Err(crate::error::BlockError::DiskFull);
    };
    file.write_at(0, &[&header.encode()]).and_then(|()| file.sync_all()).map_err(failed)?;
    disk.io
        .rename(&new_name, &file_name(header.container))
        .and_then(|()| disk.io.sync_names())
        .map_err(failed)?;
    wire::failpoint::hit("datanode_container_created");
    let state = State { next_offset: first, zeroed_end: first, allocated_end, ..State::default() };
    let container = Arc::new(Container::new(header, rules, disk.clone(), file, state));
    disk.files.opened(&container);
    disk.mark_dirty(&container);
    disk.prepare_soon(&container);
    Ok(container)
}
