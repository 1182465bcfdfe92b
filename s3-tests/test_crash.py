"""The process dies at each named durable step; nothing acknowledged is lost, nothing half done is seen.

A model is kept beside the server: what each key may hold. An acknowledged write leaves one possibility; a write whose
answer never came leaves two, the old and the new. After the restart each key must hold one of its possibilities whole,
and LIST must agree with GET.
"""

import itertools
import pathlib
import re
import time

import pytest

from harness.clients import client_of, pattern
from harness.server import SMALL_SIZES, merged

SOURCE = pathlib.Path(__file__).parent.parent / "wire/src/failpoint.rs"
# A single node never comes to these: it has nobody to copy from, and no peer to send it a snapshot.
IN_CLUSTERS_ONLY = ("datanode_copy_", "consensus_snapshot_")
NAMES = [
    name
    for name in re.findall(r'^    "([a-z_]+)",$', SOURCE.read_text(), re.MULTILINE)
    if not name.startswith(IN_CLUSTERS_ONLY)
]

# Steps that come often are also tried later, when there is more to lose.
LATER = [
    "datanode_block_written:9",
    "datanode_block_synced:25",
    "gateway_before_commit_key:10",
    "gateway_after_commit_key:12",
    "consensus_log_appended:40",
    "consensus_log_synced:37",
    "consensus_batch_applied:30",
]

EXPECTED_AFTER_A_CRASH = [
    # What was being written at the death is no whole block; it is kept and reported, never guessed about.
    r"container holds bytes that are no whole block: kept",
]

PART = 5 << 20
# Far more than any step needs; a checkpoint comes every few seconds at the latest.
WORK_DEADLINE_S = 60
ABSENT = None


class Died(Exception):
    """The server broke an exchange off."""


class Model:
    """What each key may hold: a set of bodies, or ABSENT."""

    def __init__(self):
        self.possible = {}

    def before(self, key):
        return self.possible.get(key, {ABSENT})

    def change(self, key, value, call):
        """Runs a write; it happened if it was answered, and may have happened if it was not."""
        self.possible[key] = self.before(key) | {value}
        try:
            call()
        except Exception as error:
            raise Died from error
        self.possible[key] = {value}

    def check(self, s3, bucket):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        listed = {entry["Key"]: entry for page in pages for entry in page.get("Contents", [])}
        for key, possible in self.possible.items():
            if key not in listed:
                assert ABSENT in possible, f"{key} was acknowledged and is gone"
                continue
            body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            assert body in possible, f"{key} holds {len(body)} bytes that nobody wrote"
            assert listed[key]["Size"] == len(body)
        assert set(listed) <= set(self.possible)


def work(s3, bucket, model):
    """Puts, overwrites, multipart uploads, copies and deletes, until the server dies."""
    sizes = [0, 100, 4096, 70_000, 1_200_000]
    end = time.monotonic() + WORK_DEADLINE_S
    for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        key = f"key-{number % 12}"
        body = pattern(sizes[number % len(sizes)] + number, seed=number)
        model.change(key, body, lambda: s3.put_object(Bucket=bucket, Key=key, Body=body))
        if number % 3 == 2:
            model.change(key, ABSENT, lambda: s3.delete_object(Bucket=bucket, Key=key))
        if number % 8 == 5:
            multipart(s3, bucket, model, f"multi-{number % 3}", number)
        if number % 5 == 4:
            source = f"key-{(number - 1) % 12}"
            held = model.before(source)
            if len(held) == 1 and ABSENT not in held:
                copy = {"Bucket": bucket, "Key": source}
                (value,) = held
                model.change("copy", value, lambda: s3.copy_object(Bucket=bucket, Key="copy", CopySource=copy))


def multipart(s3, bucket, model, key, seed):
    bodies = [pattern(PART, seed), pattern(1000, seed + 1)]
    where = {"Bucket": bucket, "Key": key}
    try:
        where["UploadId"] = s3.create_multipart_upload(**where)["UploadId"]
        etags = [s3.upload_part(**where, PartNumber=n + 1, Body=body)["ETag"] for n, body in enumerate(bodies)]
    except Exception as error:
        raise Died from error
    parts = {"Parts": [{"PartNumber": n + 1, "ETag": etag} for n, etag in enumerate(etags)]}
    model.change(key, b"".join(bodies), lambda: s3.complete_multipart_upload(**where, MultipartUpload=parts))


@pytest.mark.parametrize("step", [*NAMES, *LATER])
def test_a_death_at_this_step_loses_nothing(make_server, step):
    sizes = merged(SMALL_SIZES, {"s3": {"body_memory": "32MiB"}})
    server = make_server(sizes)
    model = Model()
    if server.launch_and_see({"FERROZONE_FAILPOINT": step}):
        s3 = client_of(server)
        with pytest.raises(Died):
            s3_bucket(s3)
            work(s3, "crash", model)
        server.process.wait(30)
    assert server.process.returncode == -6, f"{step}: the process must abort, it ended with {server.process.returncode}"

    server.start()
    s3 = client_of(server)
    if "crash" not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]:
        assert not model.possible, "an acknowledged bucket is gone"
        s3.create_bucket(Bucket="crash")
    model.check(s3, "crash")
    # Life goes on, and holds over one more restart.
    for number in range(3):
        body = pattern(50_000, seed=1000 + number)
        model.change(f"after-{number}", body, lambda: s3.put_object(Bucket="crash", Key=f"after-{number}", Body=body))
    server.kill()
    server.start()
    model.check(client_of(server), "crash")
    server.stop()
    server.check_log(EXPECTED_AFTER_A_CRASH)


def s3_bucket(s3):
    try:
        s3.create_bucket(Bucket="crash")
    except Exception as error:
        raise Died from error
