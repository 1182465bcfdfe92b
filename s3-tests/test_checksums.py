"""Checksums in headers and of multipart uploads: verified, stored, given back, and refused when wrong."""

import pytest

from harness.checksums import ALGORITHMS, checksum, composite, digest, header, md5
from harness.clients import pattern, refusal

pytestmark = pytest.mark.transports

PART = 5 << 20
BODY = pattern(3000)


def field(algorithm):
    return f"Checksum{algorithm}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_right_checksum_is_kept_and_told(raw, s3, bucket, algorithm):
    value = checksum(algorithm, BODY)
    answer = raw.request("PUT", f"/{bucket}/k", [(header(algorithm), value)], BODY)
    assert (answer.status, answer.header(header(algorithm))) == (200, value)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head[field(algorithm)], head["ChecksumType"]) == (value, "FULL_OBJECT")
    assert field(algorithm) not in s3.head_object(Bucket=bucket, Key="k")
    got = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum"])
    assert got["Checksum"][field(algorithm)] == value
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert listed["ChecksumAlgorithm"] == [algorithm]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_wrong_checksum_stores_nothing(raw, s3, bucket, algorithm):
    wrong = checksum(algorithm, BODY + b"!")
    answer = raw.request("PUT", f"/{bucket}/k", [(header(algorithm), wrong)], BODY)
    assert (answer.status, answer.code) == (400, "BadDigest")
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", ["", "!!!!", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="])
def test_a_malformed_checksum_is_refused(raw, s3, bucket, algorithm, value):
    answer = raw.request("PUT", f"/{bucket}/k", [(header(algorithm), value)], BODY)
    assert (answer.status, answer.code) in ((400, "InvalidRequest"), (400, "InvalidDigest"), (400, "BadDigest"))
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


def test_two_checksums_or_an_unknown_one_are_refused(raw, bucket):
    both = [(header(name), checksum(name, BODY)) for name in ("CRC32", "SHA1")]
    assert raw.request("PUT", f"/{bucket}/k", both, BODY).code == "InvalidRequest"
    unknown = raw.request("PUT", f"/{bucket}/k", [("x-amz-sdk-checksum-algorithm", "ROT13")], BODY)
    assert (unknown.status, unknown.code) == (400, "InvalidRequest")


def test_content_md5_is_verified(raw, s3, bucket):
    assert raw.request("PUT", f"/{bucket}/k", [("Content-MD5", md5(BODY))], BODY).status == 200
    s3.delete_object(Bucket=bucket, Key="k")
    for value, code in ((md5(b"other"), "BadDigest"), ("short", "InvalidDigest"), ("", "InvalidDigest")):
        answer = raw.request("PUT", f"/{bucket}/k", [("Content-MD5", value)], BODY)
        assert (answer.status, answer.code) == (400, code)
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


def test_delete_objects_wants_a_digest_and_a_right_one(raw, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    body = b"<Delete><Object><Key>k</Key></Object></Delete>"
    without = raw.request("POST", f"/{bucket}?delete=", [], body)
    assert (without.status, without.code) == (400, "InvalidRequest")
    wrong = raw.request("POST", f"/{bucket}?delete=", [("Content-MD5", md5(b"other"))], body)
    assert (wrong.status, wrong.code) == (400, "BadDigest")
    assert s3.head_object(Bucket=bucket, Key="k")
    for good in (("Content-MD5", md5(body)), (header("CRC64NVME"), checksum("CRC64NVME", body))):
        answer = raw.request("POST", f"/{bucket}?delete=", [good], body)
        assert (answer.status, b"<Deleted>" in answer.body) == (200, True)


def start(s3, bucket, algorithm, kind=None):
    more = {"ChecksumType": kind} if kind else {}
    return s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm, **more)["UploadId"]


def send_parts(s3, bucket, upload, algorithm, bodies):
    parts = []
    for number, body in enumerate(bodies, start=1):
        value = checksum(algorithm, body)
        answer = s3.upload_part(
            Bucket=bucket, Key="k", UploadId=upload, PartNumber=number, Body=body, **{field(algorithm): value}
        )
        assert answer[field(algorithm)] == value
        parts.append({"PartNumber": number, "ETag": answer["ETag"], field(algorithm): value})
    return parts


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_composite_is_the_checksum_of_checksums(s3, bucket, algorithm):
    bodies = [pattern(PART, 1), b"tail"]
    upload = start(s3, bucket, algorithm)
    parts = send_parts(s3, bucket, upload, algorithm, bodies)
    done = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    assert done[field(algorithm)] == composite(algorithm, bodies)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head[field(algorithm)], head["ChecksumType"]) == (composite(algorithm, bodies), "COMPOSITE")


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC64NVME"])
def test_full_object_is_the_checksum_of_the_whole(s3, bucket, algorithm):
    bodies = [pattern(PART, 1), b"tail"]
    upload = start(s3, bucket, algorithm, "FULL_OBJECT")
    parts = send_parts(s3, bucket, upload, algorithm, bodies)
    done = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    assert (done[field(algorithm)], done["ChecksumType"]) == (checksum(algorithm, b"".join(bodies)), "FULL_OBJECT")
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[field(algorithm)] == done[field(algorithm)]


def test_crc64nvme_has_no_composite(s3, bucket):
    assert refusal(start, s3, bucket, "CRC64NVME", "COMPOSITE") == (400, "InvalidRequest")
    assert refusal(start, s3, bucket, "SHA256", "FULL_OBJECT") == (400, "InvalidRequest")


def test_a_part_with_a_wrong_checksum_is_no_part(raw, s3, bucket):
    upload = start(s3, bucket, "CRC32")
    wrong = checksum("CRC32", b"other")
    target = f"/{bucket}/k?partNumber=1&uploadId={upload}"
    answer = raw.request("PUT", target, [(header("CRC32"), wrong)], BODY)
    assert (answer.status, answer.code) == (400, "BadDigest")
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)


def test_complete_holds_each_parts_checksum_against_the_stored_one(s3, bucket):
    upload = start(s3, bucket, "CRC32")
    parts = send_parts(s3, bucket, upload, "CRC32", [b"only"])
    parts[0]["ChecksumCRC32"] = checksum("CRC32", b"other")
    finish = dict(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    assert refusal(s3.complete_multipart_upload, **finish)[0] == 400
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


def test_the_reference_implementation_knows_the_check_values():
    assert digest("CRC32", b"123456789").hex() == "cbf43926"
