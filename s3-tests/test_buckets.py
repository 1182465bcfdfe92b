"""Buckets: create, find, list, delete, and what may not be done with them."""

import datetime

import pytest

from harness.clients import client_of, fresh_name, refusal
from harness.server import ALT_ID

pytestmark = pytest.mark.transports


def test_a_new_bucket_is_seen_at_once(s3):
    name = fresh_name()
    before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=2)
    assert s3.create_bucket(Bucket=name)["Location"] == f"/{name}"
    listed = {entry["Name"]: entry["CreationDate"] for entry in s3.list_buckets()["Buckets"]}
    assert listed[name] >= before
    head = s3.head_bucket(Bucket=name)
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] == "us-east-1"


def test_the_list_is_in_byte_order_and_pages(s3):
    prefix = fresh_name()
    names = [f"{prefix}-{word}" for word in ("b", "a", "c.d", "c-d", "10", "9")]
    for name in names:
        s3.create_bucket(Bucket=name)
    seen, token = [], {}
    while True:
        page = s3.list_buckets(MaxBuckets=2, Prefix=prefix, **token)
        assert len(page["Buckets"]) <= 2
        seen += [entry["Name"] for entry in page["Buckets"]]
        if "ContinuationToken" not in page:
            break
        token = {"ContinuationToken": page["ContinuationToken"]}
    assert seen == sorted(names)
    assert page["Owner"]["ID"]


def test_a_repeat_by_the_owner_keeps_what_is_in_it(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"v")
    s3.create_bucket(Bucket=bucket)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"v"


def test_another_owners_name_is_taken(s3, alt, bucket):
    assert refusal(alt.create_bucket, Bucket=bucket) == (409, "BucketAlreadyExists")


@pytest.mark.parametrize(
    "name",
    ["ab", "a" * 64, "Upper", "under_score", "dot..dot", "dash-.dot", "dot.-dash", "ends-", "-starts", "10.0.0.1"],
)
def test_bad_names_are_refused(raw, name):
    answer = raw.request("PUT", f"/{name}")
    assert (answer.status, answer.code) == (400, "InvalidBucketName")


def test_location_is_empty_in_us_east_1_and_named_elsewhere(s3):
    plain, named = fresh_name(), fresh_name()
    s3.create_bucket(Bucket=plain)
    assert s3.get_bucket_location(Bucket=plain)["LocationConstraint"] is None
    s3.create_bucket(Bucket=named, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert s3.get_bucket_location(Bucket=named)["LocationConstraint"] == "eu-west-1"


def test_delete_wants_an_empty_bucket(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"v")
    assert refusal(s3.delete_bucket, Bucket=bucket) == (409, "BucketNotEmpty")
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    assert refusal(s3.head_bucket, Bucket=bucket)[0] == 404
    assert refusal(s3.delete_bucket, Bucket=bucket) == (404, "NoSuchBucket")


def test_unfinished_uploads_do_not_hold_a_bucket(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"part")
    s3.delete_bucket(Bucket=bucket)
    assert refusal(s3.list_objects_v2, Bucket=bucket) == (404, "NoSuchBucket")


def test_a_recreated_bucket_is_empty(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    s3.delete_bucket(Bucket=bucket)
    s3.create_bucket(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert refusal(s3.list_parts, Bucket=bucket, Key="k", UploadId=upload) == (404, "NoSuchUpload")


def test_a_trailing_slash_means_the_bucket(raw, bucket):
    assert raw.request("HEAD", f"/{bucket}/").status == 200
    assert raw.request("GET", f"/{bucket}/?location").status == 200


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_errors_about_a_bucket_name_the_region(raw, method):
    answer = raw.request(method, "/no-such-bucket-here")
    assert answer.status == 404
    assert answer.header("x-amz-bucket-region") == "us-east-1"


def test_buckets_are_their_owners_only(s3, alt, bucket):
    assert bucket not in [entry["Name"] for entry in alt.list_buckets()["Buckets"]]
    assert alt.list_buckets()["Owner"] == {"ID": ALT_ID, "DisplayName": "alt"}
    assert refusal(alt.list_objects_v2, Bucket=bucket) == (403, "AccessDenied")
    assert refusal(alt.put_object, Bucket=bucket, Key="k", Body=b"v") == (403, "AccessDenied")
    assert refusal(alt.delete_bucket, Bucket=bucket) == (403, "AccessDenied")
    assert refusal(alt.head_bucket, Bucket=bucket)[0] == 403
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_another_users_object_is_not_read_copied_or_deleted(s3, alt, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"v")
    own = fresh_name()
    alt.create_bucket(Bucket=own)
    assert refusal(alt.get_object, Bucket=bucket, Key="k") == (403, "AccessDenied")
    assert refusal(alt.delete_object, Bucket=bucket, Key="k") == (403, "AccessDenied")
    source = {"Bucket": bucket, "Key": "k"}
    assert refusal(alt.copy_object, Bucket=own, Key="k", CopySource=source) == (403, "AccessDenied")
    upload = alt.create_multipart_upload(Bucket=own, Key="k")["UploadId"]
    copy = dict(Bucket=own, Key="k", UploadId=upload, PartNumber=1, CopySource=source)
    assert refusal(alt.upload_part_copy, **copy) == (403, "AccessDenied")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"v"


def test_an_unknown_key_and_a_wrong_secret_are_told_apart_from_nothing(server):
    assert refusal(client_of(server, access_key="UNKNOWNKEY0000000000").list_buckets) == (403, "InvalidAccessKeyId")
    assert refusal(client_of(server, secret_key="wrong").list_buckets) == (403, "SignatureDoesNotMatch")


def test_acl_shows_the_owner_in_full_control(s3, alt):
    name = fresh_name()
    alt.create_bucket(Bucket=name)
    alt.put_object(Bucket=name, Key="k", Body=b"")
    for acl in (alt.get_bucket_acl(Bucket=name), alt.get_object_acl(Bucket=name, Key="k")):
        assert acl["Owner"]["ID"] == ALT_ID
        assert [grant["Permission"] for grant in acl["Grants"]] == ["FULL_CONTROL"]
        assert acl["Grants"][0]["Grantee"]["ID"] == ALT_ID


def test_versions_of_an_unversioned_bucket_are_null(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    s3.put_object(Bucket=bucket, Key="b", Body=b"2")
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    page = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    assert [(v["Key"], v["VersionId"], v["IsLatest"]) for v in page["Versions"]] == [("a", "null", True)]
    assert page["IsTruncated"]
    more = s3.list_object_versions(
        Bucket=bucket, KeyMarker=page["NextKeyMarker"], VersionIdMarker=page["NextVersionIdMarker"]
    )
    assert [v["Key"] for v in more["Versions"]] == ["b"]
    s3.delete_object(Bucket=bucket, Key="a", VersionId="null")
    assert refusal(s3.get_object, Bucket=bucket, Key="a") == (404, "NoSuchKey")
