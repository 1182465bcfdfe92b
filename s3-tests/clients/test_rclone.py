"""rclone: creates the bucket itself, copies onto itself to set a time, purges by versions."""

import pytest

from clients.running import read_tree, run, tree
from harness import server as servers
from harness.clients import fresh_name, pattern, refusal

pytestmark = pytest.mark.clients

FILES = {"a.txt": b"a", "empty": b"", "sub/ü b.bin": pattern(100_000), "big.bin": pattern(12 << 20)}


@pytest.fixture
def rclone(client_environment, server, tmp_path):
    config = tmp_path / "rclone.conf"
    config.write_text(
        f"[fz]\ntype = s3\nprovider = Other\nendpoint = {server.endpoint}\nregion = {servers.REGION}\n"
        f"access_key_id = {servers.ROOT_ACCESS_KEY}\nsecret_access_key = {servers.ROOT_SECRET_KEY}\n"
    )
    flags = ["--config", str(config), "--s3-chunk-size", "5Mi", "--s3-upload-cutoff", "5Mi", "--retries", "1"]
    return lambda *words, **more: run(client_environment, "rclone", *flags, *words, **more)


def test_sync_check_purge(rclone, s3, tmp_path):
    bucket = fresh_name()
    source, target = tree(tmp_path / "source", FILES), tmp_path / "target"
    rclone("sync", str(source), f"fz:{bucket}/tree")
    rclone("check", "--download", str(source), f"fz:{bucket}/tree")
    assert sorted(rclone("lsf", "-R", "--files-only", f"fz:{bucket}/tree").splitlines()) == sorted(FILES)
    rclone("sync", f"fz:{bucket}/tree", str(target))
    assert read_tree(target) == FILES
    # A new time alone makes rclone copy the object onto itself.
    (source / "a.txt").touch()
    rclone("sync", str(source), f"fz:{bucket}/tree")
    rclone("moveto", f"fz:{bucket}/tree/a.txt", f"fz:{bucket}/moved")
    assert s3.get_object(Bucket=bucket, Key="moved")["Body"].read() == b"a"
    rclone("purge", f"fz:{bucket}")
    assert refusal(s3.head_bucket, Bucket=bucket)[0] == 404


def test_a_stream_of_unknown_length(rclone, s3, bucket):
    rclone("rcat", f"fz:{bucket}/k", input="x" * 6_000_000)
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == 6_000_000
