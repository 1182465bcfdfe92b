"""pyarrow: aws-sdk-cpp's parts with trailers, directory markers, odd probes, Parquet data sets."""

import pytest

from harness import server as servers
from harness.clients import body_of, fresh_name, keys_of, pattern

pytestmark = pytest.mark.clients

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def file_system(server):
    from pyarrow import fs

    return fs.S3FileSystem(
        access_key=servers.ROOT_ACCESS_KEY,
        secret_key=servers.ROOT_SECRET_KEY,
        endpoint_override=server.endpoint,
        scheme="http",
        region=servers.REGION,
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def test_upload_list_download_delete(file_system, s3):
    from pyarrow import fs

    bucket, body = fresh_name(), pattern(25 << 20)
    file_system.create_dir(bucket)
    file_system.create_dir(f"{bucket}/dir/sub")
    with file_system.open_output_stream(f"{bucket}/dir/big") as out:
        for at in range(0, len(body), 1_000_000):
            out.write(body[at : at + 1_000_000])
    with file_system.open_output_stream(f"{bucket}/dir/small") as out:
        out.write(b"small")
    assert body_of(s3, bucket, "dir/big") == body
    with file_system.open_input_file(f"{bucket}/dir/big") as file:
        file.seek(10_000_001)
        assert file.read(100) == body[10_000_001:10_000_101]
    listed = file_system.get_file_info(fs.FileSelector(f"{bucket}/dir", recursive=True))
    assert sorted(info.base_name for info in listed) == ["big", "small", "sub"]
    assert file_system.get_file_info(f"{bucket}/none").type == fs.FileType.NotFound
    file_system.copy_file(f"{bucket}/dir/small", f"{bucket}/dir/copy")
    file_system.move(f"{bucket}/dir/copy", f"{bucket}/dir/moved")
    file_system.delete_file(f"{bucket}/dir/moved")
    file_system.delete_dir(f"{bucket}/dir")
    assert keys_of(s3, bucket) in ([], ["dir/"])
    file_system.delete_dir(bucket)


def test_a_partitioned_data_set(file_system, bucket):
    import pyarrow.dataset
    import pyarrow.parquet

    table = pyarrow.table({"part": [n % 4 for n in range(20_000)], "value": list(range(20_000))})
    pyarrow.parquet.write_to_dataset(table, f"{bucket}/set", partition_cols=["part"], filesystem=file_system)
    data = pyarrow.dataset.dataset(f"{bucket}/set", filesystem=file_system, partitioning="hive")
    assert data.count_rows() == 20_000
    two = data.to_table(filter=pyarrow.dataset.field("part") == 2)
    assert sorted(two["value"].to_pylist()) == list(range(2, 20_000, 4))
