"""s3cmd: version 1 listings, bucket URLs with a slash, and `info`, which reads every setting."""

import pytest

from clients.running import read_tree, run, tree
from harness import server as servers
from harness.clients import fresh_name, pattern

pytestmark = pytest.mark.clients

FILES = {"a.txt": b"a", "sub/b.bin": pattern(100_000), "big.bin": pattern(16 << 20)}


@pytest.fixture
def s3cmd(client_environment, server, tmp_path):
    host = server.endpoint.removeprefix("http://")
    config = tmp_path / "s3cfg"
    config.write_text(
        f"[default]\naccess_key = {servers.ROOT_ACCESS_KEY}\nsecret_key = {servers.ROOT_SECRET_KEY}\n"
        f"host_base = {host}\nhost_bucket = {host}\nuse_https = False\nmultipart_chunk_size_mb = 5\n"
    )
    return lambda *words, **more: run(client_environment, "s3cmd", "-c", str(config), "--no-progress", *words, **more)


def test_upload_list_download_delete(s3cmd, tmp_path):
    bucket = f"s3://{fresh_name()}"
    s3cmd("mb", bucket)
    source = tree(tmp_path / "source", FILES)
    s3cmd("sync", f"{source}/", f"{bucket}/tree/")
    assert len(s3cmd("ls", "--recursive", bucket).splitlines()) == len(FILES)
    assert "DIR" in s3cmd("ls", f"{bucket}/")
    target = tmp_path / "target"
    target.mkdir()
    s3cmd("sync", f"{bucket}/tree/", f"{target}/")
    assert read_tree(target) == FILES
    s3cmd("cp", f"{bucket}/tree/a.txt", f"{bucket}/copy")
    s3cmd("del", "--recursive", "--force", f"{bucket}/")
    s3cmd("rb", bucket)


def test_info_reads_every_setting(s3cmd, tmp_path):
    bucket = f"s3://{fresh_name()}"
    s3cmd("mb", bucket)
    (tmp_path / "f").write_bytes(b"x")
    s3cmd("put", str(tmp_path / "f"), f"{bucket}/k")
    text = s3cmd("info", f"{bucket}/")
    for line in ("Location:  us-east-1", "Payer:     BucketOwner", "Policy:    none", "CORS:      none"):
        assert line in text, text
    assert "MD5 sum:   9dd4e461268c8034f5c8564e155c67a6" in s3cmd("info", f"{bucket}/k")
