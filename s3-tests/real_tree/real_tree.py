#!/usr/bin/env python3
"""Syncs a real tree with the aws cli, kills the server during a second sync, and compares every byte.

    FERROZONE_BIN=target/release/ferrozone python3 s3-tests/real_tree/real_tree.py \\
        --files 20000 --bytes 500MiB --big 2GiB

A tree of real files is put together (hard links or copies) from `--from`, by default cargo's unpacked sources, with
one large file beside it. Then:

1. `aws s3 sync TREE s3://real/first`, and the large file with `aws s3 cp`.
2. `aws s3 sync TREE s3://real/second`; when half of it is reported uploaded, the server gets SIGKILL.
3. The server starts again. Every object whose upload the client reported must be there, whole.
4. The second sync runs again to its end. Both prefixes and the large file are downloaded and compared byte by byte.

Prints a line a step with its time, and ends with `real tree: ok`.
"""

import argparse
import concurrent.futures
import filecmp
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import server as servers  # noqa: E402
from harness.clients import client_of  # noqa: E402

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
BUCKET = "real"


def size(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", text).groups()
    return int(number) * UNITS[unit]


class Run:
    """One run: its directories, its server, and what it says."""

    def __init__(self, directory, say=print):
        self.directory = pathlib.Path(directory)
        self.tree = self.directory / "tree"
        self.server = servers.make(self.directory / "server")
        self.say = say

    def step(self, what, work):
        started = time.monotonic()
        outcome = work()
        self.say(f"{what}: {outcome if outcome is not None else 'done'} ({time.monotonic() - started:.1f} s)")
        return outcome

    def aws(self, *words):
        """The command, ready to start."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FERROZONE_"))}
        environment = {
            **kept,
            "LC_ALL": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": servers.ROOT_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": servers.ROOT_SECRET_KEY,
            "AWS_DEFAULT_REGION": servers.REGION,
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_CONFIG_FILE": str(self.directory / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.directory / "no-credentials"),
            "AWS_MAX_ATTEMPTS": "1",
        }
        return {"args": ["aws", "s3", *words], "env": environment, "cwd": self.directory, "text": True}

    def do(self, *words):
        outcome = subprocess.run(**self.aws(*words), capture_output=True)
        assert outcome.returncode == 0, f"aws {words}: {outcome.returncode}\n{outcome.stderr[-3000:]}"
        return outcome.stdout

    def gather(self, source, files, total):
        """Fills the tree: so many files and at least so many bytes, real ones first."""
        count, held = 0, 0
        for path in sorted(pathlib.Path(source).expanduser().rglob("*")) if source else ():
            if count >= files and held >= total:
                break
            if path.is_file() and not path.is_symlink():
                target = self.tree / path.relative_to(pathlib.Path(source).expanduser())
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                count, held = count + 1, held + path.stat().st_size
        real = count
        dice = random.Random(1)
        while count < files or held < total:
            length = dice.choice([0, 10, 1000, 5000, 40_000, 300_000])
            if count >= files:
                length = max(length, 4 << 20)
            target = self.tree / f"made/{count % 97}/file {count}.bin"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(dice.randbytes(length))
            count, held = count + 1, held + length
        return f"{count} files ({real} of {source}), {held / (1 << 20):.0f} MiB"

    def make_big(self, length):
        dice = random.Random(2)
        with open(self.directory / "big", "wb") as file:
            while length > 0:
                piece = min(length, 8 << 20)
                file.write(dice.randbytes(piece))
                length -= piece

    def sync_and_kill(self, files):
        """The keys whose upload was reported before the server was killed."""
        reported = []
        sync = subprocess.Popen(
            **self.aws("sync", str(self.tree), f"s3://{BUCKET}/second", "--no-progress"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            errors = pool.submit(sync.stderr.read)
            for line in sync.stdout:
                if match := re.match(rf"upload: .* to s3://{BUCKET}/(second/.*)$", line):
                    reported.append(match[1])
                if len(reported) == files // 2 and self.server.is_alive():
                    self.server.kill()
            errors.result()
        assert not self.server.is_alive(), "the sync ended before half of it was reported"
        assert sync.wait() != 0, "a sync to a dead server must fail"
        return reported

    def check_reported(self, reported):
        s3 = client_of(self.server)

        def check(key):
            body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            assert body == (self.tree / key.removeprefix("second/")).read_bytes(), f"{key} differs"

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(check, reported))
        return f"all {len(reported)} are there, whole"

    def compare(self, prefix):
        target = self.directory / f"got-{prefix}"
        self.do("sync", f"s3://{BUCKET}/{prefix}", str(target), "--only-show-errors")
        wanted = {path.relative_to(self.tree) for path in self.tree.rglob("*") if path.is_file()}
        got = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
        assert wanted == got, f"missing {sorted(wanted - got)[:5]}, extra {sorted(got - wanted)[:5]}"
        for path in wanted:
            assert filecmp.cmp(self.tree / path, target / path, shallow=False), f"{path} differs"
        shutil.rmtree(target)
        return f"{len(wanted)} files equal"

    def compare_big(self):
        self.do("cp", f"s3://{BUCKET}/big", "got-big", "--only-show-errors")
        assert filecmp.cmp(self.directory / "big", self.directory / "got-big", shallow=False), "the big file differs"
        (self.directory / "got-big").unlink()
        return "equal"

    def run(self, source, files, total, big):
        try:
            self.step("gather a tree", lambda: self.gather(source, files, total))
            self.step("make a big file", lambda: self.make_big(big))
            self.server.start()
            client_of(self.server).create_bucket(Bucket=BUCKET)
            self.step("sync", lambda: self.do("sync", str(self.tree), f"s3://{BUCKET}/first", "--only-show-errors") or None)
            self.step("upload the big file", lambda: self.do("cp", "big", f"s3://{BUCKET}/big", "--only-show-errors") or None)
            reported = self.sync_and_kill(files)
            self.say(f"killed with {len(reported)} uploads reported")
            self.step("restart", lambda: self.server.start() and None)
            self.step("check what was reported", lambda: self.check_reported(reported))
            self.step(
                "second sync",
                lambda: self.do("sync", str(self.tree), f"s3://{BUCKET}/second", "--only-show-errors") or None,
            )
            for prefix in ("first", "second"):
                self.step(f"download and compare {prefix}", lambda: self.compare(prefix))
            self.step("download and compare the big file", self.compare_big)
            self.server.stop()
            self.say("real tree: ok")
        finally:
            self.server.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=size, default=size("500MiB"))
    parser.add_argument("--big", type=size, default=size("2GiB"))
    parser.add_argument("--from", dest="source", default="~/.cargo/registry/src")
    parser.add_argument("--dir", help="a directory with room for four times the bytes; a temporary one when absent")
    arguments = parser.parse_args()
    directory = pathlib.Path(arguments.dir or tempfile.mkdtemp(prefix="real-tree-"))
    directory.mkdir(parents=True, exist_ok=True)
    Run(directory).run(arguments.source, arguments.files, arguments.bytes, arguments.big)
    if not arguments.dir:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
