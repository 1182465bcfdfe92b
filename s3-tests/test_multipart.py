"""Multipart uploads: the parts become the object, once, whatever order they came in and whoever raced."""

import concurrent.futures
import hashlib

import pytest

from harness.clients import body_of, keys_of, pattern, refusal

pytestmark = pytest.mark.transports

PART = 5 << 20


@pytest.fixture
def upload(s3, bucket):
    """Calls with bucket, key and upload id filled in."""

    class Upload:
        where = {"Bucket": bucket, "Key": "k"}

        def __init__(self):
            self.id = s3.create_multipart_upload(**self.where)["UploadId"]

        def part(self, number, body):
            etag = s3.upload_part(**self.where, UploadId=self.id, PartNumber=number, Body=body)["ETag"]
            return {"PartNumber": number, "ETag": etag}

        def complete(self, parts, **more):
            return s3.complete_multipart_upload(
                **self.where, UploadId=self.id, MultipartUpload={"Parts": parts}, **more
            )

        def abort(self):
            return s3.abort_multipart_upload(**self.where, UploadId=self.id)

        def parts(self, **more):
            return s3.list_parts(**self.where, UploadId=self.id, **more)

    return Upload()


def etag_of(parts):
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


def test_parts_become_the_object(s3, bucket, upload):
    bodies = [pattern(PART, 1), pattern(PART + 3, 2), b"tail"]
    parts = {number: upload.part(number, bodies[number - 1]) for number in (3, 1, 2)}
    assert keys_of(s3, bucket) == [], "an unfinished upload is no object"
    done = upload.complete([parts[1], parts[2], parts[3]])
    assert done["ETag"] == etag_of(bodies)
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == b"".join(bodies)
    assert got["ETag"] == done["ETag"]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_ranges_cross_parts_and_parts_can_be_read(s3, bucket, upload):
    bodies = [pattern(PART, 1), pattern(PART, 2), b"tail"]
    upload.complete([upload.part(number + 1, body) for number, body in enumerate(bodies)])
    whole = b"".join(bodies)
    got = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={PART - 10}-{2 * PART + 1}")
    assert got["Body"].read() == whole[PART - 10 : 2 * PART + 2]
    for number, body in enumerate(bodies, start=1):
        got = s3.get_object(Bucket=bucket, Key="k", PartNumber=number)
        assert (got["Body"].read(), got["PartsCount"]) == (body, 3)
        assert s3.head_object(Bucket=bucket, Key="k", PartNumber=number)["ContentLength"] == len(body)
    assert refusal(s3.get_object, Bucket=bucket, Key="k", PartNumber=4)[0] in (400, 416)


def test_a_part_can_be_sent_again_and_left_out(s3, bucket, upload):
    upload.part(1, pattern(PART, 1))
    second = upload.part(1, pattern(PART, 2))
    upload.part(2, pattern(PART, 3))
    last = upload.part(7, b"end")
    upload.complete([second, last])
    assert body_of(s3, bucket, "k") == pattern(PART, 2) + b"end"


def test_complete_says_what_is_wrong(upload):
    first, second = upload.part(1, b"small"), upload.part(2, b"end")
    absent = {"PartNumber": 9, "ETag": first["ETag"]}
    other = {"PartNumber": 1, "ETag": second["ETag"]}
    assert refusal(upload.complete, []) == (400, "MalformedXML")
    assert refusal(upload.complete, [first, absent]) == (400, "InvalidPart")
    assert refusal(upload.complete, [other]) == (400, "InvalidPart")
    assert refusal(upload.complete, [second, first]) == (400, "InvalidPartOrder")
    assert refusal(upload.complete, [first, second]) == (400, "EntityTooSmall")
    # What was refused is still there to be completed rightly.
    upload.complete([second])


def test_a_repeated_complete_gives_the_same_answer(s3, bucket, upload):
    parts = [upload.part(1, b"only")]
    first = upload.complete(parts)
    again = upload.complete(parts)
    assert first["ETag"] == again["ETag"]
    assert body_of(s3, bucket, "k") == b"only"


def test_an_aborted_upload_is_gone(s3, bucket, upload):
    part = upload.part(1, b"x")
    upload.abort()
    assert refusal(upload.complete, [part]) == (404, "NoSuchUpload")
    assert refusal(upload.part, 2, b"x") == (404, "NoSuchUpload")
    assert refusal(upload.parts) == (404, "NoSuchUpload")
    assert refusal(upload.abort) == (404, "NoSuchUpload")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_part_numbers_have_bounds(upload):
    assert refusal(upload.part, 0, b"x") == (400, "InvalidArgument")
    assert refusal(upload.part, 10001, b"x") == (400, "InvalidArgument")
    upload.part(10000, b"x")


def test_parts_are_listed_by_number_in_pages(upload):
    bodies = {number: bytes(number) for number in (1, 2, 10, 9, 300)}
    for number, body in bodies.items():
        upload.part(number, body)
    seen, marker = [], 0
    while True:
        page = upload.parts(MaxParts=2, PartNumberMarker=marker)
        seen += [(part["PartNumber"], part["Size"]) for part in page["Parts"]]
        if not page["IsTruncated"]:
            break
        marker = page["NextPartNumberMarker"]
    assert seen == [(number, number) for number in sorted(bodies)]
    assert page["Owner"]["ID"] == page["Initiator"]["ID"] and page["StorageClass"] == "STANDARD"


def test_uploads_are_listed_by_key_then_age(s3, bucket):
    ids = [(key, s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]) for key in "baabc"]
    # The sort is stable: of one key the earlier upload stays first.
    expected = sorted(ids, key=lambda pair: pair[0])
    page = s3.list_multipart_uploads(Bucket=bucket)
    assert [(entry["Key"], entry["UploadId"]) for entry in page["Uploads"]] == expected
    assert all(entry["Initiated"] and entry["Owner"]["ID"] for entry in page["Uploads"])
    seen, marker = [], {}
    while True:
        page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=2, **marker)
        seen += [(entry["Key"], entry["UploadId"]) for entry in page["Uploads"]]
        if not page["IsTruncated"]:
            break
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert seen == expected
    assert [e["Key"] for e in s3.list_multipart_uploads(Bucket=bucket, Prefix="c")["Uploads"]] == ["c"]


def test_uploads_fold_at_a_delimiter(s3, bucket):
    for key in ("a/1", "a/2", "b"):
        s3.create_multipart_upload(Bucket=bucket, Key=key)
    page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [entry["Key"] for entry in page["Uploads"]] == ["b"]
    assert [entry["Prefix"] for entry in page["CommonPrefixes"]] == ["a/"]


def test_metadata_comes_from_the_start(s3, bucket):
    upload = s3.create_multipart_upload(
        Bucket=bucket, Key="k", Metadata={"a": "b"}, ContentType="text/plain", CacheControl="no-store"
    )["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload=parts)
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["Metadata"], head["ContentType"], head["CacheControl"]) == ({"a": "b"}, "text/plain", "no-store")


def test_conditions_are_those_of_complete(s3, bucket, upload):
    s3.put_object(Bucket=bucket, Key="k", Body=b"first")
    part = upload.part(1, b"second")
    assert refusal(upload.complete, [part], IfNoneMatch="*") == (412, "PreconditionFailed")
    assert refusal(upload.complete, [part], IfMatch='"0"') == (412, "PreconditionFailed")
    assert body_of(s3, bucket, "k") == b"first"
    upload.complete([part], IfMatch=s3.head_object(Bucket=bucket, Key="k")["ETag"])
    assert body_of(s3, bucket, "k") == b"second"


def test_complete_against_abort_has_one_winner(s3, bucket, upload):
    part = upload.part(1, b"x")

    def outcome(call, *words):
        try:
            call(*words)
            return True
        except s3.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchUpload"
            return False

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        completed = pool.submit(outcome, upload.complete, [part])
        pool.submit(outcome, upload.abort).result()
    assert (keys_of(s3, bucket) == ["k"]) == completed.result()


def test_a_part_is_copied_from_an_object(s3, bucket, upload):
    source = pattern(PART + 1000)
    s3.put_object(Bucket=bucket, Key="source %25+ü", Body=source)
    copy = dict(**upload.where, UploadId=upload.id, CopySource={"Bucket": bucket, "Key": "source %25+ü"})
    first = s3.upload_part_copy(**copy, PartNumber=1)["CopyPartResult"]["ETag"]
    second = s3.upload_part_copy(**copy, PartNumber=2, CopySourceRange="bytes=10-19")["CopyPartResult"]["ETag"]
    upload.complete([{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": second}])
    assert body_of(s3, bucket, "k") == source + source[10:20]


@pytest.mark.parametrize("text", ["bytes=0-999999999", "bytes=20-10", "0-10", "bytes=-5", "bytes=0-1,3-4"])
def test_a_bad_copy_range_is_refused(s3, bucket, upload, text):
    s3.put_object(Bucket=bucket, Key="source", Body=b"0123456789" * 3)
    copy = dict(**upload.where, UploadId=upload.id, PartNumber=1, CopySource=f"{bucket}/source")
    status, code = refusal(s3.upload_part_copy, **copy, CopySourceRange=text)
    assert (status, code) in ((400, "InvalidArgument"), (416, "InvalidRange"), (400, "InvalidRange"))
    assert "Parts" not in upload.parts()


def test_attributes_show_parts(s3, bucket, upload):
    bodies = [pattern(PART, 1), b"tail"]
    upload.complete([upload.part(number + 1, body) for number, body in enumerate(bodies)])
    wanted = ["ObjectParts", "ObjectSize", "ETag"]
    got = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=wanted)
    assert got["ObjectParts"]["TotalPartsCount"] == 2
    assert got["ObjectSize"] == PART + 4
