//! What whole requests answer: tests over the way from head to answer, with a small OM behind.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONNECTION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wire::block::Replication;
use wire::limits::BUCKET_CURRENT;
use wire::status::Status;

use crate::config::GatewayConfig;
use crate::gateway::Gateway;
use crate::operation::every_route;
use crate::testing::{ALT, Call, FakeOm, Signing, gateway, gateway_with};

async fn verdict(gateway: &Arc<Gateway>, method: &str, uri: &str) -> String {
    Call::new(method, uri).send(gateway).await.verdict()
}

async fn with_bucket() -> (Arc<Gateway>, Arc<FakeOm>) {
    let (gateway, om) = gateway().await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    om.take_calls();
    (gateway, om)
}

#[tokio::test]
async fn every_operation_in_every_mode_passes_authentication() {
    let (gateway, om) = with_bucket().await;
    om.put_key("bucket", "key");
    let payloads = [
        None,
        Some("UNSIGNED-PAYLOAD"),
        Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
        Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        Some("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"),
        Some("no mode"),
    ];
    let mut requests = 0;
    for (method, uri) in every_route("/bucket", "/key") {
        for payload in payloads {
            for signing in [Signing::Header, Signing::Presigned, Signing::PresignedV2, Signing::None] {
                let mut call = Call::new(method, &uri).signing(signing);
                call.payload = payload;
                for (access_key, secret) in [(call.access_key, "wrong"), ("NOBODY", "secret")] {
                    let mut call = call.clone();
                    (call.access_key, call.secret) = (access_key, secret.to_owned());
                    let answer = call.send(&gateway).await;
                    let status = answer.status.as_u16();
                    assert!(
                        [400, 403, 404, 405, 501].contains(&status),
                        "{method} {uri} {signing:?} {payload:?}: {}",
                        answer.verdict()
                    );
                    if signing == Signing::Header && payload.is_none() {
                        assert_eq!(status, 403, "{method} {uri}");
                    }
                    // OM was asked for keys, and of buckets by strangers without a name: for nothing else.
                    let reached: Vec<_> = om
                        .take_calls()
                        .into_iter()
                        .filter(|call| !["GetSigningKey", "SignV2", "GetBucket"].contains(call))
                        .collect();
                    assert!(reached.is_empty(), "{method} {uri} {signing:?} {payload:?} reached {reached:?}");
                    requests += 1;
                }
            }
        }
    }
    assert!(requests > 5000, "{requests}");
}

#[tokio::test]
async fn anonymous_and_strangers_are_refused() {
    let (gateway, om) = with_bucket().await;
    om.put_key("bucket", "key");
    for (method, uri) in every_route("/bucket", "/key") {
        let answer = Call::new(method, &uri).signing(Signing::None).send(&gateway).await;
        assert!([403, 400].contains(&answer.status.as_u16()), "{method} {uri}: {}", answer.verdict());
        let answer = Call::new(method, &uri).by(ALT).send(&gateway).await;
        assert!(!answer.status.is_success() || ["/", "/bucket"].contains(&uri.as_str()), "{method} {uri}");
    }
    for (method, uri, expected) in [
        ("PUT", "/new-bucket", "403 AccessDenied"),
        ("PUT", "/absent/key", "404 NoSuchBucket"),
        ("GET", "/", "403 AccessDenied"),
    ] {
        let answer = Call::new(method, uri).signing(Signing::None).send(&gateway).await;
        assert_eq!(answer.verdict(), expected, "{method} {uri}");
    }
    assert_eq!(verdict(&gateway, "GET", "/bucket/key?acl").await, "200");
    let answer = Call::new("GET", "/bucket?list-type=2").by(ALT).send(&gateway).await;
    assert_eq!(answer.verdict(), "403 AccessDenied");
    let answer = Call::new("PUT", "/bucket").by(ALT).send(&gateway).await;
    assert_eq!(answer.verdict(), "409 BucketAlreadyExists");
}

#[tokio::test]
async fn all_ways_to_sign_work() {
    let (gateway, _) = with_bucket().await;
    for signing in [Signing::Header, Signing::Presigned, Signing::PresignedV2] {
        let answer = Call::new("GET", "/bucket?location").signing(signing).send(&gateway).await;
        assert_eq!(answer.verdict(), "200", "{signing:?}: {}", answer.body);
    }
}

#[tokio::test]
async fn buckets_live_and_die() {
    let (gateway, om) = with_bucket().await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    assert_eq!(verdict(&gateway, "HEAD", "/bucket/").await, "200");
    assert_eq!(verdict(&gateway, "PUT", "/Bad_Name").await, "400 InvalidBucketName");
    assert_eq!(verdict(&gateway, "GET", "/absent").await, "404 NoSuchBucket");
    let head = Call::new("HEAD", "/absent").send(&gateway).await;
    assert_eq!((head.status.as_u16(), head.body.as_str()), (404, ""));
    assert_eq!(head.headers["x-amz-bucket-region"], "us-east-1");
    om.put_key("bucket", "key");
    assert_eq!(verdict(&gateway, "DELETE", "/bucket").await, "409 BucketNotEmpty");
    assert_eq!(verdict(&gateway, "DELETE", "/bucket/key").await, "204");
    assert_eq!(verdict(&gateway, "DELETE", "/bucket/key").await, "204");
    assert_eq!(verdict(&gateway, "DELETE", "/bucket").await, "204");
    assert_eq!(verdict(&gateway, "DELETE", "/bucket").await, "404 NoSuchBucket");
    assert_eq!(verdict(&gateway, "GET", "/bucket").await, "404 NoSuchBucket");
}

#[tokio::test]
async fn location_is_kept_and_region_decides_about_repeats() {
    let config = GatewayConfig { region: "eu-north-1".to_owned(), ..GatewayConfig::default() };
    let (gateway, _) = gateway_with(config).await;
    assert_eq!(verdict(&gateway, "PUT", "/plain").await, "200");
    assert_eq!(verdict(&gateway, "PUT", "/plain").await, "409 BucketAlreadyOwnedByYou");
    let answer = Call::new("GET", "/plain?location").send(&gateway).await;
    assert_eq!(answer.body.split("\">").nth(1), Some("eu-north-1</LocationConstraint>"));
    let body =
        b"<CreateBucketConfiguration><LocationConstraint>EU</LocationConstraint></CreateBucketConfiguration>";
    assert_eq!(Call::new("PUT", "/other").body(body).send(&gateway).await.verdict(), "200");
    assert!(Call::new("GET", "/other?location").send(&gateway).await.body.contains(">EU<"));
    let body = b"<CreateBucketConfiguration><Tags/></CreateBucketConfiguration>";
    assert_eq!(Call::new("PUT", "/third").body(body).send(&gateway).await.verdict(), "501 NotImplemented");
    assert_eq!(
        Call::new("PUT", "/third").body(b"<Other/>").send(&gateway).await.verdict(),
        "400 MalformedXML"
    );
    assert_eq!(verdict(&gateway, "GET", "/third").await, "404 NoSuchBucket");
}

#[tokio::test]
async fn list_buckets_pages() {
    let (gateway, _) = gateway().await;
    for name in ["/aaa", "/abb", "/bcc"] {
        verdict(&gateway, "PUT", name).await;
    }
    Call::new("PUT", "/foreign").by(ALT).send(&gateway).await;
    let all = Call::new("GET", "/").send(&gateway).await;
    assert_eq!(all.elements("Name"), ["aaa", "abb", "bcc"]);
    assert_eq!((all.element("ID"), all.element("ContinuationToken")), (Some("main-id"), None));
    let first = Call::new("GET", "/?max-buckets=2").send(&gateway).await;
    let uri = format!("/?max-buckets=2&continuation-token={}", first.element("ContinuationToken").unwrap());
    let second = Call::new("GET", &uri).send(&gateway).await;
    assert_eq!((second.elements("Name"), second.element("ContinuationToken")), (vec!["bcc"], None));
    assert_eq!(Call::new("GET", "/?prefix=a").send(&gateway).await.elements("Name"), ["aaa", "abb"]);
    assert!(Call::new("GET", "/?bucket-region=mars").send(&gateway).await.elements("Name").is_empty());
    for bad in ["/?max-buckets=0", "/?max-buckets=x", "/?continuation-token=%21"] {
        assert_eq!(verdict(&gateway, "GET", bad).await, "400 InvalidArgument", "{bad}");
    }
}

#[tokio::test]
async fn listings_page_and_group() {
    let (gateway, om) = with_bucket().await;
    for key in ["a/1", "a/2", "b", "c+d e", "z/9"] {
        om.put_key("bucket", key);
    }
    let list = |uri: &'static str| {
        let gateway = gateway.clone();
        async move { Call::new("GET", uri).send(&gateway).await }
    };
    let v1 = list("/bucket?delimiter=%2F&max-keys=2&encoding-type=url").await;
    assert_eq!(v1.elements("Key"), ["b"]);
    assert_eq!((v1.element("NextMarker"), v1.element("IsTruncated")), (Some("b"), Some("true")));
    assert_eq!(v1.element("CommonPrefixes"), Some("<Prefix>a/</Prefix>"));
    let v1 = list("/bucket?marker=b&encoding-type=url").await;
    assert_eq!(v1.elements("Key"), ["c%2Bd%20e", "z/9"]);
    assert_eq!(
        (v1.element("Marker"), v1.element("NextMarker"), v1.element("MaxKeys")),
        (Some("b"), None, Some("1000"))
    );
    assert_eq!(v1.element("DisplayName"), Some("main"));
    assert_eq!(v1.element("ETag"), Some(format!("&quot;{}&quot;", "ab".repeat(16)).as_str()));
    let v1 = list("/bucket?max-keys=0&prefix=&delimiter=").await;
    assert_eq!(
        (v1.elements("Key").len(), v1.element("IsTruncated"), v1.element("Delimiter")),
        (0, Some("false"), None)
    );
    assert_eq!(v1.element("Prefix"), Some(""));

    let v2 = list("/bucket?list-type=2&max-keys=2&start-after=a%2F1").await;
    assert_eq!(
        (v2.element("KeyCount"), v2.element("StartAfter"), v2.element("Owner")),
        (Some("2"), Some("a/1"), None)
    );
    let token = v2.element("NextContinuationToken").unwrap();
    let uri = format!("/bucket?list-type=2&start-after=zzz&fetch-owner=true&continuation-token={token}");
    let next = Call::new("GET", &uri).send(&gateway).await;
    assert_eq!(next.elements("Key"), ["c+d e", "z/9"]);
    assert_eq!((next.element("ContinuationToken"), next.element("ID")), (Some(token), Some("main-id")));
    let v2 = list("/bucket?list-type=2&continuation-token=").await;
    assert_eq!((v2.element("ContinuationToken"), v2.element("KeyCount")), (Some(""), Some("5")));

    let versions = list("/bucket?versions&max-keys=3&delimiter=%2F").await;
    assert_eq!(versions.elements("VersionId"), ["null", "null"]);
    assert_eq!(
        (versions.element("NextKeyMarker"), versions.element("NextVersionIdMarker")),
        (Some("c+d e"), Some("null"))
    );
    let rest = list("/bucket?versions&key-marker=c%2Bd%20e&version-id-marker=null").await;
    assert_eq!((rest.elements("Key"), rest.element("IsLatest")), (vec!["z/9"], Some("true")));

    for bad in [
        "/bucket?max-keys=blah",
        "/bucket?max-keys=-1",
        "/bucket?encoding-type=x",
        "/bucket?list-type=2&continuation-token=%21%21",
        "/bucket?versions&version-id-marker=null",
        "/bucket?versions&key-marker=a&version-id-marker=7",
    ] {
        assert_eq!(verdict(&gateway, "GET", bad).await, "400 InvalidArgument", "{bad}");
    }
}

#[tokio::test]
async fn many_keys_are_deleted_each_for_itself() {
    let (gateway, om) = with_bucket().await;
    let mut body = "<Delete>".to_owned();
    for n in 0..150 {
        om.put_key("bucket", &format!("k{n:03}"));
        body += &format!("<Object><Key>k{n:03}</Key></Object>");
    }
    body += "<Object><Key>gone</Key><VersionId>null</VersionId></Object><Object><Key>k</Key><VersionId>7</VersionId></Object>";
    body += "<Object><Key>no</Key><ETag>x</ETag></Object></Delete>";
    let md5 = {
        use base64::Engine;
        use md5::{Digest, Md5};
        base64::engine::general_purpose::STANDARD.encode(Md5::digest(&body))
    };
    let call = || Call::new("POST", "/bucket?delete").body(body.as_bytes());
    assert_eq!(call().send(&gateway).await.verdict(), "400 InvalidRequest");
    let wrong = call().header("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==").send(&gateway).await;
    assert_eq!(wrong.verdict(), "400 BadDigest");
    let answer = call().header("content-md5", &md5).send(&gateway).await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.elements("Deleted").len(), 151);
    assert_eq!(answer.elements("Code"), ["NoSuchVersion", "NoSuchKey"]);
    assert_eq!(verdict(&gateway, "DELETE", "/bucket").await, "204");
}

#[tokio::test]
async fn unbuilt_things_are_refused_by_name() {
    let (gateway, om) = with_bucket().await;
    for (method, uri, name) in [
        ("PUT", "/bucket?policy", "PutBucketPolicy"),
        ("PUT", "/bucket?versioning", "PutBucketVersioning"),
        ("POST", "/bucket", "PostObject"),
        ("PUT", "/bucket/key?tagging", "PutObjectTagging"),
        ("PUT", "/bucket?new-thing", "new-thing"),
    ] {
        let answer = Call::new(method, uri).send(&gateway).await;
        assert_eq!(answer.verdict(), "501 NotImplemented", "{method} {uri}");
        assert!(answer.element("Message").unwrap().contains(name), "{}", answer.body);
    }
    let answer = Call::new("PUT", "/another").header("x-amz-acl", "public-read").send(&gateway).await;
    assert_eq!(answer.verdict(), "501 NotImplemented");
    om.take_calls();
    assert_eq!(verdict(&gateway, "HEAD", "/another").await, "404");
    for (uri, expected) in [
        ("/bucket?versioning", "200"),
        ("/bucket?requestPayment", "200"),
        ("/bucket?policy", "404 NoSuchBucketPolicy"),
        ("/bucket?tagging", "404 NoSuchTagSet"),
        ("/bucket?object-lock", "404 ObjectLockConfigurationNotFoundError"),
        ("/bucket/absent?tagging", "404 NoSuchKey"),
        ("/absent?policy", "404 NoSuchBucket"),
    ] {
        assert_eq!(verdict(&gateway, "GET", uri).await, expected, "{uri}");
    }
}

#[tokio::test]
async fn private_acl_is_taken_and_others_are_not() {
    let (gateway, om) = with_bucket().await;
    om.put_key("bucket", "key");
    let shown = Call::new("GET", "/bucket?acl").send(&gateway).await;
    assert_eq!((shown.element("Permission"), shown.elements("Grant").len()), (Some("FULL_CONTROL"), 1));
    for uri in ["/bucket?acl", "/bucket/key?acl"] {
        assert_eq!(
            Call::new("PUT", uri).header("x-amz-acl", "private").send(&gateway).await.verdict(),
            "200"
        );
        assert_eq!(Call::new("PUT", uri).body(shown.body.as_bytes()).send(&gateway).await.verdict(), "200");
        let read_only = shown.body.replace("FULL_CONTROL", "READ");
        let answer = Call::new("PUT", uri).body(read_only.as_bytes()).send(&gateway).await;
        assert_eq!(answer.verdict(), "501 NotImplemented");
    }
}

#[tokio::test]
async fn stale_knowledge_is_decided_again() {
    let (gateway, om) = with_bucket().await;
    assert_eq!(verdict(&gateway, "GET", "/bucket").await, "200");
    om.touch_bucket("bucket");
    assert_eq!(verdict(&gateway, "GET", "/bucket").await, "200");
    om.take_calls();
    om.touch_access();
    assert_eq!(verdict(&gateway, "GET", "/bucket").await, "200");
    assert_eq!(om.take_calls(), ["ListKeys", "GetSigningKey", "ListKeys"]);
    // The cached permission of the former owner is not enough.
    om.give_bucket("bucket", ALT);
    assert_eq!(verdict(&gateway, "GET", "/bucket").await, "403 AccessDenied");
    assert_eq!(Call::new("GET", "/bucket").by(ALT).send(&gateway).await.verdict(), "200");
}

#[tokio::test]
async fn expected_bucket_owner_is_compared() {
    let (gateway, _) = with_bucket().await;
    let call = |owner: &'static str| Call::new("GET", "/bucket").header("x-amz-expected-bucket-owner", owner);
    assert_eq!(call("main-id").send(&gateway).await.verdict(), "200");
    assert_eq!(call("alt-id").send(&gateway).await.verdict(), "403 AccessDenied");
}

#[tokio::test]
async fn uploads_begin_list_and_end() {
    let (gateway, _) = with_bucket().await;
    let begun = Call::new("POST", "/bucket/key?uploads")
        .header("x-amz-checksum-algorithm", "CRC32")
        .send(&gateway)
        .await;
    assert_eq!(begun.headers["x-amz-checksum-type"], "COMPOSITE");
    let id = begun.element("UploadId").unwrap();
    let listed = Call::new("GET", "/bucket?uploads").send(&gateway).await;
    assert_eq!(
        (listed.element("UploadId"), listed.element("Initiated")),
        (Some(id), Some("1970-01-01T00:00:00.000Z"))
    );
    let uri = format!("/bucket/key?uploadId={id}");
    let parts = Call::new("GET", &uri).send(&gateway).await;
    assert_eq!(
        (parts.element("MaxParts"), parts.element("ChecksumAlgorithm")),
        (Some("1000"), Some("CRC32"))
    );
    assert_eq!(Call::new("POST", &uri).send(&gateway).await.verdict(), "400 MalformedXML");
    let body = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>";
    let done = Call::new("POST", &uri).body(body.as_bytes()).header("x-amz-checksum-crc32", "AAAAAA==-1");
    let done = done.send(&gateway).await;
    assert_eq!(
        (done.element("ChecksumCRC32"), done.element("ChecksumType")),
        (Some("AAAAAA==-1"), Some("COMPOSITE"))
    );
    assert_eq!(verdict(&gateway, "DELETE", &uri).await, "204");
    assert_eq!(verdict(&gateway, "DELETE", &uri).await, "404 NoSuchUpload");
    assert_eq!(verdict(&gateway, "GET", "/bucket/key?uploadId=x").await, "404 NoSuchUpload");
}

#[tokio::test]
async fn errors_carry_the_request_id_of_their_header() {
    let (gateway, _) = gateway().await;
    let answer = Call::new("GET", "/absent/k%3C").send(&gateway).await;
    assert_eq!(answer.element("RequestId"), answer.headers["x-amz-request-id"].to_str().ok());
    assert_eq!(answer.element("Resource"), Some("/absent/k%3C"));
    assert!(answer.headers.contains_key("x-amz-id-2") && answer.headers["server"] == "ferrozone");
}

/// A gateway on a socket.
async fn served() -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    served_with(GatewayConfig::default()).await
}

async fn served_with(
    config: GatewayConfig,
) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let (gateway, _) = gateway_with(config).await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    serve(&gateway).await
}

async fn serve(
    gateway: &Arc<Gateway>,
) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = gateway.clone().serve(listener, None, shutdown.clone());
    (address, shutdown, tokio::spawn(async move { serving.await.unwrap() }))
}

#[tokio::test]
async fn another_replication_holds_for_new_keys_once_it_is_named() {
    let (gateway, om) = gateway().await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    assert_eq!(put("/bucket/key", b"").send(&gateway).await.verdict(), "200");
    om.set_replication("bucket", Replication::Three);
    // So long whoever named it waits before it is said to be in force.
    tokio::time::sleep(BUCKET_CURRENT).await;
    om.take_calls();
    om.take_commits();
    for key in ["/bucket/key", "/bucket/other"] {
        assert_eq!(put(key, b"").send(&gateway).await.verdict(), "200");
        assert_eq!(om.take_commits()[0].replication, Replication::Three);
    }
    assert_eq!(om.take_calls()[0], "GetBucket");
}

#[tokio::test]
async fn storage_class_chooses_the_replication() {
    let (gateway, om) = gateway().await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    for (bucket, class, replication) in [
        (Replication::One, None, Replication::One),
        (Replication::Three, None, Replication::Three),
        (Replication::Three, Some("STANDARD"), Replication::Three),
        (Replication::Three, Some("REDUCED_REDUNDANCY"), Replication::One),
        (Replication::One, Some("REDUCED_REDUNDANCY"), Replication::One),
    ] {
        // The gateway's cache does not know yet: OM says so at the commit, or the look-up before it.
        om.set_replication("bucket", bucket);
        assert_eq!(verdict(&gateway, "HEAD", "/bucket").await, "200");
        let mut call = put("/bucket/key", b"");
        if let Some(class) = class {
            call = call.header("x-amz-storage-class", class);
        }
        assert_eq!(call.send(&gateway).await.verdict(), "200");
        assert_eq!(om.take_commits()[0].replication, replication, "{bucket:?} {class:?}");

        let shown = class.filter(|class| *class != "STANDARD");
        let head = Call::new("HEAD", "/bucket/key").send(&gateway).await;
        assert_eq!(head.headers.get("x-amz-storage-class").map(|value| value.to_str().unwrap()), shown);
        let list = Call::new("GET", "/bucket?list-type=2").send(&gateway).await;
        assert_eq!(list.element("StorageClass"), Some(class.unwrap_or("STANDARD")));
    }
}

#[tokio::test]
async fn witness_is_told_only_where_it_is_configured() {
    for witness in [false, true] {
        let (gateway, _) = gateway_with(GatewayConfig { witness, ..GatewayConfig::default() }).await;
        assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
        for (method, uri, status, index) in [
            ("PUT", "/bucket/key", 200, "1"),
            ("HEAD", "/bucket/key", 200, "1"),
            ("PUT", "/bucket/key", 200, "2"),
            ("GET", "/bucket?list-type=2", 200, "2"),
            ("GET", "/bucket/nothing", 404, "2"),
            ("DELETE", "/bucket/key", 204, "3"),
            ("GET", "/bucket/key", 404, "3"),
        ] {
            let call = if method == "PUT" { put(uri, b"") } else { Call::new(method, uri) };
            let answer = call.send(&gateway).await;
            assert_eq!(answer.status.as_u16(), status, "{method} {uri}");
            let shown = answer.headers.get("x-ferrozone-witness").map(|value| value.to_str().unwrap());
            assert_eq!(shown, witness.then_some(index), "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn state_that_passes_is_never_an_internal_error() {
    let (gateway, om) = gateway().await;
    assert_eq!(verdict(&gateway, "PUT", "/bucket").await, "200");
    for (status, code) in [
        (Status::Retry, "503 SlowDown"),
        (Status::NotLeader, "503 ServiceUnavailable"),
        (Status::Unknown, "503 ServiceUnavailable"),
        (Status::DiskFull, "503 ServiceUnavailable"),
        (Status::Refused, "503 SlowDown"),
    ] {
        om.fail(Some(status));
        for call in [
            put("/bucket/key", b"bytes"),
            Call::new("GET", "/bucket/key"),
            Call::new("DELETE", "/bucket/key"),
            Call::new("GET", "/bucket?list-type=2"),
            Call::new("POST", "/bucket/key?uploads"),
            Call::new("PUT", "/other"),
        ] {
            let answer = call.send(&gateway).await;
            assert_eq!(answer.verdict(), code, "{} {}", call.method, call.uri);
            assert_eq!(answer.headers["retry-after"], "1");
            assert!(!answer.body.contains("/var"), "{}", answer.body);
        }
    }
    // No datanode is live: OM has no loan to give, but answers everything else.
    om.fail(None);
    om.lends_nothing();
    let answer = put("/bucket/key", b"bytes").send(&gateway).await;
    assert_eq!(answer.verdict(), "503 SlowDown");
    assert_eq!(put("/bucket/empty", b"").send(&gateway).await.verdict(), "200");
}

fn put<'a>(uri: &'a str, body: &'a [u8]) -> Call<'a> {
    let length = if body.is_empty() { "0" } else { "5" };
    Call::new("PUT", uri).body(body).header("content-length", length)
}

/// Reads until `end` has been seen or the connection ends.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(end) {
        match tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.unwrap() {
            Ok(0) | Err(_) => break,
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn refused_expectation_gets_no_100_and_a_close() {
    let (address, shutdown, served) = served().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = Call::new("PUT", "/absent?acl").header("expect", "100-continue").body(b"0123456789").wire();
    let head = &request[..request.len() - 10];
    stream.write_all(head).await.unwrap();
    let answer = read_until(&mut stream, "</Error>").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.to_lowercase().contains(&format!("{CONNECTION}: close")), "{answer}");
    assert_eq!(read_until(&mut stream, "never").await, "");
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn body_that_would_pass_a_quota_is_refused_before_it_is_read() {
    let (gateway, om) = with_bucket().await;
    om.fill_quotas();
    let (address, shutdown, served) = serve(&gateway).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = vec![b'x'; 2_000_000];
    let request = Call::new("PUT", "/bucket/key").header("expect", "100-continue").body(&body).wire();
    stream.write_all(&request[..request.len() - body.len()]).await.unwrap();
    let answer = read_until(&mut stream, "</Error>").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("QuotaExceeded"), "{answer}");
    let calls = om.take_calls();
    assert!(calls.contains(&"CheckQuota") && !calls.contains(&"TakeLoan"), "{calls:?}");
    // Of a short one the commit decides.
    put("/bucket/key", b"bytes").send(&gateway).await;
    assert!(!om.take_calls().contains(&"CheckQuota"));
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn connection_survives_a_refused_body() {
    let (address, shutdown, served) = served().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = vec![b'x'; 300_000];
    let request = Call::new("PUT", "/absent?acl").body(&body).wire();
    stream.write_all(&request).await.unwrap();
    assert!(read_until(&mut stream, "</Error>").await.contains("NoSuchBucket"));
    stream.write_all(&Call::new("GET", "/bucket?location").wire()).await.unwrap();
    assert!(read_until(&mut stream, "LocationConstraint>").await.starts_with("HTTP/1.1 200 "));
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_refuses_new_ones() {
    let (address, shutdown, served) = served().await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(&Call::new("GET", "/bucket?location").wire()).await.unwrap();
    assert!(!read_until(&mut idle, "LocationConstraint>").await.is_empty());
    shutdown.cancel();
    served.await.unwrap();
    assert_eq!(read_until(&mut idle, "never").await, "");
    assert!(TcpStream::connect(address).await.is_err());
}

/// Timers short enough for a test.
fn impatient() -> GatewayConfig {
    GatewayConfig {
        header_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(100),
        body_rate_window: Duration::from_millis(200),
        ..GatewayConfig::default()
    }
}

#[tokio::test]
async fn slow_heads_idle_connections_and_slow_bodies_are_ended() {
    let (address, shutdown, served) = served_with(impatient()).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(read_until(&mut silent, "never").await, "");
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    assert_eq!(read_until(&mut slow, "never").await, "");
    let mut stuck = TcpStream::connect(address).await.unwrap();
    let request = Call::new("PUT", "/new-bucket").body(&[b'x'; 1000]).wire();
    stuck.write_all(&request[..request.len() - 900]).await.unwrap();
    let answer = read_until(&mut stuck, "</Error>").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("RequestTimeout"), "{answer}");
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn one_address_gets_its_share_of_connections() {
    let config = GatewayConfig { connections_per_ip_max: 2, ..GatewayConfig::default() };
    let (address, shutdown, served) = served_with(config).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&Call::new("GET", "/bucket?location").wire()).await.unwrap();
        read_until(&mut stream, "LocationConstraint>").await;
        kept.push(stream);
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    let answer = read_until(&mut third, "</Error>").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("SlowDown"), "{answer}");
    shutdown.cancel();
    served.await.unwrap();
}
