//! The crate's errors, sorted by who must act: the operator at opening; the caller's are `wire::status::Failure`.

use consensus::{ProposeError, ReadError, StoreError};
use wire::status::{Failure, Status};

/// SCM could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ScmError {
    /// The replicated group could not be opened. Says what the operator can do.
    #[error("cannot open the container manager")]
    Open(#[from] consensus::OpenError),
    /// The settings contradict one another.
    #[error("scm settings: {0}")]
    Config(&'static str),
    /// Opening panicked, which the log tells.
    #[error("opening the container manager ended in a bug")]
    Died,
}

/// What a proposer tells its caller.
pub(crate) fn propose_failure(error: ProposeError) -> Failure {
    let status = match &error {
        ProposeError::NotLeader { .. } => Status::NotLeader,
        ProposeError::Overloaded | ProposeError::Yielding => Status::Retry,
        ProposeError::TooLarge { .. } => Status::Invalid,
        ProposeError::Unknown => Status::Unknown,
        ProposeError::Corrupt { .. } => Status::Corrupt,
        ProposeError::Full => Status::DiskFull,
    };
    Failure::new(status, format!("scm: {error}"))
}

/// What a reader tells its caller.
pub(crate) fn read_failure(error: ReadError) -> Failure {
    match error {
        ReadError::NotLeader { .. } => Failure::new(Status::NotLeader, format!("scm: {error}")),
        ReadError::TimedOut => Failure::new(Status::Retry, format!("scm: {error}")),
        ReadError::Stopped => Failure::new(Status::Retry, "scm is stopping"),
        ReadError::Store(error) => store_failure(&error),
    }
}

/// What a failing row tells the caller.
pub(crate) fn store_failure(error: &StoreError) -> Failure {
    let status = match error {
        StoreError::Corrupt { .. } => Status::Corrupt,
        StoreError::Redb(_) => Status::Internal,
    };
    Failure::new(status, format!("scm: {error}"))
}
