"""A disk that is full and a disk that lies: writes are refused, wrong data is never given."""

import contextlib
import os
import pathlib
import subprocess

import botocore.exceptions
import pytest

from harness.clients import body_of, client_of, pattern
from harness.server import SMALL_SIZES, merged
from harness.waiting import wait_until

MIB = 1 << 20


@contextlib.contextmanager
def small_disk(directory, size):
    """A file system of its own; needs the right to mount one."""
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"no right to mount a small disk: {mount.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_refuses_writes_and_recovers(make_server, tmp_path):
    with small_disk(tmp_path / "disk", 512 * MIB) as disk:
        sizes = merged(SMALL_SIZES, {"datanode": {"reserve": "8MiB"}, "scm": {"container_size": "32MiB"}})
        server = make_server(sizes, directory=disk / "server").start()
        s3 = client_of(server)
        s3.create_bucket(Bucket="box")
        stored, refused = {}, None
        for number in range(400):
            body = pattern(4 * MIB, seed=number)
            try:
                s3.put_object(Bucket="box", Key=f"{number}", Body=body)
            except botocore.exceptions.ClientError as error:
                refused = error.response
                break
            stored[f"{number}"] = body
        assert refused is not None, "the disk never filled"
        assert refused["ResponseMetadata"]["HTTPStatusCode"] == 503, refused
        assert refused["Error"]["Message"], "the message says why"
        assert server.is_alive() and len(stored) >= 10

        for key, body in stored.items():
            assert body_of(s3, "box", key) == body, "reads go on"
        victims = list(stored)[: len(stored) * 3 // 4]
        for key in victims:
            s3.delete_object(Bucket="box", Key=key)
            del stored[key]

        def is_writable():
            try:
                s3.put_object(Bucket="box", Key="again", Body=pattern(4 * MIB, seed=9999))
                return True
            except botocore.exceptions.ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 503
                return False

        wait_until("room again after deletes", is_writable, 60)
        stored["again"] = pattern(4 * MIB, seed=9999)
        server.kill()
        server.start()
        s3 = client_of(server)
        for key, body in stored.items():
            assert body_of(s3, "box", key) == body, "nothing is lost"
        server.stop()


def places_of(server, data):
    """(file, offset) wherever these bytes stand below the data directory."""
    for path in pathlib.Path(server.data).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            at = content.find(data)
            if at >= 0:
                yield path, at


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))
        os.fsync(file.fileno())


def read_outcome(s3, key, **more):
    """The body, or none if the read failed in any honest way."""
    try:
        return s3.get_object(Bucket="box", Key=key, **more)["Body"].read()
    except (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError, botocore.exceptions.IncompleteReadError):
        return None
    except botocore.exceptions.ResponseStreamingError:
        return None


@pytest.mark.parametrize("offset", [0, 65_535, 65_536, 199_999])
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_flipped_byte_is_never_given(make_server, offset, restart):
    server = make_server(SMALL_SIZES).start()
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    body, other = pattern(200_000, seed=77), pattern(200_000, seed=78)
    s3.put_object(Bucket="box", Key="hurt", Body=body)
    s3.put_object(Bucket="box", Key="well", Body=other)
    window = body[offset : offset + 64] if offset + 64 <= len(body) else body[-64:]
    places = list(places_of(server, window))
    assert places, "the object's bytes stand nowhere on the disk"
    if restart:
        server.stop()
    for path, at in places:
        flip(path, at if offset + 64 <= len(body) else at + 63)
    if restart:
        server.start()
        s3 = client_of(server)
    assert read_outcome(s3, "hurt") is None
    assert read_outcome(s3, "well") == other
    # A range that does not touch the damage may be served, and then rightly.
    part = read_outcome(s3, "hurt", Range="bytes=131072-131100" if offset < 131_072 else "bytes=0-100")
    assert part in (None, body[131_072:131_101] if offset < 131_072 else body[:101])
    assert server.is_alive()


def damage(path, offset, length):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)


def last_written(path):
    return len(path.read_bytes().rstrip(b"\0"))


def stopped_with_data(make_server):
    server = make_server(SMALL_SIZES).start()
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    for number in range(40):
        s3.put_object(Bucket="box", Key=f"{number}", Body=pattern(1000, seed=number))
    server.kill()
    return server


def refuses_to_start(server, what):
    assert not server.launch_and_see(), f"started on a damaged {what}"
    assert server.process.returncode not in (0, -6, 101), "a refusal, not a panic"
    log = server.log()
    assert "panicked" not in log
    assert any(word in log.lower() for word in ("corrupt", "damaged", "restore", "bad record", "checksum")), log[-2000:]


def test_a_damaged_log_is_refused_at_start(make_server):
    server = stopped_with_data(make_server)
    longest = max((server.data / "om").glob("log.*"), key=last_written)
    damage(longest, last_written(longest) // 2, 16)
    refuses_to_start(server, "log")


def test_a_damaged_state_is_refused_at_start(make_server):
    server = stopped_with_data(make_server)
    damage(server.data / "om" / "state.redb", 0, 4096)
    refuses_to_start(server, "state")


def test_a_disk_of_another_cluster_is_not_adopted(make_server, tmp_path):
    """The datanode of one directory does not join OM and SCM of another."""
    first, second = make_server().start(), make_server().start()
    client_of(first).create_bucket(Bucket="one")
    first.stop()
    second.stop()
    datanode, other = first.data / "disk1", second.data / "disk1"
    other.rename(tmp_path / "aside")
    datanode.rename(other)
    assert not second.launch_and_see(), "a datanode of another cluster was taken"
    assert "panicked" not in second.log()
