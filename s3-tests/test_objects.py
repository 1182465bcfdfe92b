"""Objects: what is put is what is got, with its metadata; deletes, in ones and in thousands."""

import hashlib
import io

import pytest

from harness.clients import body_of, keys_of, pattern, refusal

pytestmark = pytest.mark.transports

MIB = 1 << 20


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 65536, 65537, MIB, 5 * MIB + 1, 17 * MIB])
def test_bytes_come_back_whole(s3, bucket, length):
    body = pattern(length, seed=length)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body)
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == body
    assert got["ContentLength"] == length
    assert put["ETag"] == got["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == length


@pytest.mark.parametrize(
    "key",
    [
        "plain",
        "a/b/c",
        "a//b",
        "/leading",
        "trailing/",
        "..",
        "../../etc/passwd",
        "a/../b",
        "./.",
        " ",
        "+ %2F%25 &=?#",
        "\x01\x02 control \x1f",
        "tab\tnew\nline\rreturn",
        "<xml>&amp;\"'",
        "ünï-日本-😀",
        "x" * 1024,
        "é" * 512,
    ],
)
def test_a_key_is_kept_to_the_byte(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert body_of(s3, bucket, key) == key.encode()
    assert keys_of(s3, bucket) == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert keys_of(s3, bucket) == []


def test_alike_keys_are_different(s3, bucket):
    keys = ["a", "a/", "a//", "A", "a%2F", "./a", "a/.", "a ", "a+"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=f"of {key}".encode())
    for key in keys:
        assert body_of(s3, bucket, key) == f"of {key}".encode()
    assert keys_of(s3, bucket) == sorted(keys, key=str.encode)


def test_metadata_and_headers_are_kept(s3, bucket):
    sent = {
        "ContentType": "text/x-thing; charset=utf-8",
        "CacheControl": "max-age=7",
        "ContentDisposition": 'attachment; filename="a b"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "WebsiteRedirectLocation": "/other",
        "Metadata": {"colour": "blue", "empty": "", "n": "1"},
    }
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", **sent)
    for got in (s3.get_object(Bucket=bucket, Key="k"), s3.head_object(Bucket=bucket, Key="k")):
        assert {name: got[name] for name in sent} == sent
        assert got["AcceptRanges"] == "bytes"
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    got = s3.head_object(Bucket=bucket, Key="k")
    assert got["Metadata"] == {} and "CacheControl" not in got
    assert got["ContentType"] == "binary/octet-stream"


def test_an_overwrite_replaces_all(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=pattern(3 * MIB), Metadata={"old": "1"})
    s3.put_object(Bucket=bucket, Key="k", Body=b"new")
    got = s3.get_object(Bucket=bucket, Key="k")
    assert (got["Body"].read(), got["Metadata"]) == (b"new", {})


def test_what_is_absent_is_absent(s3, bucket):
    assert refusal(s3.get_object, Bucket=bucket, Key="no") == (404, "NoSuchKey")
    assert refusal(s3.head_object, Bucket=bucket, Key="no")[0] == 404
    assert refusal(s3.head_object, Bucket=bucket, Key="no/")[0] == 404
    assert refusal(s3.get_object, Bucket="no-such-bucket-x", Key="k") == (404, "NoSuchBucket")
    assert refusal(s3.put_object, Bucket="no-such-bucket-x", Key="k", Body=b"") == (404, "NoSuchBucket")
    assert s3.delete_object(Bucket=bucket, Key="no")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert refusal(s3.delete_object, Bucket="no-such-bucket-x", Key="k") == (404, "NoSuchBucket")


def test_response_headers_can_be_overridden(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ContentType="text/plain")
    got = s3.get_object(
        Bucket=bucket,
        Key="k",
        ResponseContentType="image/png",
        ResponseCacheControl="no-cache",
        ResponseContentDisposition="inline",
        ResponseContentEncoding="aaa",
        ResponseContentLanguage="fr",
        ResponseExpires="Thu, 01 Dec 1994 16:00:00 GMT",
    )
    assert (got["ContentType"], got["CacheControl"], got["ContentDisposition"]) == ("image/png", "no-cache", "inline")
    assert (got["ContentEncoding"], got["ContentLanguage"]) == ("aaa", "fr")
    assert got["ResponseMetadata"]["HTTPHeaders"]["expires"] == "Thu, 01 Dec 1994 16:00:00 GMT"


def test_many_are_deleted_at_once(s3, bucket):
    keys = [f"k{number}" for number in range(30)] + ["<&>", "a b", "ü"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in [*keys[2:], "absent"]]})
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == sorted([*keys[2:], "absent"])
    assert "Errors" not in answer
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": keys[0]}], "Quiet": True})
    assert "Deleted" not in quiet and "Errors" not in quiet
    assert keys_of(s3, bucket) == [keys[1]]


def test_a_thousand_and_one_are_too_many(s3, bucket):
    s3.put_object(Bucket=bucket, Key="0", Body=b"")
    thousand = [{"Key": str(number)} for number in range(1001)]
    assert refusal(s3.delete_objects, Bucket=bucket, Delete={"Objects": thousand}) == (400, "MalformedXML")
    assert keys_of(s3, bucket) == ["0"]
    assert len(s3.delete_objects(Bucket=bucket, Delete={"Objects": thousand[:1000]})["Deleted"]) == 1000


def test_attributes_are_those_asked_for(s3, bucket):
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    got = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ETag", "ObjectSize", "StorageClass"])
    assert got["ETag"] == put["ETag"].strip('"')
    assert (got["ObjectSize"], got["StorageClass"]) == (10, "STANDARD")
    only = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectSize"])
    assert "ETag" not in only and only["ObjectSize"] == 10


def test_storage_class_is_kept(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", StorageClass="REDUCED_REDUNDANCY")
    assert s3.head_object(Bucket=bucket, Key="k")["StorageClass"] == "REDUCED_REDUNDANCY"
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["StorageClass"] == "REDUCED_REDUNDANCY"
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert "StorageClass" not in s3.head_object(Bucket=bucket, Key="k")


def test_high_level_transfers_agree(s3, bucket, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(pattern(20 * MIB + 7))
    s3.upload_file(str(source), bucket, "k")
    s3.download_file(bucket, "k", str(target))
    assert target.read_bytes() == source.read_bytes()
    s3.upload_fileobj(io.BytesIO(b"small"), bucket, "s")
    assert body_of(s3, bucket, "s") == b"small"


def test_the_request_id_is_in_header_and_body(raw, bucket):
    answer = raw.request("GET", f"/{bucket}/no")
    body_id = answer.xml().findtext("RequestId")
    assert body_id and body_id == answer.header("x-amz-request-id")
