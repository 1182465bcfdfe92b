//! Names that people choose: volumes, buckets, keys. Checked once, here, on the way in.
//!
//! Invariants: a `BucketName` follows S3's naming rules for general purpose buckets; a `KeyName` is 1 to 1,024 bytes of
//! UTF-8 and otherwise opaque: it is never a path, so `..`, `//` and control characters are legal.
//!
//! Not here: URL decoding (gateway).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::KEY_NAME_BYTES_MAX;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a legal bucket or volume name.
    #[error("{0:?} is not a legal bucket name: {1}")]
    Bucket(String, &'static str),
    /// The key is longer than S3 allows.
    #[error("the key has {0} bytes, more than {KEY_NAME_BYTES_MAX}")]
    KeyTooLong(usize),
    /// The key is empty.
    #[error("the key is empty")]
    KeyEmpty,
    /// The key is not UTF-8.
    #[error("the key is not valid UTF-8")]
    KeyNotUtf8,
}

/// The volume in which S3 buckets live (Ozone's `s3v`).
pub const S3_VOLUME: &str = "s3v";

/// A bucket's or volume's name by S3's rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BucketName(Arc<str>);

impl BucketName {
    /// Checks `name` against S3's rules for general purpose buckets: 3 to 63 characters of a-z, 0-9, `.` and `-`; ends
    /// are letters or digits; no `..`, `.-`, `-.`; not an IPv4 address; no reserved prefix or suffix.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let refuse = |why| Err(NameError::Bucket(name.chars().take(80).collect(), why));
        let bytes = name.as_bytes();
        if !(3..=63).contains(&bytes.len()) {
            return refuse("it must have 3 to 63 characters");
        }
        if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-')) {
            return refuse("it may hold lower-case letters, digits, dots and hyphens only");
        }
        let end_is_plain = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !end_is_plain(bytes.first()) || !end_is_plain(bytes.last()) {
            return refuse("it must begin and end with a letter or digit");
        }
        if bytes.windows(2).any(|pair| matches!(pair, b".." | b".-" | b"-.")) {
            return refuse("dots may not touch dots or hyphens");
        }
        if name.parse::<std::net::Ipv4Addr>().is_ok() || looks_like_ipv4(name) {
            return refuse("it must not look like an IP address");
        }
        let reserved_prefix = ["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|p| name.starts_with(p));
        let reserved_suffix =
            ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().any(|s| name.ends_with(s));
        if reserved_prefix || reserved_suffix {
            return refuse("it has a reserved prefix or suffix");
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn looks_like_ipv4(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    parts.len() == 4 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

impl TryFrom<String> for BucketName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<BucketName> for String {
    fn from(name: BucketName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume's name: the same rules as a bucket's.
pub type VolumeName = BucketName;

/// A key's name: 1 to 1,024 bytes of UTF-8, opaque.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// Checks length; any UTF-8 is legal.
    pub fn new(name: &str) -> Result<Self, NameError> {
        match name.len() {
            0 => Err(NameError::KeyEmpty),
            1..=KEY_NAME_BYTES_MAX => Ok(Self(name.into())),
            length => Err(NameError::KeyTooLong(length)),
        }
    }

    /// As [`Self::new`], from bytes.
    pub fn from_bytes(name: &[u8]) -> Result<Self, NameError> {
        if name.len() > KEY_NAME_BYTES_MAX {
            return Err(NameError::KeyTooLong(name.len()));
        }
        Self::new(std::str::from_utf8(name).map_err(|_| NameError::KeyNotUtf8)?)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its bytes: keys are listed in their order.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl TryFrom<String> for KeyName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_s3() {
        for good in ["abc", "a-b.c", "0123", "foo.bar", &"a".repeat(63)] {
            assert!(BucketName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            &"a".repeat(64),
            "A-b-c",
            "a_b",
            "-ab",
            "ab-",
            "a..b",
            "a.-b",
            "a-.b",
            "192.168.5.4",
            "$x$",
        ] {
            assert!(BucketName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_opaque_but_bounded() {
        for good in ["/", "..", "a//b", "\u{1}", "ü", &"k".repeat(1024)] {
            assert!(KeyName::new(good).is_ok(), "{good}");
        }
        assert_eq!(KeyName::new(""), Err(NameError::KeyEmpty));
        assert_eq!(KeyName::new(&"k".repeat(1025)), Err(NameError::KeyTooLong(1025)));
        assert_eq!(KeyName::from_bytes(b"\xff"), Err(NameError::KeyNotUtf8));
    }
}
