//! Names as URIs: percent-encoding as Signature Version 4 wants it.
//!
//! The same text goes on the wire and into the canonical request, so a server that signs what it received must agree.
//! Dot segments and repeated slashes are legal in keys and stay as they are; nothing here normalises.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::Error;

/// Everything but RFC 3986's unreserved characters.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// In a path the slash stands for itself.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// `/bucket/key`, encoded.
pub(crate) fn path(bucket: &str, key: &str) -> String {
    let mut text = String::with_capacity(bucket.len() + key.len() + 16);
    text.push('/');
    if !bucket.is_empty() {
        text.extend(utf8_percent_encode(bucket, QUERY));
        if !key.is_empty() {
            text.push('/');
            text.extend(utf8_percent_encode(key, PATH));
        }
    }
    text
}

/// `a=1&b=`, encoded and in the canonical order.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<(String, String)> = pairs
        .iter()
        .map(|(name, value)| {
            (utf8_percent_encode(name, QUERY).to_string(), utf8_percent_encode(value, QUERY).to_string())
        })
        .collect();
    encoded.sort();
    let mut text = String::new();
    for (name, value) in &encoded {
        if !text.is_empty() {
            text.push('&');
        }
        write!(text, "{name}={value}").expect("a String takes every write");
    }
    text
}

/// Undoes `encoding-type=url` of a listing. Amazon writes a space as `+`, others as `%20`.
pub(crate) fn decode_listed(text: &str) -> Result<String, Error> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(|decoded| decoded.into_owned())
        .map_err(|_| Error::Response(format!("listed name {text:?} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_keeps_slashes_and_dots_and_encodes_the_rest() {
        assert_eq!(path("b", "a b+c/é~\u{1}"), "/b/a%20b%2Bc/%C3%A9~%01");
        assert_eq!(path("b", "/x//../y/"), "/b//x//../y/");
        assert_eq!(path("b", ""), "/b");
        assert_eq!(path("", ""), "/");
        assert_eq!(path("b", "?#%&="), "/b/%3F%23%25%26%3D");
    }

    #[test]
    fn query_is_sorted_after_encoding() {
        assert_eq!(
            query(&[("prefix", "a/b"), ("list-type", "2"), ("delete", "")]),
            "delete=&list-type=2&prefix=a%2Fb"
        );
    }

    #[test]
    fn listed_names_round_trip() {
        for key in ["a b", "a+b", "é/%", "\u{1}x", "&<>"] {
            let amazon = utf8_percent_encode(key, PATH).to_string().replace("%20", "+");
            assert_eq!(decode_listed(&amazon).unwrap(), key);
            assert_eq!(decode_listed(&utf8_percent_encode(key, PATH).to_string()).unwrap(), key);
        }
        assert!(decode_listed("%ff").is_err());
    }
}
