"""deltalake: commits by `If-None-Match: *`, so that of two writers neither overwrites the other."""

import concurrent.futures

import pytest

from harness import server as servers
from harness.clients import keys_of

pytestmark = pytest.mark.clients

deltalake = pytest.importorskip("deltalake")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def options(server):
    return {
        "AWS_ACCESS_KEY_ID": servers.ROOT_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.ROOT_SECRET_KEY,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": servers.REGION,
        "AWS_ALLOW_HTTP": "true",
        "conditional_put": "etag",
    }


def table(start, count=100):
    return pyarrow.table({"value": list(range(start, start + count))})


def test_write_read_overwrite_delete(options, s3, bucket):
    uri = f"s3://{bucket}/table"
    deltalake.write_deltalake(uri, table(0), storage_options=options)
    deltalake.write_deltalake(uri, table(100), mode="append", storage_options=options)
    opened = deltalake.DeltaTable(uri, storage_options=options)
    assert opened.version() == 1
    assert sorted(opened.to_pyarrow_table()["value"].to_pylist()) == list(range(200))
    opened.delete("value >= 50")
    assert sorted(opened.to_pyarrow_table()["value"].to_pylist()) == list(range(50))
    before = len(keys_of(s3, bucket))
    opened.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert len([key for key in keys_of(s3, bucket) if key.endswith(".parquet")]) < before
    opened.create_checkpoint()
    assert deltalake.DeltaTable(uri, version=1, storage_options=options).version() == 1


def test_two_writers_at_once_lose_nothing(options, bucket):
    uri = f"s3://{bucket}/table"
    deltalake.write_deltalake(uri, table(0), storage_options=options)

    def append(number):
        deltalake.write_deltalake(uri, table(1000 * number, 10), mode="append", storage_options=options)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(1, 9)))
    opened = deltalake.DeltaTable(uri, storage_options=options)
    assert opened.version() == 8
    expected = [*range(100), *(1000 * number + row for number in range(1, 9) for row in range(10))]
    assert sorted(opened.to_pyarrow_table()["value"].to_pylist()) == expected
