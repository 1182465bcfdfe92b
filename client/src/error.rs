//! How this crate's callers see what went wrong: everything below S3 is a `Failure` with a status to act by.

use wire::om::Rejection;
use wire::status::{Failure, Status};

use crate::service::CallError;

/// A rejection where none is expected: the caller can only try again from the start.
pub(crate) fn failure_of(error: CallError) -> Failure {
    match error {
        CallError::Failed(failure) => failure,
        CallError::Rejected(Rejection::SessionEnded | Rejection::NotOnLoan(_)) => {
            Failure::new(Status::Retry, "the gateway's session with om has ended; try again")
        }
        CallError::Rejected(rejection) => Failure::new(Status::Internal, rejection.to_string()),
    }
}
