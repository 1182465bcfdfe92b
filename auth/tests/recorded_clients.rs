//! Requests as real clients put them on the wire verify, bodies included.
//!
//! `recorded/heads.txt` holds what the aws cli, boto3, s3cmd, s5cmd, rclone, restic, minio-py, minio-js, the AWS SDK
//! for JavaScript, obstore, opendal and pyarrow sent, with Amazon's example credentials, for keys and prefixes full of
//! awkward characters: each request with the time it arrived, its request line, its headers (without those that are
//! neither signed nor read here) and, if framed, its body in Base64.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use auth::Settings;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use support::*;

struct Recorded<'a> {
    client: &'a str,
    now_ms: u64,
    head: http::request::Parts,
    body: Option<Vec<u8>>,
}

fn recorded() -> Vec<Recorded<'static>> {
    let text = include_str!("recorded/heads.txt");
    text.split("\n\n").filter(|record| !record.trim().is_empty()).map(read).collect()
}

fn read(record: &'static str) -> Recorded<'static> {
    let mut lines = record.lines();
    let (client, now_ms) =
        lines.next().unwrap().strip_prefix("request ").unwrap().rsplit_once(" at ").unwrap();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let mut head = parts(method, target, &[]);
    let mut body = None;
    for line in lines {
        if let Some(base64) = line.strip_prefix("body ") {
            body = Some(STANDARD.decode(base64).unwrap());
        } else {
            let (name, value) = line.split_once(':').unwrap();
            head.headers.append(http::HeaderName::try_from(name).unwrap(), value.trim().parse().unwrap());
        }
    }
    Recorded { client, now_ms: now_ms.parse().unwrap(), head, body }
}

#[test]
fn what_clients_send_verifies() {
    let mut failures = Vec::new();
    for Recorded { client, now_ms, head, .. } in recorded() {
        if let Err(error) = authenticate_at(&head, now_ms, &Settings::default()) {
            failures.push(format!("{client}: {} {}: {error} {:?}", head.method, head.uri, error.details()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn framed_bodies_of_clients_decode() {
    let mut framed = 0;
    for Recorded { client, now_ms, head, body } in recorded() {
        let Some(body) = body else { continue };
        framed += 1;
        let verified = authenticate_at(&head, now_ms, &Settings::default()).unwrap();
        let mut decoder = verified.chunk_decoder(&head.headers).unwrap().unwrap();
        let (expected, trailers) = (decoder.decoded_len(), decoder.declared_trailers().len());
        let mut data = Vec::new();
        for piece in Bytes::from(body).chunks(100) {
            decoder.feed(Bytes::copy_from_slice(piece), &mut data).unwrap();
        }
        assert_eq!(decoder.finish().unwrap().len(), trailers, "{client}");
        assert_eq!(data.iter().map(|slice| slice.len() as u64).sum::<u64>(), expected, "{client}");
    }
    assert!(framed > 0);
}

#[test]
fn the_same_requests_with_another_method_do_not_verify() {
    for Recorded { client, now_ms, mut head, .. } in recorded() {
        head.method = "PATCH".parse().unwrap();
        let error = authenticate_at(&head, now_ms, &Settings::default()).unwrap_err();
        assert_eq!(error.s3_code(), "SignatureDoesNotMatch", "{client}");
    }
}
