//! What clients asked, what they were told, and when: the only thing the checker believes.
//!
//! Order is a count of events: one operation comes before another in real time if it was answered before the other was
//! begun. Bodies and ETags are functions of the operation's number, so that whoever reads one knows who wrote it.
//!
//! Not here: whether it makes sense (`checker`).

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use md5::{Digest, Md5};
use wire::checksum::Etag;

/// An operation's number in its run.
pub type OpId = u64;

/// A key of the run, by number: what it is called does not matter.
pub type KeyIndex = usize;

/// Under which condition a write may take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    None,
    /// `If-None-Match: *`
    IfAbsent,
    /// `If-Match` with the ETag of that operation's content.
    IfMatch(OpId),
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// PutObject, or a multipart upload.
    Put {
        /// The key.
        key: KeyIndex,
        /// Under which condition.
        condition: Condition,
        /// Length of the body.
        bytes: u64,
        /// Whether by CreateMultipartUpload, UploadPart and Complete or Abort.
        by_upload: bool,
    },
    /// DeleteObject.
    Delete {
        /// The key.
        key: KeyIndex,
    },
    /// CopyObject: the new version holds the source's body and ETag.
    Copy {
        /// The source.
        from: KeyIndex,
        /// The destination.
        to: KeyIndex,
    },
    /// GetObject, the whole body.
    Get {
        /// The key.
        key: KeyIndex,
    },
    /// ListObjectsV2, all keys.
    List,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A write took place.
    Written {
        /// At this Raft index.
        index: u64,
        /// Whose body the key now holds.
        content: OpId,
    },
    /// A deletion took place.
    Deleted {
        /// At this Raft index.
        index: u64,
    },
    /// The condition did not hold.
    Refused {
        /// Whose ETag was there, if that was said.
        current: Option<OpId>,
    },
    /// The key was read whole.
    Found {
        /// Whose body.
        content: OpId,
        /// Written at this Raft index.
        version: u64,
        /// Looked up as of this Raft index.
        as_of: u64,
    },
    /// No such key.
    Absent,
    /// All keys.
    Listed {
        /// Page by page: each is one view.
        pages: Vec<Page>,
    },
    /// No effect, certainly.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// It begins after this key.
    pub after: Option<KeyIndex>,
    /// It ends with this key; None: with the last there is.
    pub until: Option<KeyIndex>,
    /// Its keys with whose ETag they show.
    pub keys: Vec<(KeyIndex, OpId)>,
    /// As of this Raft index.
    pub as_of: u64,
    /// The event at which it was asked for.
    pub begun: u64,
    /// The event at which it was had.
    pub ended: u64,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Op {
    /// Its number.
    pub id: OpId,
    /// What was asked.
    pub ask: Ask,
    /// The event of asking.
    pub begun: u64,
    /// The event of the answer; `u64::MAX` while there is none.
    pub ended: u64,
    /// What was answered.
    pub answer: Answer,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub struct History {
    /// By number.
    pub ops: Vec<Op>,
    /// Whose content an ETag names.
    contents: BTreeMap<([u8; 16], u32), OpId>,
    events: u64,
}

impl History {
    /// Notes whose content `etag` names.
    pub fn name_content(&mut self, etag: Etag, id: OpId) {
        self.contents.insert((etag.md5, etag.parts), id);
    }

    /// Whose content `etag` names.
    pub fn content_of(&self, etag: &Etag) -> Option<OpId> {
        self.contents.get(&(etag.md5, etag.parts)).copied()
    }

    /// Bytes of the content that an operation wrote.
    pub fn bytes_of(&self, content: OpId) -> Option<u64> {
        match self.ops.get(content as usize)?.ask {
            Ask::Put { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// The next event's number.
    pub fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// An operation begins.
    pub fn begin(&mut self, ask: Ask) -> OpId {
        let (id, begun) = (self.ops.len() as OpId, self.tick());
        self.ops.push(Op { id, ask, begun, ended: u64::MAX, answer: Answer::Unknown });
        id
    }

    /// An operation has its answer, or never will.
    pub fn end(&mut self, id: OpId, answer: Answer) {
        let ended = self.tick();
        let op = &mut self.ops[id as usize];
        // Whoever never heard an answer has none, however long ago it was: the effect may come yet.
        if answer != Answer::Unknown {
            op.ended = ended;
        }
        op.answer = answer;
    }
}

/// The body of an operation.
pub fn body_of(id: OpId, bytes: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(bytes as usize + 8);
    let mut state = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bytes;
    while body.len() < bytes as usize {
        body.put_u64_le(state);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    body.truncate(bytes as usize);
    body.freeze()
}

/// The ETag of an operation: whoever sees it knows who wrote.
pub fn etag_of(id: OpId) -> Etag {
    Etag::whole((u128::from(id) | 1 << 120).to_be_bytes())
}

/// The ETag of a multipart object whose parts all carry [`etag_of`] `id`.
pub fn upload_etag_of(id: OpId, parts: u32) -> Etag {
    let mut digest = Md5::new();
    for _ in 0..parts {
        digest.update(etag_of(id).md5);
    }
    Etag { md5: digest.finalize().into(), parts }
}
