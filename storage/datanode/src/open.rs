//! Opening the disks of a datanode: formats empty ones, refuses foreign ones, recovers after a crash.
//!
//! After an orderly end the index is the truth and open containers go on. After any other, the containers that are not
//! sealed are read beyond what the last checkpoint knew (`recovery`), what is found is indexed durably, and they are
//! sealed: a container whose end was a crash takes no further blocks. A damaged index is made again from the files.
//!
//! A disk that does not work is left out, if another works: its replicas are elsewhere too, those of the others are here.
//! A sector that cannot be read costs one container its health, not the disk its place.
//!
//! Open deletion intents are taken up last, by the datanode's housekeeping.
//!
//! Invariants:
//! * An index is made again only if its bytes could be read and are wrong: it alone knows tombstones and deletions.
//! * An empty disk is formatted only when it is known whose it shall be.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;

use uuid::Uuid;
use wire::block::Replication;
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};
use wire::scm::{DiskReport, GENERATION_UNKNOWN, ReplicaCondition, ReplicaReport};

use crate::config::DatanodeConfig;
use crate::container::{Container, State, container_of, file_name};
use crate::copy::COPY_SUFFIX;
use crate::deletion;
use crate::disk::{BALLAST_NAME, CLEAN_NAME, Changes, Disk, INDEX_NAME};
use crate::error::{BlockError, OpenError};
use crate::extent::{ContainerHeader, PAGE_BYTES, Salt, Seal, decode_seal};
use crate::file_cache::FileCache;
use crate::identity::{self, Identity};
use crate::index::{ContainerRow, Index, IndexBatch, IndexError};
use crate::layout::{LAYOUT_CURRENT, layout};
use crate::members;
use crate::metrics;
use crate::recovery::{Scan, scan};
use platform::disk::{BlockFile, DiskIo, OpenMode};

/// Where an index goes that could not be opened.
const INDEX_DAMAGED_NAME: &str = "index.damaged";
/// A tombstone is kept for a day: tokens live half an hour.
const TOMBSTONE_LIFE_MS: u64 = 24 * 60 * 60 * 1000;

/// What stands on the disks of a datanode.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) datanode: DatanodeId,
    pub(crate) disks: Vec<Arc<Disk>>,
    /// Disks that were left out.
    pub(crate) failed: Vec<DiskReport>,
    pub(crate) containers: BTreeMap<ContainerId, Arc<Container>>,
    pub(crate) tombstones: BTreeMap<ContainerId, Generation>,
    /// Replicas that were here and of which nothing can be read.
    pub(crate) lost: BTreeMap<ContainerId, ReplicaReport>,
    /// All disks this datanode ever had are here: what is not found was never created.
    pub(crate) is_whole: bool,
}

/// Disks that were left out, and why.
#[derive(Default)]
pub(crate) struct LeftOut(Vec<(String, OpenError)>);

impl LeftOut {
    /// Leaves a disk out, or refuses the start if others would share its trouble.
    pub(crate) fn add(&mut self, disk: String, error: OpenError) -> Result<(), OpenError> {
        if !error.is_of_one_disk() {
            return Err(error);
        }
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(%disk, %error, cause, "a disk is left out");
        self.0.push((disk, error));
        Ok(())
    }

    /// Why there is no disk at all.
    fn into_refusal(self) -> OpenError {
        self.0.into_iter().next().map_or(OpenError::NoDisks, |(_, error)| error)
    }
}

/// Opens all disks that work.
pub(crate) fn open_disks(
    config: &DatanodeConfig,
    ios: Vec<Arc<dyn DiskIo>>,
    mut left_out: LeftOut,
    changes: &Arc<Changes>,
    now_ms: u64,
) -> Result<Opened, OpenError> {
    let count = ios.len() + left_out.0.len();
    let identified = identify(config, ios, &mut left_out)?;
    let files = Arc::new(FileCache::new(config.open_files_max));
    let mut opened = Opened { datanode: identified.datanode, ..Opened::default() };
    for (io, identity) in identified.disks {
        let name = io.name();
        match open_disk(config, io, &identity, &files, changes, now_ms) {
            Ok(disk) => merge(&mut opened, disk, now_ms)?,
            Err(error) => left_out.add(name, error)?,
        }
    }
    if opened.disks.is_empty() {
        return Err(left_out.into_refusal());
    }
    opened.is_whole = identified.is_whole && opened.disks.len() == count;
    let failed = left_out.0.into_iter();
    opened.failed = failed
        .map(|(path, _)| DiskReport { path, capacity_bytes: 0, available_bytes: 0, is_failed: true })
        .collect();
    Ok(opened)
}

fn merge(opened: &mut Opened, disk: Opened, now_ms: u64) -> Result<(), OpenError> {
    opened.disks.extend(disk.disks);
    for (id, recovered) in disk.containers {
        let Some(other) = opened.containers.get(&id) else {
            opened.containers.insert(id, recovered);
            continue;
        };
        let (ours, theirs) = (recovered.header.generation, other.header.generation);
        if ours == theirs {
            return Err(OpenError::Duplicate { container: id });
        }
        // A copy came here while the disk of its predecessor was out of service.
        let stale = if ours > theirs { opened.containers.insert(id, recovered) } else { Some(recovered) };
        let dropped = stale.map(|stale| deletion::drop_replica(&stale, now_ms));
        if let Some(Err(error)) = dropped {
            tracing::warn!(container = %id, %error, "a replica that was copied anew is kept, and not served");
        }
    }
    for (container, generation) in disk.tombstones {
        let dead = opened.tombstones.entry(container).or_insert(generation);
        *dead = generation.max(*dead);
    }
    opened.lost.extend(disk.lost);
    // A replica that was copied anew to another disk is not lost.
    let containers = &opened.containers;
    opened.lost.retain(|container, _| !containers.contains_key(container));
    Ok(())
}

struct Identified {
    datanode: DatanodeId,
    disks: Vec<(Arc<dyn DiskIo>, Identity)>,
    is_whole: bool,
}

/// Locks every disk, checks whose it is, and formats the empty ones.
fn identify(
    config: &DatanodeConfig,
    ios: Vec<Arc<dyn DiskIo>>,
    left_out: &mut LeftOut,
) -> Result<Identified, OpenError> {
    let (mut present, mut empty) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    let mut is_list_right = true;
    for io in ios {
        let name = io.name();
        match look_at(config, &*io) {
            Ok(None) => empty.push(io),
            Ok(Some((identity, members))) => {
                is_list_right &= members.is_some();
                known.extend(members.into_iter().flatten());
                known.insert(identity.disk);
                present.push((io, identity));
            }
            Err(error) => left_out.add(name, error)?,
        }
    }
    let datanode = match present.first() {
        Some((_, first)) => first.datanode,
        // A disk that cannot be read may know who we are.
        None if !left_out.0.is_empty() || empty.is_empty() => {
            return Err(std::mem::take(left_out).into_refusal());
        }
        None => DatanodeId::random(),
    };
    if let Some((io, other)) = present.iter().find(|(_, identity)| identity.datanode != datanode) {
        return Err(OpenError::WrongDatanode { disk: io.name(), found: other.datanode, expected: datanode });
    }
    let mut named: BTreeSet<Uuid> = present.iter().map(|(_, identity)| identity.disk).collect();
    let mut fresh = Vec::new();
    for io in empty {
        let drawn = uuid::Builder::from_random_bytes(wire::random::array()).into_uuid();
        let disk = members::begun(&*io, &named).unwrap_or(drawn);
        named.insert(disk);
        known.insert(disk);
        fresh.push((io, Identity { cluster: config.cluster, datanode, disk }));
    }
    let mut disks = Vec::new();
    // New disks first, so that one whose formatting is cut off is found by the id the others know; and nobody is to know
    // one that could not even be told.
    let mut told = Vec::new();
    for (io, identity) in fresh {
        match tell_members(&*io, &known) {
            Ok(()) => told.push((io, identity)),
            Err(source) => {
                known.remove(&identity.disk);
                left_out.add(io.name(), OpenError::Io { disk: io.name(), source })?;
            }
        }
    }
    for (io, identity) in present {
        match tell_members(&*io, &known) {
            Ok(()) => disks.push((io, identity)),
            Err(source) => left_out.add(io.name(), OpenError::Io { disk: io.name(), source })?,
        }
    }
    for (io, identity) in told {
        let formatted = tell_members(&*io, &known)
            .map_err(|source| OpenError::Io { disk: io.name(), source })
            .and_then(|()| identity::write(&*io, &identity));
        match formatted {
            Ok(()) => {
                tracing::info!(disk = %io.name(), %datanode, "disk formatted");
                disks.push((io, identity));
            }
            Err(error) => left_out.add(io.name(), error)?,
        }
    }
    let here: BTreeSet<Uuid> = disks.iter().map(|(_, identity)| identity.disk).collect();
    let is_whole = is_list_right && known.is_subset(&here);
    if !is_whole {
        tracing::warn!(%datanode, known = known.len(), here = here.len(), "disks of this datanode are missing");
    }
    Ok(Identified { datanode, disks, is_whole })
}

type Found = (Identity, Option<BTreeSet<Uuid>>);

/// Whose disk it is and which disks it knows; None if it is empty.
fn look_at(config: &DatanodeConfig, io: &dyn DiskIo) -> Result<Option<Found>, OpenError> {
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    if !io.lock().map_err(failed)? {
        return Err(OpenError::Locked { disk: io.name() });
    }
    let Some(identity) = identity::read(io, config.cluster)? else { return Ok(None) };
    Ok(Some((identity, members::read(io).map_err(failed)?)))
}

fn tell_members(io: &dyn DiskIo, known: &BTreeSet<Uuid>) -> io::Result<()> {
    if members::read(io)?.as_ref() == Some(known) { Ok(()) } else { members::write(io, known) }
}

fn open_disk(
    config: &DatanodeConfig,
    io: Arc<dyn DiskIo>,
    identity: &Identity,
    files: &Arc<FileCache>,
    changes: &Arc<Changes>,
    now_ms: u64,
) -> Result<Opened, OpenError> {
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let names: BTreeSet<String> = io.list().map_err(failed)?.into_iter().collect();
    let was_clean = names.contains(CLEAN_NAME);
    // Opening changes nothing in the index. A disk that cannot be opened keeps the mark of its orderly end.
    let index = open_index(&*io, config.index_cache_bytes)?;
    if was_clean {
        // Gone before anything is written: from here on an end is an orderly one only if it says so again.
        io.remove(CLEAN_NAME).and_then(|()| io.sync_names()).map_err(failed)?;
    }
    let index_failed = |error: IndexError| index_failure(&*io, error);
    let room = io.room().map_err(failed)?;
    let tombstones = index.tombstones().map_err(index_failed)?;
    let disk = Disk::new(io.clone(), index, files.clone(), changes.clone(), config, room, identity);
    if let Err(error) = disk.check_index_room() {
        tracing::warn!(disk = %disk.io.name(), %error, "opening a disk without room for its index");
    }
    let mut batch = IndexBatch::default();
    let mut opened = Opened::default();
    for (container, generation, at_ms) in tombstones {
        if now_ms.saturating_sub(at_ms) > TOMBSTONE_LIFE_MS && !names.contains(&file_name(container)) {
            batch.remove_tombstones.push(container);
        } else {
            opened.tombstones.insert(container, generation);
        }
    }
    let mut to_seal = Vec::new();
    for name in &names {
        if name.ends_with(".new") || name.ends_with(COPY_SUFFIX) {
            // A file that got no name yet holds nothing that was acknowledged, a copy that was not finished nothing
            // that was verified.
            io.remove(name).map_err(failed)?;
            continue;
        }
        let Some(container) = container_of(name) else { continue };
        match recover_container(&disk, container, was_clean, &opened.tombstones, &mut batch)? {
            Recovered::Gone => {}
            Recovered::Unreadable => {
                let report = lost_report(container, None, &disk.io.name());
                opened.lost.insert(container, report);
            }
            Recovered::Here(recovered, is_to_seal) => {
                let recovered = Arc::new(*recovered);
                disk.files.opened(&recovered);
                if is_to_seal {
                    to_seal.push(recovered.clone());
                }
                opened.containers.insert(container, recovered);
            }
        }
    }
    for (container, row) in disk.index.containers().map_err(index_failed)? {
        if !names.contains(&file_name(container)) {
            tracing::error!(%container, "the file of a container is gone");
            opened.lost.insert(container, lost_report(container, row.as_ref(), &disk.io.name()));
        }
    }
    // Durable before the seals: a seal says that the index knows the file.
    disk.index.commit(&batch, true).map_err(index_failed)?;
    for container in to_seal {
        deletion::seal(&container).map_err(|error| match error {
            BlockError::DiskFull => OpenError::Full { disk: disk.io.name() },
            error => {
                failed(io::Error::other(format!("container {} cannot be sealed: {error}", container.id())))
            }
        })?;
    }
    opened.disks.push(disk);
    Ok(opened)
}

fn index_failure(io: &dyn DiskIo, error: IndexError) -> OpenError {
    match error {
        IndexError::Io { is_full: true, .. } => OpenError::Full { disk: io.name() },
        error => OpenError::Index { disk: io.name(), reason: error.to_string() },
    }
}

/// Opens the index. A damaged one is put aside and made again: the files tell what it held of blocks. One that could not
/// be read or had no room is not: it is whole, and it alone knows tombstones and deletions.
fn open_index(io: &dyn DiskIo, cache_bytes: usize) -> Result<Index, OpenError> {
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let open = || {
        let file = io.open(INDEX_NAME, OpenMode::Either).map_err(failed)?;
        io.sync_names().map_err(failed)?;
        Ok(Index::open(file, cache_bytes))
    };
    let mut opened = open()?;
    if matches!(opened, Err(IndexError::Io { is_full: true, .. })) && io.remove(BALLAST_NAME).is_ok() {
        tracing::warn!(disk = %io.name(), "disk is full: its ballast was given to the index");
        opened = open()?;
    }
    match opened {
        Ok(index) => Ok(index),
        Err(error @ IndexError::Io { .. }) => Err(index_failure(io, error)),
        Err(error) => {
            tracing::error!(disk = %io.name(), %error, "block index is damaged: it is made again from the containers");
            io.rename(INDEX_NAME, INDEX_DAMAGED_NAME).map_err(failed)?;
            let file = io.open(INDEX_NAME, OpenMode::Fresh).map_err(failed)?;
            io.sync_names().map_err(failed)?;
            Index::open(file, cache_bytes).map_err(|error| index_failure(io, error))
        }
    }
}

/// What SCM is told of a replica that was here and cannot be read.
fn lost_report(container: ContainerId, row: Option<&ContainerRow>, disk: &str) -> ReplicaReport {
    ReplicaReport {
        container,
        // Unknown: no generation has the number 0.
        generation: row.map_or(GENERATION_UNKNOWN, |row| row.generation),
        replication: row.map_or(Replication::Three, |row| row.replication),
        is_sealed: false,
        written_bytes: 0,
        used_bytes: 0,
        block_count: 0,
        deletion_done: 0,
        is_unhealthy: true,
        condition: ReplicaCondition::Lost,
        disk: disk.to_owned(),
    }
}

enum Recovered {
    /// There is nothing to serve: it was dropped.
    Gone,
    /// Neither the file nor the index says what it is. It is kept, not served.
    Unreadable,
    /// The flag says whether it must be sealed.
    Here(Box<Container>, bool),
}

/// One container file.
fn recover_container(
    disk: &Arc<Disk>,
    id: ContainerId,
    was_clean: bool,
    tombstones: &BTreeMap<ContainerId, Generation>,
    batch: &mut IndexBatch,
) -> Result<Recovered, OpenError> {
    let io = &disk.io;
    let failed = |source: io::Error| OpenError::Io { disk: io.name(), source };
    let index_failed = |error: IndexError| index_failure(&**io, error);
    let file = io.open(&file_name(id), OpenMode::Existing).map_err(failed)?;
    let mut is_unreadable = false;
    let mut read_page = |offset| {
        file.read_at(offset, PAGE_BYTES as usize).unwrap_or_else(|error| {
            tracing::error!(container = %id, offset, %error, "a container file cannot be read everywhere");
            is_unreadable = true;
            Vec::new()
        })
    };
    let (page, seal_page) = (read_page(0), read_page(PAGE_BYTES));
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
        return Ok(Recovered::Unreadable);
    };
    if tombstones.get(&id).is_some_and(|dead| *dead >= header.generation) {
        io.remove(&file_name(id)).and_then(|()| io.sync_names()).map_err(failed)?;
        return Ok(Recovered::Gone);
    }
    let Some(rules) = layout(header.layout) else {
        return Err(OpenError::UnknownVersion {
            disk: format!("{} (container {id})", io.name()),
            version: header.layout,
            known: LAYOUT_CURRENT,
        });
    };
    // Rows of another life describe another file.
    let row = row.filter(|row| {
        let is_same = row.generation == header.generation;
        if !is_same {
            batch.purge.push(id);
        }
        is_same
    });
    let seal = decode_seal(&seal_page, &header);
    let is_sealed = seal.is_some() || !is_header_right;
    let first = rules.first_extent();
    let mut state = state_of(row.as_ref(), seal, first);
    state.allocated_end = file.length().map_err(failed)?;
    state.is_sealed = is_sealed;
    state.is_unhealthy |= !is_header_right || is_unreadable;
    let mut deleted = HashSet::new();
    if row.is_some() {
        deleted.extend(disk.index.deleted_of(id).map_err(index_failed)?);
        state.to_punch.extend(disk.index.intents_of(id).map_err(index_failed)?);
        state.suspects.extend(disk.index.suspects_of(id).map_err(index_failed)?);
    }
    if is_header_right && (row.is_none() || (!is_sealed && !was_clean)) {
        let from = row.as_ref().map_or(first, |row| row.checkpoint_end);
        let mut known = Vec::new();
        // Without a row the file is read as a whole, and what it says replaces the rows of blocks.
        if row.is_some() {
            let visit = disk.index.visit_blocks(id, |_, extent| {
                // A container may hold a million blocks: only those beyond the checkpoint are kept.
                if extent.offset >= from {
                    known.push((extent.offset, extent.size));
                }
            });
            state.is_unhealthy |= visit.map_err(index_failed)? > 0;
        } else if !batch.purge.contains(&id) {
            batch.purge.push(id);
        }
        known.sort_unstable();
        let found = scan(&*file, &header, rules, from, &known).map_err(failed)?;
        is_unreadable |= found.unreadable > 0;
        let index = row.is_some().then_some(&disk.index);
        take_found(index, id, found, &deleted, &mut state, batch).map_err(index_failed)?;
        state.is_unhealthy |= is_unreadable;
    }
    if let Some(seal) = seal {
        state.next_offset = state.next_offset.max(seal.end);
    }
    state.zeroed_end = state.zeroed_end.max(state.next_offset);
    if !state.is_sealed {
        state.deleted = deleted;
    }
    let is_to_seal = !state.is_sealed && (!was_clean || is_unreadable);
    state.is_closing = is_to_seal;
    let container = Container::new(header, rules, disk.clone(), file as Arc<dyn BlockFile>, state);
    let row = container.row(&container.state.lock(), None);
    batch.put_containers.push((id, row));
    Ok(Recovered::Here(Box::new(container), is_to_seal))
}

/// Enters what a scan found. `index` is None if nothing in it is of this file.
fn take_found(
    index: Option<&Index>,
    id: ContainerId,
    found: Scan,
    deleted: &HashSet<LocalId>,
    state: &mut State,
    batch: &mut IndexBatch,
) -> Result<(), IndexError> {
    state.suspect_pages += found.suspect_pages;
    let mut suspects = found.suspects;
    for (local, extent) in found.found {
        if !deleted.contains(&local) && !is_indexed(index, id, local)? {
            state.used_bytes += extent.length;
            state.block_count += 1;
            batch.put_blocks.push((id, local, extent));
        } else {
            // Of a deleted id: a write that the deletion had overtaken. Of an indexed one: the indexed one was durable
            // first, this one was given up by its writer.
            state.suspect_pages += extent.size / PAGE_BYTES;
            suspects.push((local, extent));
        }
    }
    for (local, extent) in suspects {
        if deleted.contains(&local) {
            state.suspect_pages = state.suspect_pages.saturating_sub(extent.size / PAGE_BYTES);
            state.to_punch.push((local, extent));
            batch.put_intents.push((id, local, extent));
        } else {
            state.suspects.push((local, extent));
            batch.put_suspects.push((id, local, extent));
        }
    }
    state.next_offset = state.next_offset.max(found.end);
    if state.suspect_pages > 0 {
        metrics::suspect_pages(state.suspect_pages);
        tracing::warn!(container = %id, pages = state.suspect_pages, "container holds bytes that are no whole block: kept");
    }
    Ok(())
}

fn is_indexed(index: Option<&Index>, id: ContainerId, local: LocalId) -> Result<bool, IndexError> {
    match index.map(|index| index.block(id, local)) {
        None => Ok(false),
        Some(Ok(extent)) => Ok(extent.is_some()),
        // A damaged row is replaced by what the file says.
        Some(Err(IndexError::Corrupt(_))) => Ok(false),
        Some(Err(error)) => Err(error),
    }
}

fn state_of(row: Option<&ContainerRow>, seal: Option<Seal>, first: u64) -> State {
    let Some(row) = row else {
        let deletion_done = seal.map_or(0, |seal| seal.deletion_done);
        return State { next_offset: first, zeroed_end: first, deletion_done, ..State::default() };
    };
    State {
        next_offset: row.next_offset,
        zeroed_end: row.zeroed_end,
        is_unhealthy: row.is_unhealthy,
        suspect_pages: row.suspect_pages,
        used_bytes: row.used_bytes,
        block_count: row.block_count,
        deletion_done: row.deletion_done,
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
        is_copy: false,
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
    disk.io.rename(&new_name, &file_name(header.container)).map_err(failed)?;
    if !wire::planted::is_on("names_not_synced") {
        disk.io.sync_names().map_err(failed)?;
    }
    wire::failpoint::hit("datanode_container_created");
    let state = State { next_offset: first, zeroed_end: first, allocated_end, ..State::default() };
    let container = Arc::new(Container::new(header, rules, disk.clone(), file, state));
    disk.files.opened(&container);
    disk.mark_dirty(&container);
    disk.prepare_soon(&container);
    Ok(container)
}
