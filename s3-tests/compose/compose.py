#!/usr/bin/env python3
"""Brings the compose file up, syncs a real tree with the aws cli, and kills one container after another meanwhile.

    python3 s3-tests/compose/compose.py --binary target/release/ferrozone

Before that the Dockerfile and the compose file are read: what they copy must be in a checkout, and ports are published on
loopback unless somebody says otherwise. (The image of the test holds a binary that was built outside: compiling takes longer
than the test may.)

Needs root where no docker engine runs: it starts one, and ends it. The public base image is used if the engine has or can
pull it; else one of the same name is made with debootstrap. Then:

1. `docker-compose up`, until both gateways are ready.
2. `aws s3 sync TREE s3://compose/N` through the first gateway, again and again under new prefixes; meanwhile each container
   but that gateway is killed and started again, one at a time. The next goes when the cluster itself says that it is whole.
   Then the same through the second gateway, while the first is killed: only a client of the gateway that dies may notice.
3. Every prefix is downloaded through the other gateway than it was written through, and compared byte by byte.
4. Every container is killed at once and started again; the first prefix is read back.

Ends with `compose test: ok`, or fails; also when it takes longer than `--deadline`.
"""

import argparse
import filecmp
import json
import os
import pathlib
import random
import shutil
import signal
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
# Who is killed while the tree is synced through a gateway.
KILLED = {
    "gateway1": ["meta1", "datanode1", "meta2", "datanode2", "meta3", "datanode3", "datanode4", "gateway2"],
    "gateway2": ["gateway1"],
}
OTHER = {"gateway1": "gateway2", "gateway2": "gateway1"}
BASE_STAGE_IMAGE = "ferrozone-base"
UP_DEADLINE_S = 120
ENGINE_DEADLINE_S = 60
ENGINE_END_S = 60
# A registry that cannot be reached is not waited for: the image can be made.
PULL_DEADLINE_S = 60
WHOLE_DEADLINE_S = 60
# How long a killed container stays away: longer than a request may take, shorter than a datanode is given up after.
AWAY_S = 2
# Entries that a replica under load may be behind its leader and still count as level.
LAG_MAX = 2000


def say(text):
    print(text, flush=True)


def run(*words, check=True, **options):
    """Runs a program; without `check` a failure is the caller's to see, also that there is no such program."""
    try:
        outcome = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        if check:
            raise SystemExit(f"{' '.join(map(str, words))}: {error}")
        return subprocess.CompletedProcess(words, 127, "", str(error))
    if check and outcome.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {outcome.returncode}\n{outcome.stdout[-2000:]}\n{outcome.stderr[-4000:]}")
    return outcome


def wait_until(what, deadline_s, lacks, pause_s=0.25):
    """Waits until `lacks` names nothing any more."""
    end = time.monotonic() + deadline_s
    while missing := lacks():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come about within {deadline_s} s: {missing}")
        time.sleep(pause_s)


def need_programs():
    """What is missing is said, not left out: a test that passes without having run is worse than none."""
    for program in ("docker", "aws", "tar"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is needed: apt-get install docker.io docker-compose debootstrap, or another way")
    if run("docker", "info", check=False).returncode != 0:
        if shutil.which("dockerd") is None:
            raise SystemExit("no docker engine answers, and there is no dockerd to start: apt-get install docker.io")
        if os.geteuid() != 0:
            raise SystemExit("no docker engine answers, and only root can start one: start dockerd, or run this as root")


class Engine:
    """A docker engine: the one that runs, or one of our own."""

    def __init__(self, directory):
        self.directory = directory
        self.process = None

    def __enter__(self):
        if self.lacks():
            log = self.directory / "dockerd.log"
            with open(log, "w") as out:
                self.process = subprocess.Popen(
                    [
                        "dockerd",
                        "--data-root", self.directory / "docker",
                        "--exec-root", self.directory / "docker-exec",
                        "--pidfile", self.directory / "dockerd.pid",
                    ],
                    stdout=out,
                    stderr=out,
                )
            try:
                wait_until("a docker engine", ENGINE_DEADLINE_S, self.lacks)
            except BaseException:
                say(log.read_text()[-3000:])
                self.__exit__()
                raise
            say("started a docker engine")
        return self

    def lacks(self):
        if self.process is not None and self.process.poll() is not None:
            raise SystemExit(f"dockerd ended with {self.process.returncode}; is this machine allowed to run containers?")
        info = run("docker", "info", check=False)
        return info.returncode != 0 and info.stderr

    def __exit__(self, *_):
        """Ends the engine that was started here, and no other."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=ENGINE_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        say("ended the docker engine")

    def base_image(self):
        if run("docker", "image", "inspect", BASE_IMAGE, check=False).returncode == 0:
            return "had already"
        if run("docker", "pull", BASE_IMAGE, check=False, timeout=PULL_DEADLINE_S).returncode == 0:
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
        if not v2 and shutil.which("docker-compose") is None:
            raise SystemExit("docker compose is needed: apt-get install docker-compose")

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
        wait_until(f"{service} ready", deadline_s, lambda: not self.is_ready(service) and "it is not")

    def wait_whole(self):
        """Waits until every node is back in its place, as the cluster itself tells operators."""
        gateway = self.container("gateway1")

        def lacks():
            words = ["admin", "--config", "/cluster/nodes/gateway1/node.toml", "status", "--json"]
            told = run("docker", "exec", gateway, "ferrozone", *words, check=False)
            if told.returncode != 0:
                return told.stderr.strip() or "no answer"
            for service in GATEWAYS:
                if not self.is_ready(service):
                    return f"{service} is not ready"
            return lacks_of(json.loads(told.stdout))

        wait_until("a whole cluster", WHOLE_DEADLINE_S, lacks)

    def credentials(self):
        text = self.compose("exec", "-T", "gateway1", "cat", "/cluster/nodes/gateway1/credentials.json").stdout
        return json.loads(text)

    def logs(self):
        return self.compose("logs", "--no-color", "--tail", "60", check=False).stdout


def lacks_of(status):
    """What keeps a cluster from being whole, by its own account; none if it is."""
    for name in ("om_group", "scm_group"):
        group = status[name]
        if not group or not group["leader"]:
            return f"{name} has no leader"
        for info in group["members"]:
            is_leader = info["member"]["raft_id"] == group["leader"]
            is_level = info["is_active"] and (info["match_index"] or 0) + LAG_MAX >= group["commit_index"]
            if not (is_leader or is_level):
                return f"{name}: {info['member']['node']} is away or behind"
    silent = [one["node"] for one in status["datanodes"] if one["liveness"] != "live"]
    return silent and f"{silent} are not live"


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

    def do(self, *words, check=True):
        return run("aws", "s3", *words, check=check, env=self.environment, cwd=self.directory)


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


class Syncs:
    """Syncs the tree under one new prefix after another until it is told that it is enough."""

    def __init__(self, aws, tree, name):
        self.aws = aws
        self.tree = tree
        self.name = name
        self.prefixes = []
        self.failure = None
        self.is_enough = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self):
        while not self.is_enough.is_set():
            prefix = f"{self.name}/{len(self.prefixes)}"
            outcome = self.aws.do("sync", self.tree, f"s3://{BUCKET}/{prefix}", "--only-show-errors", check=False)
            if outcome.returncode != 0:
                errors = outcome.stderr.strip().splitlines()
                self.failure = f"the sync of prefix {prefix} met {len(errors)} errors, first: {errors[:1]}"
                return
            self.prefixes.append(prefix)

    def check(self):
        if self.failure:
            raise SystemExit(f"while one container at a time was away, {self.failure}")

    def finish(self):
        """Lets the running sync come to its end."""
        self.is_enough.set()
        self.thread.join()
        self.check()
        return self.prefixes


def kill_in_turn(cluster, services, syncs):
    """Kills one container after another while the tree is synced."""
    for service in services:
        container = cluster.container(service)
        killed = time.monotonic()
        run("docker", "kill", container)
        # The length of the fault, not a wait for anything.
        time.sleep(AWAY_S)
        run("docker", "start", container)
        cluster.wait_whole()
        syncs.check()
        say(f"killed {service}: whole again after {time.monotonic() - killed:.1f} s, {len(syncs.prefixes)} syncs done")


def check_files():
    """The image must build from a checkout by any builder, and nothing be open to the network unless told."""
    for number, line in enumerate((ROOT / "Dockerfile").read_text().splitlines(), 1):
        words = line.split()
        if words[:1] not in (["COPY"], ["ADD"]) or any(word.startswith("--from=") for word in words):
            continue
        for source in [word for word in words[1:-1] if not word.startswith("--")]:
            if not run("git", "ls-files", "--", source, cwd=ROOT).stdout:
                raise SystemExit(f"Dockerfile:{number}: a checkout has no {source}, and the older builder builds every stage")
    for number, line in enumerate((ROOT / "docker-compose.yml").read_text().splitlines(), 1):
        if not line.strip().startswith("ports:"):
            continue
        for port in line.split('"')[1::2]:
            if not port.startswith("${FERROZONE_BIND:-127.0.0.1}:"):
                raise SystemExit(f"docker-compose.yml:{number}: {port} is open to the network without being told")


def build_image(arguments, directory):
    context = directory / "context"
    context.mkdir(exist_ok=True)
    # What a debugger wants is most of a binary, and nothing here wants it.
    if run("strip", "-g", "-o", context / "ferrozone", arguments.binary, check=False).returncode != 0:
        shutil.copy(arguments.binary, context / "ferrozone")
    (context / "Dockerfile").write_text(f"FROM {BASE_STAGE_IMAGE}\nCOPY ferrozone /usr/local/bin/ferrozone\n")
    run("docker", "build", "--target", "base", "-t", BASE_STAGE_IMAGE, "-f", ROOT / "Dockerfile", context)
    run("docker", "build", "-t", IMAGE, context)
    run("docker", "run", "--rm", IMAGE, "--version")


def test(arguments, directory):
    check_files()
    need_programs()
    tree = directory / "tree"
    say(f"gather a tree: {gather(tree, arguments.files, arguments.megabytes << 20)}")
    with Engine(directory) as engine:
        say(f"base image: {engine.base_image()}")
        build_image(arguments, directory)
        cluster = Cluster(directory)
        try:
            cluster.compose("up", "-d", "--no-build")
            for service in GATEWAYS:
                cluster.wait_ready(service)
            cluster.wait_whole()
            say("up")
            credentials = cluster.credentials()
            aws = {service: Aws(directory, s3, credentials) for service, (s3, _) in GATEWAYS.items()}
            aws["gateway1"].do("mb", f"s3://{BUCKET}")
            for through, services in KILLED.items():
                syncs = Syncs(aws[through], tree, through)
                kill_in_turn(cluster, services, syncs)
                prefixes = syncs.finish()
                say(f"{len(prefixes)} syncs through {through} without an error while {len(services)} containers were killed in turn")
                for prefix in prefixes:
                    aws[OTHER[through]].do("sync", f"s3://{BUCKET}/{prefix}", directory / "got", "--only-show-errors")
                    told = compare(tree, directory / "got")
                    shutil.rmtree(directory / "got")
                say(f"downloaded through {OTHER[through]}: {told} in each of {len(prefixes)} prefixes")
            everything = [cluster.container(service) for services in KILLED.values() for service in services]
            run("docker", "kill", *everything)
            run("docker", "start", *everything)
            for service in GATEWAYS:
                cluster.wait_ready(service)
            cluster.wait_whole()
            aws["gateway1"].do("sync", f"s3://{BUCKET}/{prefixes[0]}", directory / "got", "--only-show-errors")
            say(f"after all were killed at once: {compare(tree, directory / 'got')}")
        except BaseException:
            say(cluster.logs())
            raise
        finally:
            cluster.compose("down", "-v", "--timeout", "3", check=False)
    say("compose test: ok")


def stop_at(deadline_s):
    """Ends the test, and what it started, when it takes too long."""

    def stop(*_):
        raise SystemExit(f"not done within {deadline_s} s")

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    signal.alarm(deadline_s)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--megabytes", type=int, default=150)
    parser.add_argument("--dir", type=pathlib.Path, help="a directory with room; a temporary one when absent")
    parser.add_argument("--deadline", type=int, default=900, metavar="SECONDS")
    arguments = parser.parse_args()
    stop_at(arguments.deadline)
    directory = (arguments.dir or pathlib.Path(tempfile.mkdtemp(prefix="compose-test-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        test(arguments, directory)
    finally:
        if not arguments.dir:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
