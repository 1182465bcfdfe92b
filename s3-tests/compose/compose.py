#!/usr/bin/env python3
"""Brings the compose file up, syncs a real tree with the aws cli, and kills one container after another meanwhile.

    python3 s3-tests/compose/compose.py --binary target/release/ferrozone

Needs root where no docker engine runs: it starts one. The public base image is used if the engine has or can pull it;
else one of the same name is made with debootstrap. Then:

1. `docker-compose up`, until both gateways are ready.
2. `aws s3 sync TREE s3://compose/tree` through the first gateway; meanwhile each container but that gateway is killed
   in turn and started again, one at a time.
3. The tree is downloaded through the second gateway and compared byte by byte.
4. Every container is killed at once and started again; a few files are read back.

Ends with `compose test: ok`.
"""

import argparse
import filecmp
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BASE_IMAGE = "debian:bookworm-slim"
IMAGE = "ferrozone"
BUCKET = "compose"
GATEWAYS = {"gateway1": ("http://127.0.0.1:9000", "http://127.0.0.1:9001"), "gateway2": ("http://127.0.0.1:9010", "http://127.0.0.1:9011")}
KILLED = ["meta1", "datanode1", "meta2", "datanode2", "meta3", "datanode3", "datanode4", "gateway2"]
UP_DEADLINE_S = 120
ENGINE_DEADLINE_S = 60


def say(text):
    print(text, flush=True)


def run(*words, check=True, **options):
    outcome = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if check and outcome.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {outcome.returncode}\n{outcome.stdout[-2000:]}\n{outcome.stderr[-4000:]}")
    return outcome


def wait_until(what, deadline_s, holds, pause_s=0.5):
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come about within {deadline_s} s")
        time.sleep(pause_s)


class Engine:
    """A docker engine: the one that runs, or one of our own."""

    def __init__(self, directory):
        self.directory = directory
        self.process = None

    def __enter__(self):
        if run("docker", "info", check=False).returncode != 0:
            log = open(self.directory / "dockerd.log", "w")
            self.process = subprocess.Popen(
                [
                    "dockerd",
                    "--data-root", self.directory / "docker",
                    "--exec-root", self.directory / "docker-exec",
                    "--pidfile", self.directory / "dockerd.pid",
                ],
                stdout=log,
                stderr=log,
            )
            wait_until("a docker engine", ENGINE_DEADLINE_S, lambda: run("docker", "info", check=False).returncode == 0)
            say("started a docker engine")
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)

    def base_image(self):
        if run("docker", "image", "inspect", BASE_IMAGE, check=False).returncode == 0:
            return "had already"
        if run("docker", "pull", BASE_IMAGE, check=False).returncode == 0:
            return "pulled"
        with tempfile.TemporaryDirectory(dir=self.directory) as root:
            run("debootstrap", "--variant=minbase", "bookworm", root)
            tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
            run("docker", "import", "-", BASE_IMAGE, stdin=tar.stdout)
            if tar.wait() != 0:
                raise SystemExit("the base image could not be packed")
        return "made with debootstrap"


class Cluster:
    """The compose file's services."""

    def __init__(self, directory):
        self.directory = directory
        self.project = f"ferrozone-test-{os.getpid()}"
        v2 = run("docker", "compose", "version", check=False).returncode == 0
        self.command = ["docker", "compose"] if v2 else ["docker-compose"]
        self.lock = threading.Lock()

    def compose(self, *words, check=True):
        return run(*self.command, "-p", self.project, *words, check=check, cwd=ROOT)

    def container(self, service):
        return self.compose("ps", "-q", service).stdout.strip()

    def is_ready(self, service):
        try:
            with urllib.request.urlopen(f"{GATEWAYS[service][1]}/healthz/ready", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, service, deadline_s=UP_DEADLINE_S):
        wait_until(f"{service} ready", deadline_s, lambda: self.is_ready(service))

    def credentials(self):
        text = self.compose("exec", "-T", "gateway1", "cat", "/cluster/nodes/gateway1/credentials.json").stdout
        return json.loads(text)

    def logs(self):
        return self.compose("logs", "--no-color", "--tail", "60", check=False).stdout


class Aws:
    """The aws cli, without retries of its own: a request that fails fails the test."""

    def __init__(self, directory, endpoint, credentials):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FERROZONE_"))}
        self.directory = directory
        self.environment = {
            **kept,
            "LC_ALL": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": credentials["access_key"],
            "AWS_SECRET_ACCESS_KEY": credentials["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_CONFIG_FILE": str(directory / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(directory / "no-credentials"),
            "AWS_MAX_ATTEMPTS": "1",
        }

    def do(self, *words):
        return run("aws", "s3", *words, env=self.environment, cwd=self.directory)

    def start(self, *words):
        return subprocess.Popen(["aws", "s3", *map(str, words)], env=self.environment, cwd=self.directory, stderr=subprocess.PIPE, text=True)


def gather(tree, files, total):
    """A tree of real sources of this repository, and made files until there are enough."""
    count, held = 0, 0
    listed = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, tree / "sources" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            count, held = count + 1, held + source.stat().st_size
    dice = random.Random(1)
    while count < files or held < total:
        length = dice.choice([0, 10, 5000, 300_000, 9 << 20] if held < total else [0, 10, 5000])
        target = tree / f"made/{count % 13}/file {count}.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(dice.randbytes(length))
        count, held = count + 1, held + length
    return f"{count} files, {held >> 20} MiB"


def compare(tree, got):
    wanted = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    found = {path.relative_to(got) for path in got.rglob("*") if path.is_file()}
    if wanted != found:
        raise SystemExit(f"missing {sorted(wanted - found)[:5]}, extra {sorted(found - wanted)[:5]}")
    for path in wanted:
        if not filecmp.cmp(tree / path, got / path, shallow=False):
            raise SystemExit(f"{path} differs")
    return f"{len(wanted)} files equal"


def kill_in_turn(cluster, is_over, report):
    """Kills one container after another while the sync runs, at least each once."""
    killed, at = [], 0
    while at < len(KILLED) or not is_over():
        service = KILLED[at % len(KILLED)]
        container = cluster.container(service)
        run("docker", "kill", container)
        time.sleep(2)
        run("docker", "start", container)
        killed.append(service)
        at += 1
        # One at a time: the next goes only when this one is back at work.
        time.sleep(8)
    report.extend(killed)


def test(arguments, directory):
    tree = directory / "tree"
    say(f"gather a tree: {gather(tree, arguments.files, arguments.megabytes << 20)}")
    with Engine(directory) as engine:
        say(f"base image: {engine.base_image()}")
        context = directory / "context"
        context.mkdir()
        shutil.copy(arguments.binary, context / "ferrozone")
        run("docker", "build", "--target", "packaged", "-t", IMAGE, "-f", ROOT / "Dockerfile", context)
        cluster = Cluster(directory)
        try:
            cluster.compose("up", "-d", "--no-build")
            for service in GATEWAYS:
                cluster.wait_ready(service)
            say("up")
            credentials = cluster.credentials()
            first, second = (Aws(directory, s3, credentials) for s3, _ in GATEWAYS.values())
            first.do("mb", f"s3://{BUCKET}")
            sync = first.start("sync", tree, f"s3://{BUCKET}/tree", "--only-show-errors")
            killed = []
            killer = threading.Thread(target=kill_in_turn, args=(cluster, lambda: sync.poll() is not None, killed))
            killer.start()
            _, errors = sync.communicate()
            if sync.returncode != 0:
                # What a kill broke is what a user would run again for; it must then be whole.
                say(f"sync met {len(errors.splitlines())} errors, first: {errors.strip().splitlines()[:1]}")
            killer.join()
            if sync.returncode != 0:
                raise SystemExit("the sync failed while one container at a time was away")
            say(f"synced; killed meanwhile and after: {' '.join(killed)}")
            cluster.wait_ready("gateway2")
            second.do("sync", f"s3://{BUCKET}/tree", directory / "got", "--only-show-errors")
            say(f"downloaded through the other gateway: {compare(tree, directory / 'got')}")
            everything = [cluster.container(service) for service in [*KILLED, "gateway1"]]
            run("docker", "kill", *everything)
            run("docker", "start", *everything)
            for service in GATEWAYS:
                cluster.wait_ready(service)
            shutil.rmtree(directory / "got")
            first.do("sync", f"s3://{BUCKET}/tree", directory / "got", "--only-show-errors")
            say(f"after all were killed at once: {compare(tree, directory / 'got')}")
        except BaseException:
            say(cluster.logs())
            raise
        finally:
            cluster.compose("down", "-v", "--timeout", "3", check=False)
    say("compose test: ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--megabytes", type=int, default=150)
    parser.add_argument("--dir", type=pathlib.Path, help="a directory with room; a temporary one when absent")
    arguments = parser.parse_args()
    directory = (arguments.dir or pathlib.Path(tempfile.mkdtemp(prefix="compose-test-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        test(arguments, directory)
    finally:
        if not arguments.dir:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
