#!/usr/bin/env python3
"""Measures Ferrozone beside nginx (WebDAV PUT) on one machine, in one run, and prints a Markdown report.

    bench/compare.py                          the whole table, about fifteen minutes
    bench/compare.py --sizes 4KiB --duration 5s

Both servers get a fresh directory on the same loop-mounted ext4 volume for every cell and are started and stopped for
it, in turns, so that neither inherits the other's page cache, backlog or files. The load comes from `ferrozone bench`.
In the same run we measure what bounds any server here: one core's MD5 and SHA-256 and the volume's own rate of
sequential writes with fdatasync.

What the comparison is not: nginx never syncs, keeps no checksums, no metadata and no second copy of a name. It stands
for what the machine's network stack and file system allow.

Needs Linux, Python 3, a release build, and root for the volume and for installing nginx; without root it uses a plain
directory, and says so. Only processes started here are stopped.
"""

import argparse
import atexit
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
GIB = 1 << 30

# 64 connections with 256 MiB each are 16 GiB before the first is committed; the volume adds room for file system
# and containers.
VOLUME_BYTES = 19 * GIB
# A cell writes no more than that volume takes without relying on deletion.
CELL_BYTES_MAX = 16 * GIB
# Distinct objects of a cell may weigh this; keys are overwritten beyond it.
SPACE_BYTES = GIB
BASELINE_BYTES = 2 * GIB
DIGEST_BYTES = 512 * MIB
START_SECONDS = 30
STOP_SECONDS = 60

ACCESS_KEY, SECRET_KEY = "benchmarkaccess", "benchmarksecretkey"

DURABILITY = {
    "ferrozone": "fdatasync of data and of the Raft log before every answer",
    "nginx": "none: writes stay in the page cache, it never syncs",
}


# Of the part of docs/benchmarks.md that is written here.
MARK_BEGIN = "<!-- written by bench/compare.py from here -->"
MARK_END = "<!-- to here -->"

def say(text):
    print(text, file=sys.stderr, flush=True)


def parse_size(text):
    match = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 4KiB or 1MiB")
    return int(match[1]) * {None: 1, "B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB}[match[2]]


def show_size(size):
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- Where the bytes go ------------------------------------------------------------------------------------------------


class Volume:
    """A loop-mounted ext4 file system, or a plain directory where mounting is impossible."""

    def __init__(self, base):
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="ferrozone-compare-", dir=base))
        self.path = self.base / "volume"
        self.path.mkdir()
        self.mounted = False
        atexit.register(self.remove)
        free = shutil.disk_usage(self.base).free
        if free < VOLUME_BYTES + GIB:
            say(f"warning: only {free / GIB:.0f} GiB are free; the 256 MiB cells may fill the disk")
        try:
            self.mount()
            self.kind = "loop-mounted ext4"
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            say(f"warning: no loop-mounted volume ({str(detail).strip()}); a plain directory is used instead")
            self.kind = "plain directory"

    def mount(self):
        image = self.base / "image"
        with open(image, "wb") as file:
            file.truncate(VOLUME_BYTES)
        # Everything is initialised now: the kernel would do it later, in the middle of a measurement.
        extended = "lazy_itable_init=0,lazy_journal_init=0"
        run = dict(check=True, capture_output=True, text=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", extended, str(image)], **run)
        subprocess.run(["mount", "-o", "loop,noatime", str(image), str(self.path)], **run)
        self.mounted = True

    def directory(self, name):
        """A fresh directory."""
        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def settle(self):
        """Writes out what is dirty and gives the image's freed space back, so that the next cell starts from rest."""
        os.sync()
        if self.mounted:
            subprocess.run(["fstrim", str(self.path)], check=False, capture_output=True)

    def remove(self):
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=False)
            self.mounted = os.path.ismount(self.path)
        if not self.mounted:
            shutil.rmtree(self.base, ignore_errors=True)
        else:
            say(f"warning: {self.path} is still mounted")


# --- The servers -------------------------------------------------------------------------------------------------------


class Server:
    """A server process of ours for one cell."""

    def __init__(self, name, directory, command, port, ready, environment=None):
        self.name = name
        self.port = port
        self.log = open(directory.parent / f"{name}.log", "ab")
        environment = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        atexit.register(self.stop)
        self.wait_until(ready)

    def wait_until(self, ready):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with code {self.process.returncode}:\n{self.tail()}")
            if ready():
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.name} was not ready within {START_SECONDS} s:\n{self.tail()}")

    def tail(self):
        self.log.flush()
        with open(self.log.name, "rb") as file:
            return file.read()[-2000:].decode(errors="replace")

    def pids(self):
        """The process and its children."""
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [pid, *map(int, file.read().split())]

    def resident_mib(self):
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        return total / 1024

    def stop(self):
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                say(f"warning: {self.name} did not stop within {STOP_SECONDS} s and is killed")
                self.process.kill()
                self.process.wait()
        self.log.close()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def start_ferrozone(volume, binary):
    directory = volume.directory("ferrozone")
    port, admin_port = free_port(), free_port()
    command = [str(binary), "server", str(directory)]
    command += ["--s3-addr", f"127.0.0.1:{port}", "--admin-addr", f"127.0.0.1:{admin_port}"]
    environment = {
        "FERROZONE_ROOT_USER": ACCESS_KEY,
        "FERROZONE_ROOT_PASSWORD": SECRET_KEY,
        # Overwritten objects give their space back during the run, as they do in nginx.
        "FERROZONE_OM__DELETE_GRACE": "1s",
        "FERROZONE_OM__DELETION_INTERVAL": "1s",
        "FERROZONE_LOG": "warn",
    }
    ready = lambda: answers(f"http://127.0.0.1:{admin_port}/healthz/ready")
    return Server("ferrozone", directory, command, port, ready, environment)


NGINX_CONF = """
daemon off;
user {user};
worker_processes 2;
pid {dir}/pid;
error_log {dir}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {dir}/www;
        location / {{
            dav_methods PUT DELETE MKCOL;
            create_full_put_path on;
        }}
    }}
}}
"""


def start_nginx(volume, binary):
    directory = volume.directory("nginx")
    (directory / "www").mkdir()
    port = free_port()
    user = "root" if os.geteuid() == 0 else "nobody"
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX_CONF.format(dir=directory, port=port, user=user))
    command = [str(binary), "-e", str(directory / "error.log"), "-c", str(configuration)]
    return Server("nginx", directory, command, port, lambda: listens(port))


def find_nginx():
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        say("nginx is absent; installing Debian's package")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # --no-install-recommends, and no service started on port 80 while we are at it.
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "nginx-light"]
        for attempt in (command, ["apt-get", "update", "-q"], command):
            done = subprocess.run(attempt, env={**quiet, "RUNLEVEL": "1"}, capture_output=True, text=True)
            found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin")
            if found:
                break
        if found is None:
            say(done.stderr[-1000:])
    if found is None:
        sys.exit("compare.py: nginx is not installed and could not be; install it, or use --servers ferrozone")
    return pathlib.Path(found)


# --- What bounds every server here -------------------------------------------------------------------------------------


def digest_rate(name):
    """MiB/s of one core."""
    block = os.urandom(MIB)
    digest = hashlib.new(name)
    began = time.perf_counter()
    for _ in range(DIGEST_BYTES // MIB):
        digest.update(block)
    digest.digest()
    return DIGEST_BYTES / MIB / (time.perf_counter() - began)


def disk_rate(volume):
    """MiB/s of sequential writes of 4 MiB, the fdatasync at the end included."""
    path = volume.path / "baseline"
    block = os.urandom(4 * MIB)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    began = time.perf_counter()
    for _ in range(BASELINE_BYTES // len(block)):
        os.write(file, block)
    os.fdatasync(file)
    took = time.perf_counter() - began
    os.close(file)
    path.unlink()
    volume.settle()
    return BASELINE_BYTES / MIB / took


# --- Cells -------------------------------------------------------------------------------------------------------------


def measure(arguments, server, operation, size, connections):
    """Runs one cell; the row of `ferrozone bench --json`, or an error text."""
    requests = max(CELL_BYTES_MAX // max(size, 1), connections)
    objects = max(1, min(SPACE_BYTES // max(size, 1), 10_000))
    command = [str(arguments.bench_binary), "bench", operation, "--json", "--sizes", f"{size}B"]
    command += ["--connections", str(connections), "--objects", str(objects), "--duration", arguments.duration]
    command += ["--endpoint", f"http://127.0.0.1:{server.port}", "--bucket", "compare"]
    command += ["--payload", arguments.payload, "--server-pid", ",".join(map(str, server.pids()))]
    if operation == "put":
        command += ["--requests", str(requests)]
    if server.name == "nginx":
        command += ["--webdav"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        row = json.loads(done.stdout)["cells"][0]
    except (ValueError, LookupError):
        return {"error": (done.stderr or done.stdout).strip()[-500:] or f"bench ended with code {done.returncode}"}
    if done.returncode != 0:
        row["error"] = done.stderr.strip()[-500:]
    row["resident_mib"] = server.resident_mib()
    return row


def run_cells(arguments, volume, starters):
    """All cells, servers in turns; {(operation, size, connections): {server: row}}."""
    results = {}
    turn = 0
    for round_number in range(arguments.rounds):
        for size in arguments.sizes:
            for connections in arguments.connections:
                for operation in ("put", "get"):
                    names = list(starters) if turn % 2 == 0 else list(reversed(starters))
                    turn += 1
                    for name in names:
                        say(f"round {round_number + 1}: {operation} {show_size(size)} x{connections} on {name}")
                        try:
                            server = starters[name]()
                            try:
                                row = measure(arguments, server, operation, size, connections)
                            finally:
                                server.stop()
                        except RuntimeError as error:
                            row = {"error": str(error)}
                        shutil.rmtree(volume.path / name, ignore_errors=True)
                        volume.settle()
                        if "error" in row:
                            say(f"  FAILED: {row['error']}")
                        results.setdefault((operation, size, connections), {}).setdefault(name, []).append(row)
    return {cell: {name: middle(rows) for name, rows in by_name.items()} for cell, by_name in results.items()}


def middle(rows):
    """The row of the median rate; a failure in any round is a failure of the cell."""
    failed = [row for row in rows if "error" in row]
    if failed:
        return failed[0]
    return sorted(rows, key=lambda row: row["operations_per_s"])[(len(rows) - 1) // 2]


# --- The report --------------------------------------------------------------------------------------------------------


def machine_facts(volume):
    model = "unknown processor"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / MIB
    return [
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB of memory, Linux {platform.release()}",
        f"volume: {volume.kind}, load generator and server on the same cores, loopback",
    ]


def version(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def commit():
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(row, other, field):
    if not row or not other or "error" in row or "error" in other or not row.get(field) or not other.get(field):
        return "-"
    return f"{row[field] / other[field]:.2f}"


def columns(row):
    if row is None:
        return ["-"] * 4
    if "error" in row:
        return ["FAILED", "-", "-", "-"]
    latency = row["latency_ms"]
    return [
        number(row["operations_per_s"], 0 if row["operations_per_s"] >= 100 else 1),
        number(row["mib_per_s"], 0 if row["mib_per_s"] >= 100 else 1),
        f"{latency['p50']:.2f} / {latency['p99']:.2f}",
        number(row["server_cpu_ms_per_operation"], 3),
    ]


def cell_table(results, names):
    head = ["operation", "size", "conns"]
    for name in names:
        head += [f"{name} ops/s", "MiB/s", "p50 / p99 ms", "CPU ms/op"]
    both = len(names) == 2
    if both:
        head += ["rate to nginx", "CPU to nginx"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for (operation, size, connections), by_name in results.items():
        line = [operation.upper(), show_size(size), str(connections)]
        for name in names:
            line += columns(by_name.get(name))
        if both:
            ours, theirs = by_name.get("ferrozone"), by_name.get("nginx")
            line += [ratio(ours, theirs, "operations_per_s"), ratio(ours, theirs, "server_cpu_ms_per_operation")]
        lines.append("| " + " | ".join(line) + " |")
    return lines


def aims(results, baselines, payload):
    """What we set out to reach, with the figure of this run."""
    digests = 1 / baselines["md5"] + (1 / baselines["sha256"] if payload == "signed" else 0)
    hashing, disk = 1 / digests, min(baselines["disk_before"], baselines["disk_after"])
    bound = min(hashing, disk)

    def figure(operation, size, connections, server, field):
        row = results.get((operation, size, connections), {}).get(server)
        return None if row is None or "error" in row else row.get(field)

    def share(numerator, denominator):
        return None if not numerator or not denominator else numerator / denominator

    cpu, rate, flow = "server_cpu_ms_per_operation", "operations_per_s", "mib_per_s"
    big = 256 * MIB
    rows = [
        ("server CPU per 4 KiB PUT, 64 connections", figure("put", 4096, 64, "ferrozone", cpu), "ms", 0.20, False),
        ("server CPU per 4 KiB GET, 64 connections", figure("get", 4096, 64, "ferrozone", cpu), "ms", 0.08, False),
        ("4 KiB PUT, 64 connections", figure("put", 4096, 64, "ferrozone", rate), "/s", 3000, True),
    ]
    for connections in sorted({key[2] for key in results if key[1] == big}):
        ours = figure("get", big, connections, "ferrozone", flow)
        theirs = figure("get", big, connections, "nginx", flow)
        rows.append((f"256 MiB GET to nginx, x{connections}", share(ours, theirs), "", 0.6, True))
    for connections in sorted({key[2] for key in results if key[1] == big}):
        ours = figure("put", big, connections, "ferrozone", flow)
        title = f"256 MiB PUT to the lower of hashing ({hashing:,.0f} MiB/s) and disk ({disk:,.0f} MiB/s), x{connections}"
        rows.append((title, share(ours, bound), "", 0.8, True))
    lines = ["| aim | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for title, value, unit, wanted, at_least in rows:
        if value is None:
            continue
        met = value >= wanted if at_least else value <= wanted
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
        sign = "at least" if at_least else "at most"
        lines.append(f"| {title} | {sign} {wanted:g}{unit} | {shown}{unit} | {'met' if met else 'MISSED'} |")
    return lines if len(lines) > 2 else []


def report(arguments, volume_facts, versions, baselines, results, names):
    lines = [f"Measured {datetime.date.today().isoformat()} by `bench/compare.py`, commit {commit()}.", ""]
    lines += [f"- {fact}" for fact in volume_facts]
    lines += [f"- {name}: {versions[name]}; durability: {DURABILITY[name]}" for name in names]
    lines.append(
        f"- S3 requests are signed, payloads {arguments.payload}; nginx gets plain HTTP. "
        f"{arguments.duration} a cell, {arguments.rounds} round(s); at least one object per connection. "
        "Objects read were just written and come from the page cache."
    )
    lines.append(
        f"- In this run: MD5 {baselines['md5']:,.0f} MiB/s and SHA-256 {baselines['sha256']:,.0f} MiB/s on one core; "
        f"sequential write with fdatasync {baselines['disk_before']:,.0f} MiB/s before and "
        f"{baselines['disk_after']:,.0f} MiB/s after the cells"
    )
    lines.append(
        "- CPU is user and system time of the server's processes; write-back by kernel threads is in neither column, "
        "which favours the server that never syncs"
    )
    lines += ["", *cell_table(results, names)]
    table = aims(results, baselines, arguments.payload) if "ferrozone" in names else []
    if table:
        lines += ["", *table]
    peaks = {
        name: max((row[name].get("resident_mib", 0) for row in results.values() if name in row), default=0)
        for name in names
    }
    lines += ["", "Peak resident memory: " + ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items()) + "."]
    errors = [
        f"- {operation} {show_size(size)} x{connections} on {name}: {row['error'].splitlines()[-1]}"
        for (operation, size, connections), by_name in results.items()
        for name, row in by_name.items()
        if "error" in row
    ]
    if errors:
        lines += ["", "Failed cells:", "", *errors]
    return "\n".join(lines) + "\n"


def write_between_marks(path, text):
    """Writes the report where the file has its marks, or as the whole file if it has none: other figures stay."""
    known = path.read_text() if path.exists() else ""
    before, begin, rest = known.partition(MARK_BEGIN)
    _, end, after = rest.partition(MARK_END)
    if begin and end:
        text = f"{before}{begin}\n{text.strip()}\n{end}{after}"
    path.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/ferrozone")
    parser.add_argument("--bench-binary", type=pathlib.Path, help="load generator, if not --binary")
    parser.add_argument("--servers", default="ferrozone,nginx", help="which to measure")
    parser.add_argument("--sizes", default="4KiB,64KiB,1MiB,256MiB")
    parser.add_argument("--connections", default="1,64")
    parser.add_argument("--duration", default="10s")
    parser.add_argument("--rounds", type=int, default=1, help="repeat all cells; the median counts")
    parser.add_argument("--payload", choices=("signed", "unsigned"), default="signed")
    parser.add_argument("--dir", default="/var/tmp", help="where the volume's image goes; up to 20 GiB")
    parser.add_argument("--output", type=pathlib.Path, help="write the Markdown here instead of to standard output")
    parser.add_argument("--json", type=pathlib.Path, help="write the raw rows here too")
    arguments = parser.parse_args()
    try:
        arguments.sizes = [parse_size(text) for text in arguments.sizes.split(",")]
        arguments.connections = [int(text) for text in arguments.connections.split(",")]
    except (argparse.ArgumentTypeError, ValueError) as error:
        parser.error(str(error))
    names = [name for name in ("ferrozone", "nginx") if name in arguments.servers.split(",")]
    if not names or set(arguments.servers.split(",")) - set(names):
        parser.error("--servers takes ferrozone, nginx or both")
    if min(arguments.connections) < 1 or arguments.rounds < 1:
        parser.error("--connections and --rounds must be at least 1")
    if max(arguments.sizes) * max(arguments.connections) > CELL_BYTES_MAX:
        parser.error("size times connections is more than the volume holds")
    arguments.bench_binary = arguments.bench_binary or arguments.binary
    for binary in {arguments.bench_binary} | ({arguments.binary} if "ferrozone" in names else set()):
        if not os.access(binary, os.X_OK):
            sys.exit(f"compare.py: {binary} is absent; run `cargo build --release` first")

    # A kill becomes an exit, so that servers are stopped and the volume is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    volume = Volume(arguments.dir)
    starters, versions = {}, {}
    if "ferrozone" in names:
        starters["ferrozone"] = lambda: start_ferrozone(volume, arguments.binary)
        versions["ferrozone"] = version([str(arguments.binary), "--version"])
    if "nginx" in names:
        nginx = find_nginx()
        starters["nginx"] = lambda: start_nginx(volume, nginx)
        versions["nginx"] = version([str(nginx), "-v"])

    say("measuring the machine")
    baselines = {"md5": digest_rate("md5"), "sha256": digest_rate("sha256"), "disk_before": disk_rate(volume)}
    results = run_cells(arguments, volume, starters)
    baselines["disk_after"] = disk_rate(volume)

    text = report(arguments, machine_facts(volume), versions, baselines, results, names)
    if arguments.output:
        write_between_marks(arguments.output, text)
    else:
        print(text)
    if arguments.json:
        rows = [
            {"operation": operation, "size_bytes": size, "connections": connections, "servers": by_name}
            for (operation, size, connections), by_name in results.items()
        ]
        arguments.json.write_text(json.dumps({"baselines": baselines, "cells": rows}, indent=2) + "\n")
    failed = any("error" in row for by_name in results.values() for row in by_name.values())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
