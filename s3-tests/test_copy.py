"""Server-side copies: bytes and metadata, onto itself, under conditions, of names that need care."""

import datetime

import pytest

from harness.clients import body_of, fresh_name, pattern, refusal

pytestmark = pytest.mark.transports


def copy(s3, bucket, source, target, **more):
    return s3.copy_object(Bucket=bucket, Key=target, CopySource={"Bucket": bucket, "Key": source}, **more)


@pytest.mark.parametrize("length", [0, 1, 100_000, 16 << 20])
def test_a_copy_is_the_same_and_independent(s3, bucket, length):
    body = pattern(length)
    put = s3.put_object(Bucket=bucket, Key="a", Body=body, Metadata={"m": "1"}, ContentType="text/plain")
    result = copy(s3, bucket, "a", "b")["CopyObjectResult"]
    assert result["ETag"] == put["ETag"]
    assert result["LastModified"] == s3.head_object(Bucket=bucket, Key="b")["LastModified"].replace(
        microsecond=result["LastModified"].microsecond
    )
    s3.delete_object(Bucket=bucket, Key="a")
    got = s3.get_object(Bucket=bucket, Key="b")
    assert got["Body"].read() == body
    assert (got["Metadata"], got["ContentType"]) == ({"m": "1"}, "text/plain")


def test_replace_takes_the_requests_metadata(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=b"x", Metadata={"old": "1"}, ContentType="text/plain")
    copy(s3, bucket, "a", "b", MetadataDirective="REPLACE", Metadata={"new": "2"}, ContentType="image/png")
    head = s3.head_object(Bucket=bucket, Key="b")
    assert (head["Metadata"], head["ContentType"]) == ({"new": "2"}, "image/png")
    copy(s3, bucket, "a", "c", MetadataDirective="COPY", Metadata={"new": "2"})
    assert s3.head_object(Bucket=bucket, Key="c")["Metadata"] == {"old": "1"}


def test_onto_itself_only_with_a_change(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=b"x", Metadata={"old": "1"})
    assert refusal(copy, s3, bucket, "a", "a") == (400, "InvalidRequest")
    copy(s3, bucket, "a", "a", MetadataDirective="REPLACE", Metadata={"new": "2"})
    got = s3.get_object(Bucket=bucket, Key="a")
    assert (got["Body"].read(), got["Metadata"]) == (b"x", {"new": "2"})


@pytest.mark.parametrize("key", ["a b", "a+b", "a%2Fb", "ü/日本", "?versionId=null", "/lead", "..", "a#b"])
def test_odd_source_names(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    copy(s3, bucket, key, "target")
    assert body_of(s3, bucket, "target") == key.encode()


def test_source_forms(raw, s3, bucket):
    s3.put_object(Bucket=bucket, Key="a b", Body=b"x")
    for source in (f"{bucket}/a%20b", f"/{bucket}/a%20b", f"{bucket}/a%20b?versionId=null", f"{bucket}%2Fa%20b"):
        answer = raw.request("PUT", f"/{bucket}/target", [("x-amz-copy-source", source)])
        assert (answer.status, answer.code) == (200, None), source


def test_what_cannot_be_copied(s3, raw, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=b"x")
    assert refusal(copy, s3, bucket, "absent", "b") == (404, "NoSuchKey")
    missing = {"Bucket": "no-such-bucket-x", "Key": "a"}
    assert refusal(s3.copy_object, Bucket=bucket, Key="b", CopySource=missing) == (404, "NoSuchBucket")
    source = {"Bucket": bucket, "Key": "a"}
    assert refusal(s3.copy_object, Bucket="no-such-bucket-x", Key="b", CopySource=source) == (404, "NoSuchBucket")
    for bad in ("nothing", "", "/", f"{bucket}/", f"{bucket}/%FF"):
        answer = raw.request("PUT", f"/{bucket}/b", [("x-amz-copy-source", bad)])
        assert answer.status == 400, (bad, answer)
    assert refusal(s3.head_object, Bucket=bucket, Key="b")[0] == 404


def test_between_buckets(s3, bucket):
    other = fresh_name()
    s3.create_bucket(Bucket=other)
    s3.put_object(Bucket=other, Key="a", Body=b"x")
    s3.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": other, "Key": "a"})
    assert body_of(s3, bucket, "b") == b"x"


def test_source_conditions(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="a", Body=b"x")["ETag"]
    when = s3.head_object(Bucket=bucket, Key="a")["LastModified"]
    hour = datetime.timedelta(hours=1)
    for good in (
        {"CopySourceIfMatch": etag},
        {"CopySourceIfNoneMatch": '"0"'},
        {"CopySourceIfModifiedSince": when - hour},
        {"CopySourceIfUnmodifiedSince": when + hour},
    ):
        copy(s3, bucket, "a", "b", **good)
    s3.delete_object(Bucket=bucket, Key="b")
    for bad in (
        {"CopySourceIfMatch": '"0"'},
        {"CopySourceIfNoneMatch": etag},
        {"CopySourceIfUnmodifiedSince": when - hour},
    ):
        assert refusal(copy, s3, bucket, "a", "b", **bad) == (412, "PreconditionFailed")
    assert refusal(s3.head_object, Bucket=bucket, Key="b")[0] == 404


def test_target_conditions(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=b"x")
    copy(s3, bucket, "a", "b", IfNoneMatch="*")
    assert refusal(copy, s3, bucket, "a", "b", IfNoneMatch="*") == (412, "PreconditionFailed")
    assert refusal(copy, s3, bucket, "a", "b", IfMatch='"0"') == (412, "PreconditionFailed")


def test_a_multipart_object_copies_whole(s3, bucket):
    bodies = [pattern(5 << 20, 1), b"tail"]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    where = dict(Bucket=bucket, Key="a", UploadId=upload)
    etags = [s3.upload_part(**where, PartNumber=n + 1, Body=body)["ETag"] for n, body in enumerate(bodies)]
    parts = [{"PartNumber": n + 1, "ETag": etag} for n, etag in enumerate(etags)]
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    copy(s3, bucket, "a", "b")
    s3.delete_object(Bucket=bucket, Key="a")
    assert body_of(s3, bucket, "b") == b"".join(bodies)
