//! The date forms of signed requests, and their milliseconds.
//!
//! SigV4 signs the ISO 8601 basic form (`20130524T000000Z`) whatever the header carried: a client that sends only an
//! RFC 1123 `Date` header signs its ISO form.
//!
//! Not here: which header counts (see `v4`).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// Parses `YYYYMMDDTHHMMSSZ` into milliseconds since the epoch.
pub(crate) fn parse_iso_basic(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let year = i16::try_from(digits(&bytes[0..4])?).ok()?;
    let small = |range: std::ops::Range<usize>| i8::try_from(digits(&bytes[range])?).ok();
    let civil =
        DateTime::new(year, small(4..6)?, small(6..8)?, small(9..11)?, small(11..13)?, small(13..15)?, 0)
            .ok()?;
    Some(Offset::UTC.to_timestamp(civil).ok()?.as_millisecond())
}

/// Parses a `Date` or `x-amz-date` header: ISO 8601 basic, any of the three forms of an HTTP date, or RFC 2822 in GMT.
pub(crate) fn parse_header(text: &str) -> Option<i64> {
    if let Some(ms) = parse_iso_basic(text) {
        return Some(ms);
    }
    // RFC 2822 spells GMT in numbers too; Python's formatdate does.
    let text = match text.strip_suffix(" -0000").or_else(|| text.strip_suffix(" +0000")) {
        Some(bare) => std::borrow::Cow::Owned(format!("{bare} GMT")),
        None => std::borrow::Cow::Borrowed(text),
    };
    let time = httpdate::parse_http_date(&text).ok()?;
    let since_epoch = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since_epoch.as_millis()).ok()
}

/// Formats milliseconds as `YYYYMMDDTHHMMSSZ`.
pub(crate) fn iso_basic(ms: i64) -> String {
    format(ms, "%Y%m%dT%H%M%SZ")
}

/// Formats milliseconds as `YYYY-MM-DDTHH:MM:SSZ`, the form of S3's error bodies.
pub(crate) fn iso_extended(ms: i64) -> String {
    format(ms, "%Y-%m-%dT%H:%M:%SZ")
}

/// A time outside the calendar (year 9999) prints as plain milliseconds: it appears only in error bodies.
fn format(ms: i64, form: &str) -> String {
    Timestamp::from_millisecond(ms)
        .ok()
        .and_then(|timestamp| jiff::fmt::strtime::format(form, timestamp).ok())
        .unwrap_or_else(|| ms.to_string())
}

fn digits(bytes: &[u8]) -> Option<u16> {
    bytes.iter().try_fold(0u16, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u16::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_same_instant() {
        assert_eq!(parse_iso_basic("20130524T000000Z"), Some(1_369_353_600_000));
        assert_eq!(parse_header("Fri, 24 May 2013 00:00:00 GMT"), Some(1_369_353_600_000));
        assert_eq!(parse_header("Fri, 24 May 2013 00:00:00 -0000"), Some(1_369_353_600_000));
        assert_eq!(parse_header("Fri, 24 May 2013 00:00:00 +0200"), None);
        assert_eq!(iso_basic(1_369_353_600_000), "20130524T000000Z");
        assert_eq!(iso_extended(1_369_353_600_000), "2013-05-24T00:00:00Z");
    }

    #[test]
    fn nonsense_is_no_date() {
        for text in [
            "",
            "20130524",
            "20131324T000000Z",
            "20130532T000000Z",
            "20130524T250000Z",
            "2013-05-24T00:00:00Z",
            "Bad Date",
        ] {
            assert_eq!(parse_header(text), None, "{text}");
        }
        assert_eq!(parse_iso_basic("+0130524T000000Z"), None);
        assert_eq!(parse_iso_basic("２０１３０Z"), None);
    }
}
