"""What is not configured answers AWS's code; what is not built is refused by name and stores nothing."""

import pytest

from harness.checksums import md5
from harness.clients import keys_of, refusal

UNSET = {
    "policy": "NoSuchBucketPolicy",
    "cors": "NoSuchCORSConfiguration",
    "lifecycle": "NoSuchLifecycleConfiguration",
    "website": "NoSuchWebsiteConfiguration",
    "tagging": "NoSuchTagSet",
    "publicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
    "ownershipControls": "OwnershipControlsNotFoundError",
    "replication": "ReplicationConfigurationNotFoundError",
    "encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "object-lock": "ObjectLockConfigurationNotFoundError",
}


@pytest.mark.parametrize("name", UNSET)
def test_unset_settings_have_their_code(raw, bucket, name):
    answer = raw.request("GET", f"/{bucket}?{name}=")
    assert (answer.status, answer.code) == (404, UNSET[name])


@pytest.mark.parametrize("name", ["accelerate", "logging", "versioning", "notification"])
def test_some_unset_settings_are_empty_documents(raw, bucket, name):
    answer = raw.request("GET", f"/{bucket}?{name}=")
    assert answer.status == 200, answer
    assert len(answer.xml()) == 0


def test_an_acl_that_is_not_the_owners_own_is_refused(raw, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    for path in (f"/{bucket}", f"/{bucket}/k"):
        assert raw.request("PUT", f"{path}?acl=", [], b"<x/>").code == "MalformedXML"
        public = raw.request("PUT", f"{path}?acl=", [("x-amz-acl", "public-read")])
        assert (public.status, public.code) == (501, "NotImplemented")
        assert raw.request("PUT", f"{path}?acl=", [("x-amz-acl", "private")]).status == 200
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


def test_requester_pays_is_off(raw, bucket):
    answer = raw.request("GET", f"/{bucket}?requestPayment=")
    assert (answer.status, b"<Payer>BucketOwner</Payer>" in answer.body) == (200, True)


@pytest.mark.parametrize("name", [*UNSET, "versioning", "accelerate", "logging", "notification", "requestPayment"])
def test_settings_cannot_be_put_yet(raw, s3, bucket, name):
    body = b"<x/>"
    answer = raw.request("PUT", f"/{bucket}?{name}=", [("Content-MD5", md5(body))], body)
    assert (answer.status, answer.code) == (501, "NotImplemented"), answer
    assert keys_of(s3, bucket) == []


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("GET", "no-such-thing-but-mutating"),
        ("PUT", "torrent"),
        ("POST", "select&select-type=2"),
        ("POST", "restore"),
        ("PUT", "tagging"),
        ("PUT", "retention"),
        ("PUT", "legal-hold"),
        ("DELETE", "tagging"),
        ("PUT", "renameObject"),
        ("PUT", "no-such-thing"),
        ("DELETE", "no-such-thing"),
        ("POST", "no-such-thing"),
    ],
)
def test_an_unbuilt_sub_resource_never_falls_through(raw, s3, bucket, method, query):
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    target = "&".join(part if "=" in part else f"{part}=" for part in query.split("&"))
    body = b"<x/>" if method in ("PUT", "POST") else b""
    answer = raw.request(method, f"/{bucket}/k?{target}", [], body)
    if method == "GET":
        # Unknown parameters of a read change nothing: x-id and its like.
        assert answer.status in (200, 501)
    else:
        assert (answer.status, answer.code) in ((501, "NotImplemented"), (405, "MethodNotAllowed")), answer
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


@pytest.mark.parametrize("query", ["x-id=PutObject", "x-id="])
def test_an_operation_id_is_ignored_for_routing(raw, s3, bucket, query):
    assert raw.request("PUT", f"/{bucket}/k?{query}", [], b"x").status == 200
    assert keys_of(s3, bucket) == ["k"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-retain-until-date", "2030-01-01T00:00:00Z"),
        ("x-amz-object-lock-legal-hold", "ON"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-grant-read", "id=abc"),
        ("x-amz-grant-full-control", "id=abc"),
        ("x-amz-acl", "public-read"),
        ("x-amz-storage-class", "GLACIER"),
    ],
)
def test_a_header_that_asks_for_something_unbuilt_stores_nothing(raw, s3, bucket, header, value):
    answer = raw.request("PUT", f"/{bucket}/k", [(header, value)], b"x")
    assert (answer.status, answer.code) == (501, "NotImplemented"), answer
    create = raw.request("POST", f"/{bucket}/k?uploads=", [(header, value)])
    assert (create.status, create.code) == (501, "NotImplemented"), create
    assert keys_of(s3, bucket) == []
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_an_unknown_storage_class_is_no_unbuilt_one(raw, s3, bucket):
    answer = raw.request("PUT", f"/{bucket}/k", [("x-amz-storage-class", "NONSENSE")], b"x")
    assert (answer.status, answer.code) in ((400, "InvalidStorageClass"), (501, "NotImplemented"))
    assert keys_of(s3, bucket) == []


def test_harmless_forms_are_accepted(raw, s3, bucket):
    assert raw.request("PUT", f"/{bucket}/k", [("x-amz-acl", "private")], b"x").status == 200
    headers = [("x-amz-bucket-object-lock-enabled", "false"), ("x-amz-acl", "private")]
    assert raw.request("PUT", f"/{bucket}-second", headers).status == 200
    lock = raw.request("PUT", f"/{bucket}-third", [("x-amz-bucket-object-lock-enabled", "true")])
    assert (lock.status, lock.code) == (501, "NotImplemented")
    assert refusal(s3.head_bucket, Bucket=f"{bucket}-third")[0] == 404


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("DELETE", "/"), ("PUT", "/"), ("PATCH", "/b/k"), ("OPTIONS", "/b/k")])
def test_methods_without_an_operation(raw, method, path):
    answer = raw.request(method, path)
    assert answer.status in (400, 403, 405, 501), answer
