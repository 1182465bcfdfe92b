//! Backups: a snapshot of a group in a file, and a directory made of one.
//!
//! ```text
//!  "FZBACKUP" | version u32 | length u32 | manifest | crc32c of all before it u32
//!  length u32 | the snapshot's head | the snapshot's rows and end
//! ```
//!
//! The manifest is a MessagePack array: group, time in ms. Head, rows and end are those of a snapshot on its way
//! (`docs/formats/state.md`), so a backup is as checked as any replica's rows: each by its checksum, all by number and hash.
//!
//! A backup is restored when a group is lost: it becomes the directory of one voter, under a raft id that the group
//! never had (a group of one process keeps its id). All members that the backup names are former members from then on, so that one of them that still runs is not
//! listened to. More voters join as ever.
//!
//! Invariants:
//! * A restore makes a whole directory or none.
//! * No raft id or incarnation of the backup's members lives on.
//!
//! Not here: which backups of two groups go together (their services' part).

use std::io::Read;
use std::path::PathBuf;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use platform::task;
use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::group::Member;
use wire::status::{Failure, Status};

use crate::config::GroupConfig;
use crate::error::{RestoreError, SnapshotError};
use crate::group::open::{create_log, open_reserve, state_config};
use crate::machine::StateMachine;
use crate::peer::SnapshotStream;
use crate::replica::Replica;
use crate::state::snapshot::{
    ReceiverSlot, SNAPSHOT_HEAD_BYTES_MAX, SNAPSHOT_PIECE_BYTES, SnapshotHead, SnapshotReceiver,
    SnapshotSource,
};

/// The version of the file.
const BACKUP_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"FZBACKUP";

/// Magic, version and length of the manifest.
const PREFIX_SIZE: usize = 16;

/// Bytes of a manifest at most: a name and numbers.
const MANIFEST_BYTES_MAX: usize = 4096;

/// As written. Append fields with `#[serde(default)]`, never reorder.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    group: String,
    taken_ms: u64,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    /// `om` or `scm`.
    pub group: String,
    /// When it was begun, in ms since 1970.
    pub taken_ms: u64,
    /// The cluster.
    pub cluster_id: Uuid,
    /// It holds all commands up to this entry.
    pub applied_index: u64,
    /// The hash over its rows.
    pub state_hash: u128,
    /// Who belonged to the group.
    pub members: Vec<Member>,
}

/// A backup being read. It keeps a view, so it must not take for ever: see [`SnapshotError::Outgrown`].
pub struct Backup {
    info: BackupInfo,
    /// What precedes the rows, until it is handed out.
    preface: Option<Bytes>,
    source: SnapshotSource,
}

impl Backup {
    /// Begins one.
    pub(crate) fn begin(group: &str, source: SnapshotSource) -> Backup {
        let manifest = Manifest { group: group.to_owned(), taken_ms: wire::clock::now_ms() };
        let preface = encode_preface(&manifest, &source.head().encode());
        let info = info_of(manifest, source.head());
        Backup { info, preface: Some(preface), source }
    }

    /// What it holds.
    pub fn info(&self) -> &BackupInfo {
        &self.info
    }

    /// The next bytes of the file; None after the last. Blocking.
    ///
    /// # Errors
    /// If the rows cannot be read, or are not those that their hash is of: what was written so far is no backup.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        match self.preface.take() {
            Some(preface) => Ok(Some(preface)),
            None => self.source.next_piece(),
        }
    }

    /// The bytes of the file, each piece read off the reactor.
    pub fn into_stream(self) -> SnapshotStream {
        Box::pin(stream::unfold(Some(self), |backup| async move {
            let mut backup = backup?;
            let read = task::spawn_blocking(move || {
                let piece = backup.next_piece();
                (backup, piece)
            });
            let failed = |error: &dyn std::error::Error| {
                Failure::new(Status::Internal, format!("the backup cannot be read: {error}"))
            };
            match read.await {
                Ok((backup, Ok(Some(piece)))) => Some((Ok(piece), Some(backup))),
                Ok((_, Ok(None))) => None,
                Ok((_, Err(error))) => Some((Err(failed(&error)), None)),
                Err(error) => Some((Err(failed(&error)), None)),
            }
        }))
    }
}

/// Makes the directory of a sole voter out of a backup: `config` names the group, its fresh directory, a raft id and an
/// incarnation that the group never had. Blocking.
///
/// # Errors
/// Says what the operator can do. The directory is then as fresh as before.
pub fn restore<M: StateMachine>(
    config: &GroupConfig,
    file: &mut dyn Read,
) -> Result<BackupInfo, RestoreError> {
    config.check()?;
    let (manifest, mut head) = read_preface(file)?;
    if manifest.group != config.name {
        return Err(RestoreError::Group { found: manifest.group, expected: config.name.clone() });
    }
    let info = info_of(manifest, &head);
    let me = config.me();
    // A group of one process has nobody who could take its new life for its old one.
    let was_alone = head.conf_state.voters == [me.raft_id] && head.members.len() <= 1;
    let is_alone = config.member.is_none() && config.voters.is_empty() && !config.join && was_alone;
    let is_taken = head.former.contains(&me.raft_id)
        || head.members.iter().any(|old| old.raft_id == me.raft_id || old.incarnation == me.incarnation);
    if is_taken && !is_alone {
        return Err(RestoreError::Taken { raft_id: me.raft_id });
    }
    head.conf_state = ConfState { voters: vec![me.raft_id], ..ConfState::default() };
    let gone = head.members.iter().map(|old| old.raft_id).filter(|raft_id| *raft_id != me.raft_id);
    head.former.extend(gone);
    head.members = vec![me];
    let replica = Replica::lock(&config.disk)?;
    if replica.exists()? {
        return Err(RestoreError::NotEmpty { dir: PathBuf::from(config.disk.name()) });
    }
    replica.create(config.identity(), || fill::<M>(config, head, file))?;
    Ok(info)
}

/// The files of a restored replica. Its log is empty: the first start resets it, as the state carries the mark.
fn fill<M: StateMachine>(
    config: &GroupConfig,
    head: SnapshotHead,
    file: &mut dyn Read,
) -> Result<(), RestoreError> {
    let reserve = open_reserve(config)?;
    let state = state_config::<M>(config, &reserve);
    let mut receiver = SnapshotReceiver::begin(state, &ReceiverSlot::default(), head, 0)?;
    let mut piece = vec![0; SNAPSHOT_PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => receiver.push(&piece[..count])?,
        }
    }
    let (state, _) = receiver.finish()?.install()?;
    drop(state);
    create_log(config)?;
    Ok(())
}

fn encode_preface(manifest: &Manifest, head: &[u8]) -> Bytes {
    let manifest = rmp_serde::to_vec(manifest).expect("names and numbers encode");
    let mut out = BytesMut::from(&MAGIC[..]);
    out.put_u32_le(BACKUP_FORMAT);
    out.put_u32_le(manifest.len() as u32);
    out.put_slice(&manifest);
    let crc = crc_fast::crc32_iscsi(&out);
    out.put_u32_le(crc);
    out.put_u32_le(head.len() as u32);
    out.put_slice(head);
    out.freeze()
}

fn read_preface(file: &mut dyn Read) -> Result<(Manifest, SnapshotHead), RestoreError> {
    let mut checked = read_exactly(file, PREFIX_SIZE)?;
    let word =
        |at: usize, bytes: &[u8]| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    if !checked.starts_with(MAGIC) {
        return Err(RestoreError::NoBackup);
    }
    let (format, length) = (word(8, &checked), word(12, &checked) as usize);
    if format != BACKUP_FORMAT {
        return Err(SnapshotError::Format { found: format, known: BACKUP_FORMAT }.into());
    }
    if length > MANIFEST_BYTES_MAX {
        return Err(RestoreError::NoBackup);
    }
    checked.extend(read_exactly(file, length)?);
    let crc = read_exactly(file, 4)?;
    if crc_fast::crc32_iscsi(&checked) != word(0, &crc) {
        return Err(RestoreError::NoBackup);
    }
    let manifest = rmp_serde::from_slice(&checked[PREFIX_SIZE..]).map_err(|_| RestoreError::NoBackup)?;
    let length = word(0, &read_exactly(file, 4)?) as usize;
    if length > SNAPSHOT_HEAD_BYTES_MAX {
        return Err(RestoreError::NoBackup);
    }
    let head = SnapshotHead::decode(&read_exactly(file, length)?)?;
    Ok((manifest, head))
}

fn read_exactly(file: &mut dyn Read, length: usize) -> Result<Vec<u8>, RestoreError> {
    let mut bytes = vec![0; length];
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(RestoreError::NoBackup),
        Err(error) => Err(error.into()),
    }
}

fn info_of(manifest: Manifest, head: &SnapshotHead) -> BackupInfo {
    BackupInfo {
        group: manifest.group,
        taken_ms: manifest.taken_ms,
        cluster_id: head.cluster_id,
        applied_index: head.applied_index,
        state_hash: head.state_hash,
        members: head.members.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The released format: a change here needs a new version.
    #[test]
    fn the_preface_has_the_documented_bytes() {
        let manifest = Manifest { group: "om".to_owned(), taken_ms: 300 };
        let preface = encode_preface(&manifest, b"head");
        let text: String = preface.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "465a4241434b5550010000000700000092a26f6dcd012ceb8c5e840400000068656164");
    }
}
