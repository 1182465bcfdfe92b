//! Percent-coding of the URI exactly as it was received.
//!
//! S3 canonicalises by decoding each part once and encoding it again with the unreserved set of RFC 3986, so that a
//! client may leave `/` or `~` raw in what it sends and still sign their encoded form. A `+` is a plus in a path, but
//! a space in a query: object_store and all that stands on it send `+` there and sign `%20`. A `%` without two hex
//! digits stands for itself.
//!
//! Invariants: no input panics; coding an already canonical text changes nothing.

/// Which part of the URI a text is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The path: a slash stays as it is.
    Path,
    /// A name or value of the query: a plus is a space.
    Query,
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The bytes of a percent-encoded text, decoded once.
pub(crate) struct Decoded<'a>(&'a [u8]);

impl<'a> Decoded<'a> {
    pub(crate) fn new(raw: &'a str) -> Self {
        Decoded(raw.as_bytes())
    }
}

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        if let (b'%', [high, low, rest @ ..]) = (first, rest)
            && let (Some(high), Some(low)) = (nibble(*high), nibble(*low))
        {
            self.0 = rest;
            return Some(high << 4 | low);
        }
        self.0 = rest;
        Some(first)
    }
}

/// The bytes of a value in a query, where a plus is a space.
pub(crate) fn decoded_value(raw: &str) -> impl Iterator<Item = u8> {
    raw.split('+').enumerate().flat_map(|(position, piece)| {
        let space = (position > 0).then_some(b' ');
        space.into_iter().chain(Decoded::new(piece))
    })
}

/// Appends `raw`, decoded and encoded again.
pub(crate) fn recode(raw: &str, part: Part, out: &mut Vec<u8>) {
    let mut push = |byte: u8| {
        let is_unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        if is_unreserved || (byte == b'/' && part == Part::Path) {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    };
    match part {
        Part::Path => Decoded::new(raw).for_each(&mut push),
        Part::Query => decoded_value(raw).for_each(&mut push),
    }
}

/// Decodes a credential's parameter, in which a plus is a plus (it is a digit of Base64). Bytes that are not UTF-8
/// become replacement characters, which no valid parameter holds.
pub(crate) fn decode(raw: &str) -> String {
    match raw.contains('%') {
        false => raw.to_owned(),
        true => String::from_utf8_lossy(&Decoded::new(raw).collect::<Vec<u8>>()).into_owned(),
    }
}

/// Whether the decoded text is `plain`.
pub(crate) fn is(raw: &str, plain: &str) -> bool {
    Decoded::new(raw).eq(plain.bytes())
}

/// Whether the decoded text is `plain`, whatever the case of its letters.
pub(crate) fn is_ignoring_case(raw: &str, plain: &str) -> bool {
    let mut wanted = plain.bytes();
    Decoded::new(raw).all(|byte| wanted.next().is_some_and(|other| other.eq_ignore_ascii_case(&byte)))
        && wanted.next().is_none()
}

/// The `name=value` pairs of a raw query, undecoded, in the order sent. A missing `=` is an empty value; empty pairs
/// do not count.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recoded(raw: &str, part: Part) -> String {
        let mut out = Vec::new();
        recode(raw, part, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn raw_and_encoded_have_one_canonical_form() {
        for (raw, canonical) in [
            ("a/b c", "a%2Fb%20c"),
            ("a%2fb%20c", "a%2Fb%20c"),
            ("a+b", "a%20b"),
            ("+%2B+", "%20%2B%20"),
            ("%7e~", "~~"),
            ("100%", "100%25"),
            ("%zz%4", "%25zz%254"),
            ("%2541", "%2541"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(recoded(raw, Part::Query), canonical);
            assert_eq!(recoded(canonical, Part::Query), canonical);
        }
        assert_eq!(recoded("/a/../b//c%2Fd+e", Part::Path), "/a/../b//c/d%2Be");
    }

    #[test]
    fn names_are_compared_decoded() {
        assert!(is("X%2DAmz-Signature", "X-Amz-Signature"));
        assert!(!is("x-amz-signature", "X-Amz-Signature"));
        assert!(is_ignoring_case("x-amz-signature", "X-Amz-Signature"));
        assert!(!is_ignoring_case("x-amz-signatur", "X-Amz-Signature"));
        assert!(!is_ignoring_case("x-amz-signatures", "X-Amz-Signature"));
    }

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        let found: Vec<_> = pairs("a=b=c&&acl&d=").collect();
        assert_eq!(found, [("a", "b=c"), ("acl", ""), ("d", "")]);
    }
}
