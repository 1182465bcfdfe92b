//! Which bucket and key a request is about, from its Host and raw path.
//!
//! The key is the path behind the bucket, percent-decoded exactly once and otherwise untouched: `..`, `//` and a
//! leading `/` are part of it, `+` is a plus.
//!
//! Not here: signatures (auth reads the raw path), queries (see `query`).

use http::request::Parts;
use percent_encoding::percent_decode_str;
use wire::names::KeyName;

use crate::error::S3Error;

/// What a request is about. Bucket names are not checked here: CreateBucket and the others refuse them differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The bucket, if any.
    pub(crate) bucket: Option<String>,
    /// The key, if any.
    pub(crate) key: Option<KeyName>,
    /// Whether the bucket came from the Host header.
    pub(crate) is_virtual_host: bool,
}

impl Target {
    /// Reads Host (or the absolute form's authority) and path.
    pub(crate) fn of(parts: &Parts, domains: &[String]) -> Result<Self, S3Error> {
        let host = match parts.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
        };
        let path = parts.uri.path();
        let path = path.strip_prefix('/').unwrap_or(path);
        if let Some(bucket) = host.and_then(|host| bucket_of_host(host, domains)) {
            return Ok(Self { bucket: Some(bucket), key: key_of(path)?, is_virtual_host: true });
        }
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            // `//key` names an empty bucket; `/` is the service.
            return match key {
                "" => Ok(Self { bucket: None, key: None, is_virtual_host: false }),
                _ => Err(S3Error::invalid_bucket_name("")),
            };
        }
        let bucket =
            percent_decode_str(bucket).decode_utf8().map_err(|_| S3Error::invalid_uri())?.into_owned();
        Ok(Self { bucket: Some(bucket), key: key_of(key)?, is_virtual_host: false })
    }
}

/// `bucket` of `bucket.domain[:port]`; None if the host is no subdomain of ours.
fn bucket_of_host(host: &str, domains: &[String]) -> Option<String> {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    domains.iter().find_map(|domain| {
        let at = host.len().checked_sub(domain.len())?;
        let (front, back) = (host.get(..at)?, host.get(at..)?);
        let bucket = front.strip_suffix('.')?;
        (back.eq_ignore_ascii_case(domain) && !bucket.is_empty()).then(|| bucket.to_ascii_lowercase())
    })
}

fn key_of(raw: &str) -> Result<Option<KeyName>, S3Error> {
    if raw.is_empty() {
        return Ok(None);
    }
    parse_key(raw).map(Some)
}

/// Decodes and checks a percent-encoded key.
pub(crate) fn parse_key(raw: &str) -> Result<KeyName, S3Error> {
    if !escapes_are_whole(raw) {
        return Err(S3Error::invalid_uri());
    }
    let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| S3Error::invalid_uri())?;
    KeyName::new(&decoded).map_err(S3Error::from)
}

/// Every `%` has its two digits: the decoder would take others as they stand, and store a key nobody meant.
fn escapes_are_whole(raw: &str) -> bool {
    let digits = |after: &str| after.len() >= 2 && after.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    raw.split('%').skip(1).all(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_without_its_digits_is_refused() {
        for key in ["a%", "a%z", "%zz", "%4", "a%%41"] {
            assert_eq!(parse_key(key).unwrap_err().code, "InvalidURI", "{key}");
        }
        assert_eq!(parse_key("a%41%25").unwrap().as_str(), "aA%");
    }

    fn target(uri: &str, host: &str) -> Result<Target, S3Error> {
        let request = http::Request::builder().uri(uri).header("host", host).body(()).unwrap();
        Target::of(&request.into_parts().0, &["s3.example.com".to_owned(), "localhost".to_owned()])
    }

    fn names(uri: &str, host: &str) -> (Option<String>, Option<String>) {
        let target = target(uri, host).unwrap();
        (target.bucket, target.key.map(|key| key.as_str().to_owned()))
    }

    fn some(bucket: &str, key: &str) -> (Option<String>, Option<String>) {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (text(bucket), text(key))
    }

    #[test]
    fn path_style_keeps_the_key_as_sent() {
        let host = "127.0.0.1:9000";
        for (uri, bucket, key) in [
            ("/", "", ""),
            ("/b", "b", ""),
            ("/b/", "b", ""),
            ("/b/k", "b", "k"),
            ("/b//k", "b", "/k"),
            ("/b/a/../c//d/", "b", "a/../c//d/"),
            ("/b/%2e%2e/a+b%20c%2Fd", "b", "../a+b c/d"),
            ("/b/%2525", "b", "%25"),
            ("/b/k?versionId=x", "b", "k"),
            ("/b/%01", "b", "\u{1}"),
        ] {
            assert_eq!(names(uri, host), some(bucket, key), "{uri}");
        }
    }

    #[test]
    fn virtual_host_style_needs_a_configured_domain() {
        for (host, bucket, key) in [
            ("b.s3.example.com", "b", "x/k"),
            ("b.s3.example.com:9000", "b", "x/k"),
            ("b.s3.example.com.", "b", "x/k"),
            ("a.b.S3.EXAMPLE.com", "a.b", "x/k"),
            ("b.localhost:80", "b", "x/k"),
            ("s3.example.com", "x", "k"),
            ("bs3.example.com", "x", "k"),
            ("other.org", "x", "k"),
            ("[::1]:9000", "x", "k"),
            ("[::1]", "x", "k"),
        ] {
            assert_eq!(names("/x/k", host), some(bucket, key), "{host}");
        }
        assert_eq!(names("/", "b.localhost"), some("b", ""));
    }

    #[test]
    fn illegal_keys_are_refused() {
        assert_eq!(target("/b/%ff", "h").unwrap_err().code, "InvalidURI");
        assert_eq!(target("/%ff/k", "h").unwrap_err().code, "InvalidURI");
        let long = format!("/b/{}", "k".repeat(1025));
        assert_eq!(target(&long, "h").unwrap_err().code, "KeyTooLongError");
        assert_eq!(target("//k", "h").unwrap_err().code, "InvalidBucketName");
    }

    proptest::proptest! {
        #[test]
        fn any_key_comes_back_from_its_encoding(key in "(?s).{1,200}") {
            let raw = percent_encoding::utf8_percent_encode(&key, percent_encoding::NON_ALPHANUMERIC);
            let found = names(&format!("/bucket/{raw}"), "127.0.0.1");
            proptest::prop_assert_eq!(found, some("bucket", &key));
        }

        #[test]
        fn any_path_and_host_are_read_without_panic(path in "/[!-~]{0,60}", host in "[!-~]{0,40}") {
            let request = http::Request::builder().uri(path).header("host", host).body(());
            if let Ok(request) = request {
                drop(Target::of(&request.into_parts().0, &["localhost".to_owned()]));
            }
        }
    }
}
