//! The If-* headers of writes.
//!
//! Not here: those of reads (the GET handler), where they are decided (OM's apply).

use http::HeaderMap;
use wire::checksum::Etag;
use wire::om::WriteCondition;

use crate::error::S3Error;

/// An ETag no object has, for texts that are none: OM still tells a missing key from one that does not match.
const NO_ETAG: Etag = Etag { md5: [0; 16], parts: u32::MAX };

/// `If-Match` and `If-None-Match` of PUT, Complete, Copy and Delete.
///
/// S3 knows only `If-None-Match: *` on writes. An If-Match that is no ETag can match nothing.
pub(crate) fn write_condition(headers: &HeaderMap) -> Result<WriteCondition, S3Error> {
    let text = |name| headers.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap_or("").trim());
    let absent = match text("if-none-match") {
        None => false,
        Some("*") => true,
        Some(_) => return Err(S3Error::not_implemented("If-None-Match with an ETag on a write")),
    };
    match (absent, text("if-match")) {
        (true, Some(_)) => Err(S3Error::not_implemented("If-Match together with If-None-Match on a write")),
        (true, None) => Ok(WriteCondition::IfAbsent),
        (false, None) => Ok(WriteCondition::None),
        (false, Some(value)) => Ok(if_match(value)),
    }
}

/// What `If-Match: value` asks.
pub(crate) fn if_match(value: &str) -> WriteCondition {
    match value.trim() {
        "*" | "\"*\"" => WriteCondition::IfPresent,
        value => WriteCondition::IfMatch(Etag::parse(value).unwrap_or(NO_ETAG)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(headers: &[(&'static str, &'static str)]) -> Result<WriteCondition, &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        write_condition(&map).map_err(|error| error.code)
    }

    #[test]
    fn conditions_of_writes() {
        let etag = "0123456789abcdef0123456789abcdef";
        assert_eq!(condition(&[]), Ok(WriteCondition::None));
        assert_eq!(condition(&[("if-none-match", "*")]), Ok(WriteCondition::IfAbsent));
        assert_eq!(condition(&[("if-match", "*")]), Ok(WriteCondition::IfPresent));
        assert_eq!(condition(&[("if-match", etag)]), Ok(WriteCondition::IfMatch(Etag::parse(etag).unwrap())));
        assert_eq!(condition(&[("if-none-match", etag)]), Err("NotImplemented"));
        assert_eq!(condition(&[("if-match", "\"ABCORZ\"")]), Ok(WriteCondition::IfMatch(NO_ETAG)));
        assert_eq!(condition(&[("if-match", "*"), ("if-none-match", "*")]), Err("NotImplemented"));
    }
}
