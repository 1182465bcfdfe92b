"""boto3's high-level transfers: parallel parts up, parallel ranges down."""

import io

import boto3.s3.transfer
import pytest

from harness.clients import keys_of, pattern

pytestmark = pytest.mark.clients

MIB = 1 << 20


def test_upload_list_download_copy_delete(s3, bucket):
    transfer = boto3.s3.transfer.TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    body = pattern(23 * MIB + 11)
    s3.upload_fileobj(io.BytesIO(body), bucket, "big", Config=transfer, ExtraArgs={"Metadata": {"a": "b"}})
    assert keys_of(s3, bucket) == ["big"]
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copy", Config=transfer)
    for key in ("big", "copy"):
        out = io.BytesIO()
        s3.download_fileobj(bucket, key, out, Config=transfer)
        assert out.getvalue() == body
    assert s3.head_object(Bucket=bucket, Key="copy")["Metadata"] == {"a": "b"}
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "big"}, {"Key": "copy"}]})
    assert keys_of(s3, bucket) == []
    s3.delete_bucket(Bucket=bucket)


def test_waiters_and_paginators(s3, bucket):
    for number in range(25):
        s3.put_object(Bucket=bucket, Key=f"{number:02}", Body=b"")
    s3.get_waiter("object_exists").wait(Bucket=bucket, Key="00", WaiterConfig={"MaxAttempts": 1})
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 10}))
    assert [page["KeyCount"] for page in pages] == [10, 10, 5]
