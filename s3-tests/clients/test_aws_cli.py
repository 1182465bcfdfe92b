"""The aws command: cp, sync both ways, ls, presign, rm, and its low-level verbs."""

import json
import urllib.request

import pytest

from clients.running import read_tree, run, tree
from harness.clients import keys_of, pattern

pytestmark = pytest.mark.clients

FILES = {
    "a.txt": b"a",
    "empty": b"",
    "deep/er/b c+d%.bin": pattern(100_000),
    "deep/ü.txt": "ü".encode(),
    "big.bin": pattern(20 << 20),
}


def test_upload_list_download_delete(client_environment, s3, bucket, tmp_path):
    source, target = tree(tmp_path / "source", FILES), tmp_path / "target"
    environment = {**client_environment, "LC_ALL": "C.UTF-8"}
    run(environment, "aws", "s3", "sync", str(source), f"s3://{bucket}/tree", "--only-show-errors")
    assert keys_of(s3, bucket) == sorted((f"tree/{name}" for name in FILES), key=str.encode)
    assert run(environment, "aws", "s3", "sync", str(source), f"s3://{bucket}/tree", "--only-show-errors") == ""
    listing = run(environment, "aws", "s3", "ls", "--recursive", f"s3://{bucket}/")
    assert len(listing.splitlines()) == len(FILES)
    run(environment, "aws", "s3", "sync", f"s3://{bucket}/tree", str(target), "--only-show-errors")
    assert read_tree(target) == FILES
    (source / "a.txt").unlink()
    run(environment, "aws", "s3", "sync", "--delete", str(source), f"s3://{bucket}/tree", "--only-show-errors")
    assert "tree/a.txt" not in keys_of(s3, bucket)
    run(environment, "aws", "s3", "cp", f"s3://{bucket}/tree/big.bin", f"s3://{bucket}/copy", "--only-show-errors")
    run(environment, "aws", "s3", "mv", f"s3://{bucket}/copy", f"s3://{bucket}/moved", "--only-show-errors")
    run(environment, "aws", "s3", "rm", "--recursive", f"s3://{bucket}/tree", "--only-show-errors")
    assert keys_of(s3, bucket) == ["moved"]
    run(environment, "aws", "s3", "rb", "--force", f"s3://{bucket}")


def test_streams_and_presigned_urls(client_environment, bucket):
    run(client_environment, "aws", "s3", "cp", "-", f"s3://{bucket}/k", input="from a pipe")
    assert run(client_environment, "aws", "s3", "cp", f"s3://{bucket}/k", "-") == "from a pipe"
    url = run(client_environment, "aws", "s3", "presign", f"s3://{bucket}/k").strip()
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"from a pipe"


def test_low_level_verbs(client_environment, bucket, tmp_path):
    (tmp_path / "body").write_bytes(b"0123456789")

    def api(*words):
        text = run(client_environment, "aws", "s3api", *words, "--bucket", bucket)
        return json.loads(text) if text else {}

    api("put-object", "--key", "k", "--body", str(tmp_path / "body"), "--checksum-algorithm", "SHA256")
    assert api("head-object", "--key", "k", "--checksum-mode", "ENABLED")["ChecksumSHA256"]
    api("get-object", "--key", "k", "--range", "bytes=2-4", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"234"
    run(client_environment, "aws", "s3api", "get-object", "--bucket", bucket, "--key", "no", str(tmp_path / "no"), expect=255)
    assert api("list-objects-v2", "--max-items", "1")["Contents"][0]["Key"] == "k"
    api("delete-object", "--key", "k")
