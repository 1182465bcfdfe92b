"""A cluster of processes on loopback, with the ways of a single server: three meta nodes, three datanodes, two gateways.

    OUT = ferrozone cluster init --hosts ... --datanodes ... --gateways ...      a directory a node
    every process:  ferrozone server DIRECTORY/data/NODE --config OUT/NODE/node.toml

`start` starts all of them, `kill` kills all of them at once, `stop` stops gateways first and meta nodes last. Tests reach
one gateway, workers beside one another different ones. Everything else (what a key is, what an error says) is the
tests' own business: they are the same as for one process.
"""

import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

from harness import server as servers
from harness.server import Server, binary, default_config, is_plain, merged, to_toml
from harness.waiting import wait_until

METAS, DATANODES, GATEWAYS = 3, 3, 2
START_DEADLINE_S = 60

# Tests that ask for something only the one process of a single server has: a part of their name, and why.
ONE_PROCESS_ONLY = [
    ("test_crash.py", "a failpoint aborts the process that comes to it; crashes in clusters are the simulator's"),
    ("test_disk.py", "fills or damages the one disk there is; a cluster serves on, as `cargo xtask chaos` shows"),
    ("test_https.py", "gives the one server certificates of its own and changes them"),
    ("::test_credentials_are_generated_told_once_and_kept", "`cluster init` draws a cluster's credentials"),
    ("::test_shutdown_finishes_what_runs", "sends SIGTERM to the process that serves and looks at its exit code"),
    ("::test_a_log_that_cannot_be_written_stops_nothing", "takes the log away from the one server there is"),
    ("::test_an_unknown_key_names_the_nearest", "starts `ferrozone server` without a cluster's files"),
    ("::test_a_wrong_value_is_refused", "starts `ferrozone server` without a cluster's files"),
    ("::test_two_servers_on_one_directory_are_refused", "starts a second server on the data of the first"),
    ("::test_a_directory_that_cannot_be_made_is_refused", "starts `ferrozone server` without a cluster's files"),
]

# Beside what a single server may say: nodes that start together, or return together, wait for one another.
EXPECTED_WARNINGS = [
    (r"waiting for the ozone manager", "a node that starts before there is a leader says so"),
    (r"peers::lane: a member takes no messages", "meta nodes start and stop one after another"),
    (r"raft: stepped down to follower since quorum is not active", "the last meta node to stop stands alone"),
]

# Below the range from which outgoing connections take theirs: a node must find its port free when it returns.
PORTS = range(20_000, 32_000)


def reason_for_one_process(test):
    """Why a test is kept for the single server; none if it is not."""
    return next((reason for part, reason in ONE_PROCESS_ONLY if part in test), None)


def worker_number():
    return int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)


def free_ports(count):
    """The first of three ports in a row, so often; workers beside one another look in different places."""
    first = PORTS.start + (os.getpid() * 40 + worker_number() * 3000) % (len(PORTS) // 2)
    held, found = [], []
    for port in range(first, PORTS.stop, 4):
        try:
            for offset in range(3):
                held.append(socket.socket())
                held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held[-1].bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            break
    for listener in held:
        listener.close()
    assert len(found) == count, "too few free ports"
    return found


class Node:
    """One process of the cluster."""

    def __init__(self, role, first_port):
        self.role = role
        self.s3, self.admin, self.internal = (f"127.0.0.1:{first_port + offset}" for offset in range(3))
        self.name = f"127.0.0.1-{first_port + 2}"
        self.process = None

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.admin}/healthz/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class Cluster(Server):
    """Starts, stops, kills and starts again on the same directories."""

    def __init__(self, directory, config=None, environment=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = self.directory / "data"
        self.log_path = self.directory / "server.log"
        self.out_path = self.directory / "server.out"
        self.environment = {
            "FERROZONE_ROOT_USER": servers.ROOT_ACCESS_KEY,
            "FERROZONE_ROOT_PASSWORD": servers.ROOT_SECRET_KEY,
            **(environment or {}),
        }
        roles = ["meta"] * METAS + ["datanode"] * DATANODES + ["gateway"] * GATEWAYS
        self.nodes = [Node(role, port) for role, port in zip(roles, free_ports(len(roles)))]
        self.init()
        self.configure(merged(default_config(), config or {}))
        gateways = self.of_role("gateway")
        gateway = gateways[worker_number() % len(gateways)]
        self.endpoint, self.admin = f"http://{gateway.s3}", f"http://{gateway.admin}"

    def of_role(self, role):
        return [node for node in self.nodes if node.role == role]

    def init(self):
        def listed(role):
            return ",".join(node.internal for node in self.of_role(role))

        words = ["--hosts", listed("meta"), "--datanodes", listed("datanode"), "--gateways", listed("gateway")]
        made = subprocess.run(
            [binary(), "cluster", "init", *words, "--out", str(self.directory / "cluster")],
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, f"cluster init: {made.stderr}"

    def config_file(self, node):
        return self.directory / "cluster" / node.name / "node.toml"

    def configure(self, config):
        """Keys of sections go over the files as environment variables; the rest is written into them."""
        for section, keys in config.items():
            if isinstance(keys, dict):
                for key, value in keys.items():
                    self.environment[f"FERROZONE_{section}__{key}".upper()] = to_toml({"v": value})[4:].strip()
        above = to_toml({name: value for name, value in config.items() if is_plain(value)})
        below = to_toml({name: value for name, value in config.items() if isinstance(value, list) and not is_plain(value)})
        for node in self.nodes:
            file = self.config_file(node)
            # Users and buckets are made by who serves S3.
            end = below if node.role == "gateway" else ""
            file.write_text(above + file.read_text() + end)

    def launch(self, environment=None):
        """Starts every process and does not wait."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FERROZONE_", "MINIO_", "AWS_"))}
        for node in self.nodes:
            data = self.data / node.name
            data.mkdir(parents=True, exist_ok=True)
            with open(self.log_path, "ab") as log, open(self.out_path, "ab") as out:
                node.process = subprocess.Popen(
                    [binary(), "server", str(data), "--config", str(self.config_file(node))],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    env={**inherited, **self.environment, **(environment or {})},
                )
        return self

    def start(self, environment=None):
        """Starts every process and waits until all are ready."""
        self.launch(environment)
        wait_until("the cluster's readiness", self._ready_or_dead, START_DEADLINE_S)
        ended = [node.name for node in self.nodes if not node.is_alive()]
        assert not ended, f"{ended} ended at their start:\n{self.log()[-3000:]}"
        return self

    def launch_and_see(self, environment=None):
        self.launch(environment)
        wait_until("the cluster to be ready or to end", self._ready_or_dead, START_DEADLINE_S)
        return self.is_alive()

    def _ready_or_dead(self):
        return not self.is_alive() or all(node.is_ready() for node in self.nodes)

    def kill(self):
        """As a power cut for all machines at once."""
        for node in self.nodes:
            node.process.send_signal(signal.SIGKILL)
        for node in self.nodes:
            node.process.wait(30)

    def stop(self):
        """As an operator does, callers before the called; each process must end by itself, cleanly."""
        for _, nodes in itertools.groupby(reversed(self.nodes), key=lambda node: node.role):
            nodes = list(nodes)
            for node in nodes:
                node.process.send_signal(signal.SIGTERM)
            for node in nodes:
                code = node.process.wait(40)
                assert code == 0, f"{node.name} ({node.role}) ended with {code} after SIGTERM:\n{self.log()[-3000:]}"

    def end(self):
        """Leaves no process behind, whatever a test did."""
        for node in self.nodes:
            if node.is_alive():
                node.process.kill()
                node.process.wait(30)

    def is_alive(self):
        """Whether every process runs."""
        return all(node.is_alive() for node in self.nodes)

    def expected_warnings(self):
        return [*super().expected_warnings(), *EXPECTED_WARNINGS]
