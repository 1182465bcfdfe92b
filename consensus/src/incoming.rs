//! A snapshot on its way in: checked before its first byte is kept, written beside the state, never held whole.
//!
//! ```text
//!  call --> packet with raft's message, checked as any packet --> the snapshot's head, which has to say the same
//!       --> rows into a file beside the state --> whole, durable --> the driver
//! ```
//!
//! Dropping it at any point leaves nothing behind. The sender repeats what fails, with pauses.
//!
//! Invariants:
//! * One snapshot at a time.
//! * The disk keeps the room that the log of a follower needs: a snapshot can be sent again, an entry cannot be refused.
//!
//! Not here: taking it over (see `driver::install`), the stream's bytes (see `state::snapshot`).

use std::time::Duration;

use futures_util::StreamExt;
use platform::task;
use raft::eraftpb::{ConfState, Message};
use tokio::time::timeout;
use wire::status::{Failure, Status};

use crate::error::{OpenError, SnapshotError, StoreError};
use crate::packet::{Head, decode_call};
use crate::peer::SnapshotStream;
use crate::shared::Shared;
use crate::space::is_full;
use crate::state::StateConfig;
use crate::state::snapshot::{ReceivedSnapshot, ReceiverSlot, SnapshotHead, SnapshotReceiver};

/// A sender that sends nothing for so long has failed.
const IDLE: Duration = Duration::from_secs(30);

/// What taking snapshots in needs to know.
pub(crate) struct IncomingConfig {
    state: StateConfig,
    slot: ReceiverSlot,
    /// Free space that is left to others.
    free_min: u64,
}

impl IncomingConfig {
    pub(crate) fn new(state: StateConfig, free_min: u64) -> Self {
        IncomingConfig { state, slot: ReceiverSlot::default(), free_min }
    }
}

/// A snapshot that was let in.
pub(crate) struct Incoming {
    state: StateConfig,
    slot: ReceiverSlot,
    free_min: u64,
    message: Message,
    head: SnapshotHead,
}

impl Incoming {
    /// Looks at what precedes the rows, or says why the snapshot is refused.
    pub(crate) fn begin(
        config: &IncomingConfig,
        shared: &Shared,
        call: &[u8],
        admit: impl FnOnce(&Head) -> Result<(), &'static str>,
    ) -> Result<Incoming, String> {
        let (mut packet, head) = decode_call(call, admit)?;
        let message = packet.messages.remove(0);
        let head = SnapshotHead::decode(head).map_err(|error| error.to_string())?;
        let metadata = message.get_snapshot().get_metadata();
        if (metadata.index, metadata.term) != (head.applied_index, head.applied_term)
            || *metadata.get_conf_state() != head.conf_state
        {
            return Err("its message and its head differ".to_owned());
        }
        if !has_place(&head.conf_state, shared.raft_id) {
            return Err("this replica is no member in it".to_owned());
        }
        let status = *shared.status.lock();
        if head.applied_index <= status.applied_index.max(status.commit_index) || message.term < status.term {
            return Err("it is stale".to_owned());
        }
        let (state, slot) = (config.state.clone(), config.slot.clone());
        Ok(Incoming { state, slot, free_min: config.free_min, message, head })
    }

    /// Takes the rows in; the file is whole and durable when it returns.
    pub(crate) async fn receive(
        self,
        mut body: SnapshotStream,
    ) -> Result<(Message, ReceivedSnapshot), Failure> {
        let Incoming { state, slot, free_min, message, head } = self;
        let mut receiver = blocking(move || SnapshotReceiver::begin(state, &slot, head, free_min)).await?;
        let late = |_| Failure::new(Status::Retry, "the sender of a snapshot sent nothing for too long");
        while let Some(piece) = timeout(IDLE, body.next()).await.map_err(late)? {
            let piece = piece?;
            receiver = blocking(move || receiver.push(&piece).map(|()| receiver)).await?;
        }
        let received = blocking(move || receiver.finish()).await?;
        Ok((message, received))
    }
}

/// Whether raft would let a replica of this id have the snapshot.
fn has_place(conf_state: &ConfState, raft_id: u64) -> bool {
    [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing]
        .iter()
        .any(|ids| ids.contains(&raft_id))
}

/// Does a piece of work off the reactor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, Failure> {
    match task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| failure_of(&error)),
        Err(error) => Err(Failure::new(Status::Internal, format!("a snapshot is not taken in: {error}"))),
    }
}

fn failure_of(error: &SnapshotError) -> Failure {
    let is_disk_full = match error {
        SnapshotError::File(OpenError::Full { .. }) => true,
        SnapshotError::File(OpenError::Io { source, .. }) => is_full(source),
        SnapshotError::Store(StoreError::Redb(cause)) => match &**cause {
            redb::Error::Io(source) => is_full(source),
            _ => false,
        },
        _ => false,
    };
    let status = match error {
        _ if is_disk_full => Status::DiskFull,
        SnapshotError::Busy => Status::Retry,
        SnapshotError::Damaged(_) => Status::Corrupt,
        SnapshotError::Format { .. } | SnapshotError::Foreign { .. } | SnapshotError::Tables { .. } => {
            Status::Invalid
        }
        _ => Status::Internal,
    };
    Failure::new(status, error.to_string())
}
