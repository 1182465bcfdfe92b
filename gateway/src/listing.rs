//! What the listings have in common: their parameters, and names as they are shown.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use wire::limits::{KEY_NAME_BYTES_MAX, LIST_ENTRIES_MAX};

use crate::error::S3Error;
use crate::query::Query;

/// What `encoding-type=url` leaves as it is.
const URL_ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b'*');

/// What must be encoded at least, so that decoding gives the text back and XML can carry it.
const URL_ENCODED_BARELY: &AsciiSet = &CONTROLS.remove(b'\t').remove(b'\n').add(b'%').add(b'+');

/// How names are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As they are, as far as XML can hold them.
    Plain,
    /// `encoding-type=url`.
    Url,
}

impl Encoding {
    /// From the query.
    pub(crate) fn of(query: &Query) -> Result<Self, S3Error> {
        match query.get_set("encoding-type") {
            None => Ok(Self::Plain),
            Some(text) if text.eq_ignore_ascii_case("url") => Ok(Self::Url),
            Some(other) => Err(S3Error::invalid_argument(
                "Invalid Encoding Method specified in Request",
                "encoding-type",
                other,
            )),
        }
    }

    /// A name as this encoding shows it.
    pub(crate) fn show(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::Plain => name.into(),
            Self::Url => utf8_percent_encode(name, URL_ENCODED).into(),
        }
    }
}

impl Encoding {
    /// As [`Self::show`], encoding no more than decoding needs. For the prefix of ListObjects, which botocore asks to have
    /// encoded and then does not decode: most prefixes reach its callers as they were.
    pub(crate) fn show_barely(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::Plain => name.into(),
            Self::Url => {
                // The set speaks of ASCII only; everything beyond stays as it is.
                let mut shown = String::with_capacity(name.len());
                for character in name.chars() {
                    match character.is_ascii() {
                        true => shown.extend(utf8_percent_encode(
                            character.encode_utf8(&mut [0; 4]),
                            URL_ENCODED_BARELY,
                        )),
                        false => shown.push(character),
                    }
                }
                shown.into()
            }
        }
    }
}

/// A number that bounds a page: `max-keys` and its like. More than a page holds is cut to it.
pub(crate) fn page_size(query: &Query, name: &'static str) -> Result<u32, S3Error> {
    let Some(text) = query.get_set(name) else { return Ok(LIST_ENTRIES_MAX) };
    match text.parse::<i32>() {
        Ok(number) if number >= 0 => Ok(LIST_ENTRIES_MAX.min(number.unsigned_abs())),
        Ok(_) => Err(S3Error::invalid_argument(
            format!("Argument {name} must be an integer between 0 and 2147483647"),
            name,
            text,
        )),
        Err(_) => Err(S3Error::invalid_argument(
            format!("Provided {name} not an integer or within integer range"),
            name,
            text,
        )),
    }
}

/// A parameter that holds a name or a piece of one. Absent equals empty.
pub(crate) fn name_parameter(query: &Query, name: &'static str) -> Result<String, S3Error> {
    let text = query.get(name).unwrap_or("");
    if text.len() > KEY_NAME_BYTES_MAX {
        return Err(S3Error::invalid_argument(
            format!("The parameter {name} is longer than a key."),
            name,
            text,
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(Some(text)).unwrap()
    }

    #[test]
    fn page_sizes() {
        for (text, expected) in [
            ("", Ok(1000)),
            ("max-keys=", Ok(1000)),
            ("max-keys=0", Ok(0)),
            ("max-keys=7", Ok(7)),
            ("max-keys=2147483647", Ok(1000)),
            ("max-keys=2147483648", Err("InvalidArgument")),
            ("max-keys=-1", Err("InvalidArgument")),
            ("max-keys=blah", Err("InvalidArgument")),
        ] {
            assert_eq!(page_size(&query(text), "max-keys").map_err(|error| error.code), expected, "{text}");
        }
    }

    #[test]
    fn url_encoding_keeps_slashes() {
        let shown = Encoding::of(&query("encoding-type=url")).unwrap();
        assert_eq!(shown.show("foo+1/b a\u{1}\u{e9}"), "foo%2B1/b%20a%01%C3%A9");
        assert_eq!(shown.show_barely("a b\n%+/\u{1}\u{e9}"), "a b\n%25%2B/%01\u{e9}");
        assert_eq!(Encoding::of(&query("encoding-type=")).unwrap().show("a b"), "a b");
        assert!(Encoding::of(&query("encoding-type=base64")).is_err());
    }

    #[test]
    fn names_longer_than_a_key_are_refused() {
        assert!(name_parameter(&query(&format!("prefix={}", "p".repeat(1025))), "prefix").is_err());
        assert_eq!(name_parameter(&query("prefix"), "prefix").unwrap(), "");
    }
}
