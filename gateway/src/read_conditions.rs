//! The If-* headers of reads, and those about a copy's source: decided here, from the version that OM answered.
//!
//! Not here: those of writes (see `conditions`).

use http::HeaderMap;
use wire::checksum::Etag;

/// How the conditions of a read come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on.
    Holds,
    /// 304 for GET and HEAD; 412 for a copy's source.
    NotModified,
    /// 412.
    Failed,
}

/// Names of the four headers.
pub(crate) struct ConditionHeaders {
    if_match: &'static str,
    if_none_match: &'static str,
    if_modified_since: &'static str,
    if_unmodified_since: &'static str,
}

/// The headers of GetObject and HeadObject.
pub(crate) const READ: ConditionHeaders = ConditionHeaders {
    if_match: "if-match",
    if_none_match: "if-none-match",
    if_modified_since: "if-modified-since",
    if_unmodified_since: "if-unmodified-since",
};

/// The headers of CopyObject and UploadPartCopy about the source.
pub(crate) const COPY_SOURCE: ConditionHeaders = ConditionHeaders {
    if_match: "x-amz-copy-source-if-match",
    if_none_match: "x-amz-copy-source-if-none-match",
    if_modified_since: "x-amz-copy-source-if-modified-since",
    if_unmodified_since: "x-amz-copy-source-if-unmodified-since",
};

impl ConditionHeaders {
    /// Decides by RFC 9110 section 13.2.2 as S3 documents it: If-Match outweighs If-Unmodified-Since, If-None-Match
    /// outweighs If-Modified-Since. Dates that cannot be read are ignored.
    pub(crate) fn decide(&self, headers: &HeaderMap, etag: Etag, modified_ms: u64) -> Verdict {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let date = |name| text(name).and_then(seconds_of_date);
        let modified = modified_ms / 1000;
        match text(self.if_match) {
            Some(list) if !names(list, etag) => return Verdict::Failed,
            Some(_) => {}
            None if date(self.if_unmodified_since).is_some_and(|date| modified > date) => {
                return Verdict::Failed;
            }
            None => {}
        }
        match text(self.if_none_match) {
            Some(list) if names(list, etag) => Verdict::NotModified,
            Some(_) => Verdict::Holds,
            None if date(self.if_modified_since).is_some_and(|date| modified <= date) => Verdict::NotModified,
            None => Verdict::Holds,
        }
    }
}

/// Whether a list of ETags, or `*`, names this one. Quoted or bare, weak or strong.
fn names(list: &str, etag: Etag) -> bool {
    list.split(',').map(str::trim).any(|item| {
        item == "*" || Etag::parse(item.strip_prefix("W/").unwrap_or(item)).is_some_and(|item| item == etag)
    })
}

/// HTTP date to seconds since the epoch.
fn seconds_of_date(text: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(text.trim()).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok().map(|elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: Etag = Etag { md5: [0x11; 16], parts: 0 };
    const MODIFIED_MS: u64 = 1_700_000_000_500;

    fn decide(headers: &[(&'static str, &str)]) -> Verdict {
        let headers = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
        });
        READ.decide(&headers.collect(), ETAG, MODIFIED_MS)
    }

    fn date(offset: i64) -> String {
        let seconds = (MODIFIED_MS / 1000).checked_add_signed(offset).unwrap();
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    }

    #[test]
    fn single_conditions() {
        let (own, other) = (format!("\"{ETAG}\""), "\"22222222222222222222222222222222\"");
        assert_eq!(decide(&[("if-match", &own)]), Verdict::Holds);
        assert_eq!(decide(&[("if-match", &ETAG.to_string())]), Verdict::Holds);
        assert_eq!(decide(&[("if-match", "*")]), Verdict::Holds);
        assert_eq!(decide(&[("if-match", other)]), Verdict::Failed);
        assert_eq!(decide(&[("if-none-match", &format!("{other}, W/{own}"))]), Verdict::NotModified);
        assert_eq!(decide(&[("if-none-match", other)]), Verdict::Holds);
        assert_eq!(decide(&[("if-modified-since", &date(0))]), Verdict::NotModified);
        assert_eq!(decide(&[("if-modified-since", &date(-1))]), Verdict::Holds);
        assert_eq!(decide(&[("if-unmodified-since", &date(0))]), Verdict::Holds);
        assert_eq!(decide(&[("if-unmodified-since", &date(-1))]), Verdict::Failed);
        assert_eq!(decide(&[("if-modified-since", "never")]), Verdict::Holds);
    }

    #[test]
    fn etags_outweigh_dates() {
        let own = format!("\"{ETAG}\"");
        assert_eq!(decide(&[("if-match", &own), ("if-unmodified-since", &date(-9))]), Verdict::Holds);
        let other = "\"22222222222222222222222222222222\"";
        assert_eq!(decide(&[("if-none-match", other), ("if-modified-since", &date(9))]), Verdict::Holds);
    }
}
