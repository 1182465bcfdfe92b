//! The canonical request of SigV4, from a request head as received.
//!
//! ```text
//!   PUT                                       method
//!   /bucket/some%20key                        path, encoded once, not normalised
//!   partNumber=1&uploadId=x                   query, sorted by encoded name, then value; no X-Amz-Signature
//!   host:localhost:9000                       each signed header, in the order of the list
//!   x-amz-date:20130524T000000Z
//!
//!   host;x-amz-date                           the list
//!   UNSIGNED-PAYLOAD                          what protects the body
//! ```
//!
//! Two forms are tried. [`Form::Recoded`] is what AWS computes: each part decoded once and encoded again. Some
//! clients sign the bytes they send although AWS would write them otherwise (`%2F` in a path, lower-case `%c3`);
//! [`Form::Raw`] is for them. It weakens nothing: a raw text that equals a signed canonical text names the same
//! resource and parameters, because decoding both gives the same bytes. Only a raw `+` in a query is not tried: its
//! signer may mean a plus where S3 reads a space.
//!
//! Invariants: no input panics; the size of the output is bounded by three times the head.
//!
//! Not here: which headers must be signed (see `v4`).

use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;
use std::ops::Range;

use crate::uri::{self, Part};

/// How path and query are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Decoded once and encoded again, as AWS does.
    Recoded,
    /// As received.
    Raw,
}

/// Builds the canonical request. `signed_headers` is the list as sent: lower-case names with `;` between.
pub(crate) fn canonical_request(parts: &Parts, signed_headers: &str, payload: &str, form: Form) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b'\n');
    write_text(parts.uri.path(), Part::Path, form, &mut out);
    out.push(b'\n');
    write_query(parts.uri.query().unwrap_or(""), form, &mut out);
    out.push(b'\n');
    for name in signed_headers.split(';') {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        write_header(parts, name, &mut out);
        out.push(b'\n');
    }
    out.push(b'\n');
    out.extend_from_slice(signed_headers.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload.as_bytes());
    out
}

fn write_text(raw: &str, part: Part, form: Form, out: &mut Vec<u8>) {
    match form {
        Form::Recoded => uri::recode(raw, part, out),
        Form::Raw => out.extend_from_slice(raw.as_bytes()),
    }
}

fn write_query(query: &str, form: Form, out: &mut Vec<u8>) {
    if query.is_empty() {
        return;
    }
    // All parts are written into one scratch buffer and sorted as ranges of it.
    let mut scratch = Vec::with_capacity(query.len() + 64);
    let mut parts: Vec<(Range<usize>, Range<usize>)> = Vec::with_capacity(8);
    for (name, value) in uri::pairs(query) {
        if uri::is(name, "X-Amz-Signature") {
            continue;
        }
        let start = scratch.len();
        write_text(name, Part::Query, form, &mut scratch);
        let middle = scratch.len();
        write_text(value, Part::Query, form, &mut scratch);
        parts.push((start..middle, middle..scratch.len()));
    }
    let text = |range: &Range<usize>| &scratch[range.clone()];
    parts.sort_unstable_by(|a, b| (text(&a.0), text(&a.1)).cmp(&(text(&b.0), text(&b.1))));
    for (position, (name, value)) in parts.iter().enumerate() {
        if position > 0 {
            out.push(b'&');
        }
        out.extend_from_slice(text(name));
        out.push(b'=');
        out.extend_from_slice(text(value));
    }
}

/// Writes a header's values, joined by commas. A header that is listed but absent counts as empty: a proxy may have
/// dropped it, and then the signature says so.
fn write_header(parts: &Parts, name: &str, out: &mut Vec<u8>) {
    let before = out.len();
    write_values(&parts.headers, name, out);
    // An absolute-form or HTTP/2 request names its host in the URI.
    if out.len() == before
        && name == HOST.as_str()
        && let Some(authority) = parts.uri.authority()
    {
        out.extend_from_slice(authority.as_str().as_bytes());
    }
}

/// Writes all values of a header, trimmed, with runs of blanks folded into one, joined by commas.
pub(crate) fn write_values(headers: &HeaderMap, name: &str, out: &mut Vec<u8>) {
    for (position, value) in headers.get_all(name).iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        let words =
            value.as_bytes().split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        for (position, word) in words.enumerate() {
            if position > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn canonical(uri: &str, headers: &[(&str, &str)], signed: &str, form: Form) -> String {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        String::from_utf8(canonical_request(&parts, signed, "UNSIGNED-PAYLOAD", form)).unwrap()
    }

    #[test]
    fn query_is_sorted_by_encoded_name_then_value() {
        let text = canonical(
            "/b?z&a-b=1&a=2&a=1&X-Amz-Signature=s&prefix=d/e",
            &[("host", "h")],
            "host",
            Form::Recoded,
        );
        assert_eq!(text, "GET\n/b\na=1&a=2&a-b=1&prefix=d%2Fe&z=\nhost:h\n\nhost\nUNSIGNED-PAYLOAD");
    }

    #[test]
    fn path_is_neither_normalised_nor_decoded_twice() {
        let text = canonical("/b//a/../%2541/./x%20y", &[("host", "h")], "host", Form::Recoded);
        assert!(text.starts_with("GET\n/b//a/../%2541/./x%20y\n\n"), "{text}");
    }

    #[test]
    fn raw_form_keeps_what_was_sent() {
        let text = canonical("/b/a%2fb+c?prefix=d/e+%c3%a9", &[("host", "h")], "host", Form::Raw);
        assert!(text.starts_with("GET\n/b/a%2fb+c\nprefix=d/e+%c3%a9\n"), "{text}");
    }

    #[test]
    fn values_are_trimmed_folded_and_joined() {
        let headers =
            [("host", "h"), ("x-amz-meta-a", "  one   two\tthree "), ("x-amz-meta-a", "four"), ("empty", "")];
        let text = canonical("/", &headers, "absent;empty;host;x-amz-meta-a", Form::Recoded);
        assert!(text.contains("\nabsent:\nempty:\nhost:h\nx-amz-meta-a:one two three,four\n\n"), "{text}");
    }

    #[test]
    fn host_may_stand_in_the_uri() {
        let text = canonical("http://example.com:9000/k", &[], "host", Form::Recoded);
        assert!(text.contains("\nhost:example.com:9000\n"), "{text}");
    }
}
