//! Refusals of the admin API: a status for programs, a code that stays, a message for people.

use axum::Json;
use axum::response::{IntoResponse, Response};
use client::service::CallError;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use wire::om::Rejection;
use wire::status::{Failure, Status};

/// Why a call was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No proof, or a wrong, expired or repeated one.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// A good proof of somebody who may not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A parameter or body that cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// The body is longer than any call's.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// No such route.
    #[error("there is no {0}")]
    NoRoute(String),
    /// No such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// OM or SCM gave no answer.
    #[error("{service}: {failure}")]
    Failed {
        /// Which.
        service: &'static str,
        /// What it said.
        failure: Failure,
    },
}

/// A refusal as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Does not change: for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// From OM's answer.
    pub(crate) fn om(error: CallError) -> Self {
        match error {
            // The call was understood, and the group's state does not allow it.
            CallError::Failed(failure) if failure.status == Status::Invalid => {
                Self::Conflict(failure.message)
            }
            CallError::Failed(failure) => Self::Failed { service: "om", failure },
            CallError::Rejected(rejection) => match &rejection {
                Rejection::NoSuchBucket
                | Rejection::NoSuchKey
                | Rejection::NoSuchUpload
                | Rejection::NoSuchVolume => Self::NotFound(rejection.to_string()),
                Rejection::Invalid(message) => Self::BadRequest(message.clone()),
                _ => Self::Conflict(rejection.to_string()),
            },
        }
    }

    /// From SCM's answer.
    pub(crate) fn scm(failure: Failure) -> Self {
        match failure.status {
            Status::Invalid => Self::Conflict(failure.message),
            _ => Self::Failed { service: "scm", failure },
        }
    }

    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::NoRoute(_) => (StatusCode::NOT_FOUND, "no_route"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Self::Failed { failure, .. } => match failure.status {
                Status::Retry | Status::NotLeader | Status::NotReady => {
                    (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
                }
                Status::Unknown => (StatusCode::GATEWAY_TIMEOUT, "outcome_unknown"),
                Status::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
                Status::Invalid => (StatusCode::BAD_REQUEST, "bad_request"),
                Status::NotFound => (StatusCode::NOT_FOUND, "not_found"),
                Status::Refused => (StatusCode::CONFLICT, "conflict"),
                Status::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow"),
                // Our own call was not let in: not the operator's fault.
                Status::Denied => (StatusCode::BAD_GATEWAY, "denied_within"),
                Status::Corrupt | Status::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.parts();
        let body = ErrorBody { code: code.to_owned(), message: self.to_string() };
        (status, Json(body)).into_response()
    }
}
