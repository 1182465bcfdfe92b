//! The worked examples of Amazon's S3 guide ("Authenticating Requests (AWS Signature Version 4)"), digit for digit.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use auth::{Payload, Scheme};
use bytes::Bytes;
use support::*;

fn assert_verifies(method: &str, uri: &str, headers: &[(&str, &str)], signed_headers: &str, signature: &str) {
    let authorization = authorization(signed_headers, signature);
    let mut headers = headers.to_vec();
    headers.push(("authorization", &authorization));
    let head = parts(method, uri, &headers);
    let verified = authenticate(&head).unwrap();
    assert_eq!(verified.access_key(), ACCESS_KEY);
    assert_eq!(verified.scheme(), Scheme::HeaderV4);
}

#[test]
fn get_object_with_range() {
    let headers = [
        ("host", "examplebucket.s3.amazonaws.com"),
        ("range", "bytes=0-9"),
        ("x-amz-content-sha256", EMPTY_SHA256),
        ("x-amz-date", TIMESTAMP),
    ];
    let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
    assert_verifies("GET", "/test.txt", &headers, "host;range;x-amz-content-sha256;x-amz-date", signature);
}

#[test]
fn put_object_whose_key_needs_encoding() {
    let hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    assert_eq!(sha256_hex(b"Welcome to Amazon S3."), hash);
    let headers = [
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("host", "examplebucket.s3.amazonaws.com"),
        ("x-amz-content-sha256", hash),
        ("x-amz-date", TIMESTAMP),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ];
    let signed = "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class";
    let signature = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd";
    // The canonical path is /test%24file.text; both ways of sending it verify.
    assert_verifies("PUT", "/test$file.text", &headers, signed, signature);
    assert_verifies("PUT", "/test%24file.text", &headers, signed, signature);
}

#[test]
fn bucket_requests_with_queries() {
    let headers = [
        ("host", "examplebucket.s3.amazonaws.com"),
        ("x-amz-content-sha256", EMPTY_SHA256),
        ("x-amz-date", TIMESTAMP),
    ];
    let signed = "host;x-amz-content-sha256;x-amz-date";
    let lifecycle = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
    assert_verifies("GET", "/?lifecycle", &headers, signed, lifecycle);
    let list = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
    assert_verifies("GET", "/?max-keys=2&prefix=J", &headers, signed, list);
    assert_verifies("GET", "/?prefix=J&max-keys=2", &headers, signed, list);
}

#[test]
fn presigned_get() {
    let uri = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
               &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
               &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
               &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let verified = authenticate(&parts("GET", uri, &[("host", "examplebucket.s3.amazonaws.com")])).unwrap();
    assert_eq!(verified.scheme(), Scheme::QueryV4);
    assert_eq!(*verified.payload(), Payload::Unsigned);
    assert!(authenticate(&parts("PUT", uri, &[("host", "examplebucket.s3.amazonaws.com")])).is_err());
    assert!(authenticate(&parts("GET", uri, &[("host", "otherbucket.s3.amazonaws.com")])).is_err());
}

/// The body of both upload examples: 65 KiB of `a` in chunks of 64 KiB and 1 KiB, with the published signatures.
fn example_body(signatures: [&str; 3], trailer: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for (size, signature) in [65536, 1024, 0].into_iter().zip(signatures) {
        wire.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        wire.resize(wire.len() + size, b'a');
        if size > 0 {
            wire.extend_from_slice(b"\r\n");
        }
    }
    wire.extend_from_slice(trailer.as_bytes());
    wire.extend_from_slice(b"\r\n");
    wire
}

#[test]
fn chunked_upload() {
    let signed = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
                  x-amz-decoded-content-length;x-amz-storage-class";
    let authorization =
        authorization(signed, "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9");
    let headers = [
        ("host", "s3.amazonaws.com"),
        ("x-amz-date", TIMESTAMP),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "66560"),
        ("content-length", "66824"),
        ("authorization", &authorization),
    ];
    let head = parts("PUT", "/examplebucket/chunkObject.txt", &headers);
    let wire = example_body(
        [
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ],
        "",
    );
    assert_eq!(wire.len(), 66824);
    let mut decoder = authenticate(&head).unwrap().chunk_decoder(&head.headers).unwrap().unwrap();
    let mut data = Vec::new();
    decoder.feed(Bytes::from(wire), &mut data).unwrap();
    assert_eq!(decoder.finish(), Ok(Vec::new()));
    assert_eq!(data.concat(), vec![b'a'; 66560]);
}

#[test]
fn chunked_upload_with_trailer() {
    let signed = "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;\
                  x-amz-storage-class;x-amz-trailer";
    let authorization =
        authorization(signed, "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e");
    let headers = [
        ("host", "s3.amazonaws.com"),
        ("x-amz-date", TIMESTAMP),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ("authorization", &authorization),
    ];
    let head = parts("PUT", "/examplebucket/chunkObject.txt", &headers);
    let wire = example_body(
        [
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ],
        "x-amz-checksum-crc32c:sOO8/Q==\r\n\
         x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n",
    );
    let mut decoder = authenticate(&head).unwrap().chunk_decoder(&head.headers).unwrap().unwrap();
    let mut data = Vec::new();
    decoder.feed(Bytes::from(wire), &mut data).unwrap();
    let trailers = decoder.finish().unwrap();
    assert_eq!(
        (trailers[0].name.as_str(), trailers[0].value.as_str()),
        ("x-amz-checksum-crc32c", "sOO8/Q==")
    );
}
