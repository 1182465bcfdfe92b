"""One server process on free ports with a fresh directory, its log, and what its log must not hold.

With `FERROZONE_TRANSPORT=cluster` the same tests meet a cluster of processes instead: see `harness.cluster`.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.error
import urllib.request

from harness.waiting import wait_until

ROOT_ACCESS_KEY = "ROOTACCESSKEY0000001"
ROOT_SECRET_KEY = "rootsecretkey000000000000000000000000001"
ALT_ACCESS_KEY = "ALTACCESSKEY00000002"
ALT_SECRET_KEY = "altsecretkey0000000000000000000000000002"
ALT_ID = "alt-user-id"
REGION = "us-east-1"
DOMAIN = "s3.test"

# Sizes that let small tests come to every step: several containers, segments and growths in a few MiB.
SMALL_SIZES = {
    "om": {
        "log_segment": "64KiB",
        "delete_grace": "0s",
        "deletion_interval": "100ms",
    },
    "scm": {"container_size": "16MiB"},
    "datanode": {"growth_step": "1MiB", "reserve": "0", "heartbeat_interval": "100ms"},
}

# What may stand in a log although it is a WARN or ERROR: a pattern and why it is expected.
EXPECTED_WARNINGS = [
    (r"container_size is below 2GiB", "tests take small containers on purpose"),
]


def is_cluster():
    """Whether tests run against a cluster of processes."""
    return os.environ.get("FERROZONE_TRANSPORT") == "cluster"


def make(directory, config=None, environment=None):
    """What tests call the server: one process, or a cluster with the same ways to start, stop and kill it."""
    if is_cluster():
        from harness.cluster import Cluster

        return Cluster(directory, config, environment)
    return Server(directory, config, environment)


def binary():
    path = os.environ.get("FERROZONE_BIN")
    assert path, "FERROZONE_BIN names no server binary: run `cargo xtask test`, or set it"
    return path


def to_toml(config):
    """Tables of plain values and lists of tables: all that the configuration needs."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items() if is_plain(value)]
    for name, value in config.items():
        if isinstance(value, dict):
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(inner)}" for key, inner in value.items()]
        elif not is_plain(value):
            for table in value:
                lines.append(f"[[{name}]]")
                lines += [f"{key} = {json.dumps(inner)}" for key, inner in table.items()]
    return "\n".join(lines) + "\n"


def is_plain(value):
    return not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], dict))


def default_config():
    config = {
        "s3": {"domains": ["localhost", DOMAIN]},
        "datanode": {"growth_step": "8MiB"},
        "om": {"log_segment": "8MiB"},
        "users": [
            {
                "id": ALT_ID,
                "display_name": "alt",
                "email": "alt@example.com",
                "access_key": ALT_ACCESS_KEY,
                "secret_key": ALT_SECRET_KEY,
            }
        ],
    }
    if os.environ.get("FERROZONE_TRANSPORT") == "http":
        config["internal"] = {"transport": "http"}
    return config


def merged(config, over):
    result = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for name, value in over.items():
        result[name] = {**result.get(name, {}), **value} if isinstance(value, dict) else value
    return result


class Server:
    """Starts, stops, kills and starts again on the same directory."""

    def __init__(self, directory, config=None, environment=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = self.directory / "data"
        self.log_path = self.directory / "server.log"
        self.out_path = self.directory / "server.out"
        self.config_path = self.directory / "config.toml"
        self.config_path.write_text(to_toml(merged(default_config(), config or {})))
        self.environment = {"FERROZONE_ROOT_USER": ROOT_ACCESS_KEY, "FERROZONE_ROOT_PASSWORD": ROOT_SECRET_KEY}
        self.environment.update(environment or {})
        self.process = None
        self.endpoint = None
        self.admin = None

    def launch(self, environment=None):
        """Starts the process and does not wait."""
        (self.data / "endpoints.json").unlink(missing_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FERROZONE_", "MINIO_", "AWS_"))}
        with open(self.log_path, "ab") as log, open(self.out_path, "ab") as out:
            self.process = subprocess.Popen(
                [binary(), "server", str(self.data), "--config", str(self.config_path)]
                + ["--s3-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**inherited, **self.environment, **(environment or {})},
            )
        return self

    def start(self, environment=None):
        """Starts the process and waits until it is ready."""
        self.launch(environment)
        wait_until("the server's addresses and readiness", self._ready_or_dead)
        assert self.process.poll() is None, f"the server ended at its start:\n{self.log()[-3000:]}"
        return self

    def launch_and_see(self, environment=None):
        """Starts the process; true when it is ready, false when it ended before."""
        self.launch(environment)
        wait_until("the server to be ready or to end", self._ready_or_dead)
        return self.process.poll() is None

    def _ready_or_dead(self):
        if self.process.poll() is not None:
            return True
        try:
            endpoints = json.loads((self.data / "endpoints.json").read_text())
        except (OSError, ValueError):
            return False
        self.endpoint, self.admin = endpoints["s3"], endpoints["admin"]
        try:
            with urllib.request.urlopen(self.admin + "/healthz/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    @property
    def address(self):
        host, port = self.endpoint.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def kill(self):
        """As a power cut for the process: nothing is flushed, no handler runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self):
        """As an operator does; the process must end by itself, cleanly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(40) == 0, f"ended with {self.process.returncode} after SIGTERM:\n{self.log()[-3000:]}"

    def end(self):
        """Leaves no process behind, whatever a test did."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def is_alive(self):
        return self.process.poll() is None

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def check_log(self, expected=()):
        """No unexpected WARN or ERROR, no panic, and no secret in the log or on standard output."""
        log = strip_colours(self.log())
        for secret in (ROOT_SECRET_KEY, ALT_SECRET_KEY):
            assert secret not in log, "a secret key stands in the log"
            assert secret not in self.out_path.read_text(errors="replace"), "a given secret is printed"
        patterns = [pattern for pattern, _ in self.expected_warnings()] + list(expected)
        odd = [
            line
            for line in log.splitlines()
            if re.search(r"\b(WARN|ERROR)\b|panicked at", line) and not any(re.search(p, line) for p in patterns)
        ]
        assert not odd, "unexpected lines in the log:\n" + "\n".join(odd[:20])

    def expected_warnings(self):
        return EXPECTED_WARNINGS

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def strip_colours(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
