//! Decides whether what clients of a cluster were answered could have come from one correct store.
//!
//! The simulator and the chaos tests on real processes write the same history and are judged by the same rules.
//!
//! | file | what |
//! | --- | --- |
//! | `history` | what was asked and answered, in order of events; bodies that tell who wrote them |
//! | `check` | linearizability of keys, conditional writes and listings, by the Raft index as witness |
//!
//! Not here: who asks (`sim`, `xtask chaos`), what is on disks at the end.

mod check;
mod history;

pub use check::check;
pub use history::{
    Answer, Ask, Condition, History, KeyIndex, Op, OpId, Page, body_of, etag_of, upload_etag_of,
};
