"""minio-py: asks for the location first, sends Content-MD5 with documents, streams of unknown length."""

import datetime
import io
import urllib.request

import pytest

from harness import server as servers
from harness.clients import fresh_name, pattern

pytestmark = pytest.mark.clients

minio = pytest.importorskip("minio")

MIB = 1 << 20


@pytest.fixture
def client(server):
    return minio.Minio(
        endpoint=server.endpoint.removeprefix("http://"),
        access_key=servers.ROOT_ACCESS_KEY,
        secret_key=servers.ROOT_SECRET_KEY,
        secure=False,
    )


def body_of(client, bucket, key, **more):
    answer = client.get_object(bucket_name=bucket, object_name=key, **more)
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


def test_upload_list_download_delete(client):
    from minio.commonconfig import ComposeSource, CopySource
    from minio.deleteobjects import DeleteObject

    bucket, big = fresh_name(), pattern(12 * MIB)
    client.make_bucket(bucket_name=bucket)
    client.put_object(bucket_name=bucket, object_name="a b/ü", data=io.BytesIO(b"small"), length=5)
    client.put_object(bucket_name=bucket, object_name="big", data=io.BytesIO(big), length=-1, part_size=5 * MIB)
    listed = client.list_objects(bucket_name=bucket, recursive=True)
    assert [entry.object_name for entry in listed] == ["a b/ü", "big"]
    assert {entry.object_name for entry in client.list_objects(bucket_name=bucket)} == {"a b/", "big"}
    assert body_of(client, bucket, "a b/ü") == b"small"
    assert body_of(client, bucket, "big") == big
    assert body_of(client, bucket, "big", offset=5 * MIB - 3, length=10) == big[5 * MIB - 3 : 5 * MIB + 7]
    client.copy_object(bucket_name=bucket, object_name="copy", source=CopySource(bucket_name=bucket, object_name="big"))
    sources = [ComposeSource(bucket_name=bucket, object_name=name) for name in ("big", "a b/ü")]
    client.compose_object(bucket_name=bucket, object_name="composed", sources=sources)
    assert body_of(client, bucket, "composed") == big + b"small"
    names = [entry.object_name for entry in client.list_objects(bucket_name=bucket, recursive=True)]
    errors = client.remove_objects(bucket_name=bucket, delete_object_list=[DeleteObject(name=name) for name in names])
    assert list(errors) == []
    client.remove_bucket(bucket_name=bucket)


def test_presigned(client, bucket):
    client.put_object(bucket_name=bucket, object_name="k", data=io.BytesIO(b"x"), length=1)
    url = client.presigned_get_object(bucket_name=bucket, object_name="k", expires=datetime.timedelta(minutes=1))
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"x"
