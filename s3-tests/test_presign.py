"""Requests signed in the query, by Signature Version 4 and, for old clients, Version 2."""

import datetime
import urllib.parse

import pytest

from harness.clients import body_of, client_of, refusal
from harness.raw import exchange, head_bytes
from harness.sigv4 import Signer, now


def fetch(raw, method, target, body=b"", headers=()):
    head = [("Host", raw.host), *headers]
    if body or method == "PUT":
        head.append(("Content-Length", str(len(body))))
    return exchange(raw.address, head_bytes(method, target, head) + body, method)


def target_of(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.path}?{parts.query}"


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_presigned_by_boto3(server, raw, s3, bucket, version):
    signer = client_of(server, signature_version=version)
    put = signer.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a b+ü"}, ExpiresIn=60)
    assert ("X-Amz-Signature" in put) == (version == "s3v4")
    assert fetch(raw, "PUT", target_of(put), b"hello").status == 200
    get = signer.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a b+ü"}, ExpiresIn=60)
    answer = fetch(raw, "GET", target_of(get))
    assert (answer.status, answer.body) == (200, b"hello")
    listing = signer.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket, "Prefix": "a "}, ExpiresIn=60)
    assert b"<KeyCount>1</KeyCount>" in fetch(raw, "GET", target_of(listing)).body
    delete = signer.generate_presigned_url("delete_object", Params={"Bucket": bucket, "Key": "a b+ü"}, ExpiresIn=60)
    assert fetch(raw, "DELETE", target_of(delete)).status == 204


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_overrides_are_part_of_the_signature(server, raw, s3, bucket, version):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    signer = client_of(server, signature_version=version)
    parameters = {"Bucket": bucket, "Key": "k", "ResponseContentType": "image/png"}
    target = target_of(signer.generate_presigned_url("get_object", Params=parameters, ExpiresIn=60))
    assert fetch(raw, "GET", target).header("content-type") == "image/png"
    changed = target.replace("image%2Fpng", "text%2Fhtml")
    assert changed != target
    assert fetch(raw, "GET", changed).code == "SignatureDoesNotMatch"


def test_an_unsigned_override_is_no_override(raw, s3, bucket):
    target = Signer().presign("GET", f"/{bucket}/k", raw.host)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert fetch(raw, "GET", target).status == 200
    assert fetch(raw, "GET", f"{target}&response-content-type=text%2Fhtml").status == 403


@pytest.mark.parametrize(
    ("expires", "age_s", "codes"),
    [
        ("60", 120, {"AccessDenied"}),
        ("0", 0, {"AuthorizationQueryParametersError", "AccessDenied"}),
        ("-1", 0, {"AuthorizationQueryParametersError"}),
        ("604801", 0, {"AuthorizationQueryParametersError"}),
        ("abc", 0, {"AuthorizationQueryParametersError"}),
        ("", 0, {"AuthorizationQueryParametersError"}),
        ("60", -3600, {"AccessDenied", "RequestTimeTooSkewed", "AuthorizationQueryParametersError"}),
    ],
)
def test_expiry(raw, s3, bucket, expires, age_s, codes):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    signer = Signer(when=now() - datetime.timedelta(seconds=age_s))
    answer = fetch(raw, "GET", signer.presign("GET", f"/{bucket}/k", raw.host, expires=expires))
    assert answer.status in (400, 403) and answer.code in codes, answer


def test_an_expired_version_2_url_is_refused(raw, server, s3, bucket):
    signer = client_of(server, signature_version="s3")
    url = signer.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=-100)
    answer = fetch(raw, "GET", target_of(url))
    assert (answer.status, answer.code) == (403, "AccessDenied")


@pytest.mark.parametrize("what", ["method", "host", "path", "parameter", "signature", "credential", "algorithm"])
def test_a_changed_url_is_refused(raw, s3, bucket, what):
    s3.put_object(Bucket=bucket, Key="k", Body=b"hidden bytes")
    s3.put_object(Bucket=bucket, Key="other", Body=b"hidden bytes")
    target, method, head = Signer().presign("GET", f"/{bucket}/k", raw.host), "GET", []
    match what:
        case "method":
            method = "DELETE"
        case "host":
            answer = exchange(raw.address, head_bytes("GET", target, [("Host", "localhost:1")]))
            assert answer.status in (400, 403)
            return
        case "path":
            target = target.replace("/k?", "/other?")
        case "parameter":
            target += "&x-id=GetObject"
        case "signature":
            target = target[:-1] + ("0" if target[-1] != "0" else "1")
        case "credential":
            target = target.replace("ROOTACCESSKEY", "ROOTACCESSKEX")
        case "algorithm":
            target = target.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1")
    answer = fetch(raw, method, target, headers=head)
    assert answer.status in (400, 403) and b"hidden" not in answer.body, answer
    assert body_of(s3, bucket, "k") == b"hidden bytes"


def test_a_signed_header_must_come_along(raw, s3, bucket):
    target = Signer().presign("PUT", f"/{bucket}/k", raw.host, headers=[("x-amz-meta-a", "1")])
    assert fetch(raw, "PUT", target, b"x").status == 403
    assert fetch(raw, "PUT", target, b"x", [("x-amz-meta-a", "2")]).status == 403
    assert fetch(raw, "PUT", target, b"x", [("x-amz-meta-a", "1")]).status == 200


def test_an_unsigned_amz_header_is_refused(raw, s3, bucket):
    target = Signer().presign("PUT", f"/{bucket}/k", raw.host)
    answer = fetch(raw, "PUT", target, b"x", [("x-amz-meta-a", "1")])
    assert answer.status == 403, answer
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


def test_two_ways_of_signing_at_once_are_refused(raw, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    target = Signer().presign("GET", f"/{bucket}/k", raw.host)
    headers = Signer().headers("GET", target, [("Host", raw.host)], "UNSIGNED-PAYLOAD")
    answer = exchange(raw.address, head_bytes("GET", target, headers))
    assert (answer.status, answer.code) == (400, "InvalidArgument")
