"""restic: minio-go's signed chunks over plain HTTP; a backup that is restored, checked and forgotten."""

import os
import shutil

import pytest

from clients.running import read_tree, run, tree
from harness.clients import fresh_name, keys_of, pattern

pytestmark = pytest.mark.clients

FILES = {"a.txt": b"a", "deep/b.bin": pattern(3_000_000), "deep/er/c.bin": pattern(9_000_000, seed=5)}


@pytest.fixture
def restic(client_environment, server, tmp_path):
    if shutil.which("restic") is None:
        assert "CI" not in os.environ, "restic is missing: install the system's package"
        pytest.skip("restic is not installed; it comes from the system's packages")
    bucket = fresh_name()
    environment = {
        **client_environment,
        "RESTIC_REPOSITORY": f"s3:{server.endpoint}/{bucket}/repository",
        "RESTIC_PASSWORD": "a password for a test",
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }
    return bucket, lambda *words: run(environment, "restic", *words)


def test_backup_check_restore_forget(restic, s3, tmp_path):
    bucket, call = restic
    source, target = tree(tmp_path / "source", FILES), tmp_path / "target"
    call("init")
    call("backup", str(source))
    (source / "a.txt").write_bytes(b"changed")
    call("backup", str(source))
    call("check", "--read-data")
    call("restore", "latest", "--target", str(target))
    restored = read_tree(target / source.relative_to("/"))
    assert restored == {**FILES, "a.txt": b"changed"}
    before = len(keys_of(s3, bucket))
    call("forget", "--keep-last", "1", "--prune")
    call("check", "--read-data")
    assert len(keys_of(s3, bucket)) < before
