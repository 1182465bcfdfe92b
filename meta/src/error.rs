//! The crate's errors: opening OM, and how faults of consensus become answers.

use client::service::CallError;
use consensus::{OpenError, ProposeError, StoreError};
use wire::om::Rejection;
use wire::status::{Failure, Status};

/// OM could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OmError {
    /// Log or state.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The thread that opened it died.
    #[error("the thread that opened om has died")]
    Died,
}

/// A command that was not applied, as its caller sees it. Who leads is added by the server.
pub(crate) fn of_propose(error: &ProposeError) -> CallError {
    let status = match error {
        ProposeError::NotLeader { .. } => Status::NotLeader,
        ProposeError::Overloaded | ProposeError::Yielding => Status::Retry,
        ProposeError::TooLarge { .. } => Status::Invalid,
        ProposeError::Unknown => Status::Unknown,
        ProposeError::Full => Status::DiskFull,
        ProposeError::Corrupt { .. } => {
            tracing::error!(%error, "a command failed on a damaged row");
            return Rejection::DamagedRow.into();
        }
    };
    Failure::new(status, error.to_string()).into()
}

/// Rows that could not be read.
pub(crate) fn of_store(error: &StoreError) -> CallError {
    match error {
        StoreError::Corrupt { .. } => {
            tracing::error!(%error, "a call failed on a damaged row");
            Rejection::DamagedRow.into()
        }
        // The text names files of this machine: it goes to the log, not to clients.
        error => {
            tracing::error!(%error, "the state file failed");
            Failure::new(Status::Internal, "om's state cannot be read").into()
        }
    }
}

/// A call's end as a failure: for workers, whose commands nobody rejects.
pub(crate) fn failure_of(error: CallError) -> Failure {
    match error {
        CallError::Failed(failure) => failure,
        CallError::Rejected(rejection) => Failure::new(Status::Internal, rejection.to_string()),
    }
}
