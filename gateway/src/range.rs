//! The `Range` header of GetObject and HeadObject, and `x-amz-copy-source-range`.
//!
//! S3 serves one range. A header that is not one well-formed byte range is ignored, as HTTP says and S3 does; a
//! well-formed one that holds no byte of the object is 416.

use std::ops::Range;

/// One byte range as asked for, before the object's size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// `bytes=a-b`, both ends included.
    Span(u64, u64),
    /// `bytes=a-`.
    From(u64),
    /// `bytes=-n`.
    Last(u64),
}

/// The range holds no byte of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsatisfiable;

impl ByteRange {
    /// Parses a header's value; None if it is not one byte range.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (unit, spec) = text.trim().split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = spec.trim().split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Span(first, last))
            }
        }
    }

    /// The bytes of an object of `size` bytes. The end is cut to the object's.
    pub(crate) fn resolve(self, size: u64) -> Result<Range<u64>, Unsatisfiable> {
        let range = match self {
            Self::Span(first, last) => first..last.saturating_add(1).min(size),
            Self::From(first) => first..size,
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        if range.start < range.end { Ok(range) } else { Err(Unsatisfiable) }
    }
}

fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a u64 holds mean "beyond any object".
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_as_s3_reads_them() {
        let resolve = |text, size| ByteRange::parse(text).map(|range| range.resolve(size));
        assert_eq!(resolve("bytes=0-4", 10), Some(Ok(0..5)));
        assert_eq!(resolve("bytes=4-100", 10), Some(Ok(4..10)));
        assert_eq!(resolve("bytes=9-", 10), Some(Ok(9..10)));
        assert_eq!(resolve("bytes=-3", 10), Some(Ok(7..10)));
        assert_eq!(resolve("bytes=-30", 10), Some(Ok(0..10)));
        assert_eq!(resolve("bytes=10-", 10), Some(Err(Unsatisfiable)));
        assert_eq!(resolve("bytes=-0", 10), Some(Err(Unsatisfiable)));
        assert_eq!(resolve("bytes=0-", 0), Some(Err(Unsatisfiable)));
        assert_eq!(resolve("bytes=0-99999999999999999999999", 10), Some(Ok(0..10)));
        assert_eq!(resolve("bytes=18446744073709551615-18446744073709551615", 10), Some(Err(Unsatisfiable)));
        for ignored in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "items=1-2",
            "bytes=+1-2",
        ] {
            assert_eq!(ByteRange::parse(ignored), None, "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,40}", size in any::<u64>()) {
            if let Some(Ok(range)) = ByteRange::parse(&text).map(|range| range.resolve(size)) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
