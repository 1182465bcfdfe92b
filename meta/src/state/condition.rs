//! Preconditions of writes and deletes: decided here, in apply, so that racers have one winner.

use wire::checksum::Etag;
use wire::om::{Rejection, WriteCondition};

/// Whether a write may replace what is there: for apply.
pub(crate) fn check(condition: WriteCondition, current: Option<Etag>) -> Result<(), Rejection> {
    if wire::planted::is_on("condition_checked_early") {
        return Ok(());
    }
    decide(condition, current)
}

/// The decision itself.
pub(crate) fn decide(condition: WriteCondition, current: Option<Etag>) -> Result<(), Rejection> {
    let failed = Err(Rejection::PreconditionFailed { current });
    match (condition, current) {
        (WriteCondition::None, _)
        | (WriteCondition::IfAbsent, None)
        | (WriteCondition::IfPresent, Some(_)) => Ok(()),
        (WriteCondition::IfAbsent, Some(_)) => failed,
        (WriteCondition::IfPresent | WriteCondition::IfMatch(_), None) => Err(Rejection::NoSuchKey),
        (WriteCondition::IfMatch(etag), Some(current)) if etag == current => Ok(()),
        (WriteCondition::IfMatch(_), Some(_)) => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_s3() {
        let here = Etag::whole([1; 16]);
        let other = Etag::whole([2; 16]);
        let failed = |current| Err(Rejection::PreconditionFailed { current });
        for (condition, current, expected) in [
            (WriteCondition::None, None, Ok(())),
            (WriteCondition::None, Some(here), Ok(())),
            (WriteCondition::IfAbsent, None, Ok(())),
            (WriteCondition::IfAbsent, Some(here), failed(Some(here))),
            (WriteCondition::IfPresent, Some(here), Ok(())),
            (WriteCondition::IfPresent, None, Err(Rejection::NoSuchKey)),
            (WriteCondition::IfMatch(here), Some(here), Ok(())),
            (WriteCondition::IfMatch(other), Some(here), failed(Some(here))),
            (WriteCondition::IfMatch(here), None, Err(Rejection::NoSuchKey)),
        ] {
            assert_eq!(check(condition, current), expected, "{condition:?} on {current:?}");
        }
    }
}
