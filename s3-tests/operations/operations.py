#!/usr/bin/env python3
"""Runs the manual: every `sh` block of docs/operations.md, in order, in one shell, on loopback.

    python3 s3-tests/operations/operations.py --binary target/debug/ferrozone

A block that fails ends the run. A `text` block shows what the `sh` block before it prints, in short form: each of its lines
must be among the lines that were printed, where numbers, ids, sizes and ages may differ and `...` stands for anything.

The manual's hosts 127.0.0.N are taken from a network of this run's own (all of 127/8 is loopback), so that runs beside one
another and servers of the user do not meet. Deadlines are shorter than in earnest, by the environment.

Ends with `N passed, N failed`; a block is one test.
"""

import argparse
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MANUAL = ROOT / "docs" / "operations.md"
BLOCK_DEADLINE_S = 300
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run: words that hold a digit, and what stands for absent numbers.
VARIABLE = re.compile(r"\S*\d\S*")
SETTINGS = {
    "FERROZONE_SCM__STALE_AFTER": "2s",
    "FERROZONE_SCM__DEAD_AFTER": "4s",
    "FERROZONE_SCM__REPAIR_DELAY": "1s",
    "FERROZONE_SCM__CONTAINER_SIZE": "16MiB",
    "FERROZONE_OM__LOG_SEGMENT": "4MiB",
    "FERROZONE_DATANODE__RESERVE": "16MiB",
    "FERROZONE_DATANODE__GROWTH_STEP": "4MiB",
    "FERROZONE_LOG": "warn",
}


def blocks(text):
    """(line, code, expected) of each `sh` block; expected is None, or the `text` block that follows."""
    found = []
    for match in FENCE.finditer(text):
        kind, code = match.group(1), match.group(2)
        line = text.count("\n", 0, match.start()) + 2
        if kind == "sh":
            found.append([line, code, None])
        elif kind == "text" and found:
            found[-1][2] = code
    return found


def stable(line):
    return " ".join(VARIABLE.sub("#", line).split())


def missing(expected, printed):
    """Lines of `expected` that nothing printed matches."""
    lines = [stable(line) for line in printed.splitlines()]
    absent = []
    for line in expected.splitlines():
        parts = [re.escape(part.strip()) for part in stable(line).split("...")]
        pattern = re.compile(".*".join(parts))
        if line.strip() and not any(pattern.fullmatch(known) for known in lines):
            absent.append(line)
    return absent


def steps(trace):
    """The commands of a block and when each began first: a loop's are told once."""
    began = {}
    for line in trace.read_text().splitlines() if trace.exists() else []:
        _, _, rest = line.partition(" ")
        when, _, command = rest.partition(" ")
        began.setdefault(command, when)
    return "".join(f"{when} {command}\n" for command, when in began.items())


class Shell:
    """One bash for the whole manual: functions and variables of one block stand in the next."""

    def __init__(self, directory, environment):
        self.directory = directory
        self.process = subprocess.Popen(
            ["bash"], cwd=directory, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        self.count = 0

    def run(self, code):
        """Exit code and output of a block. Output goes to a file: servers that a block starts keep it open."""
        self.count += 1
        script, output, status, trace = (
            self.directory / f".block{self.count}{end}" for end in ("", ".out", ".status", ".trace")
        )
        # Every command counts, not the last alone; but not in a shell of its own, where functions would be lost.
        tracing = f"exec 9> {trace}\nBASH_XTRACEFD=9\nPS4='+ $EPOCHREALTIME '\nset -x\n"
        script.write_text(f"trap 'failed=$?' ERR\nfailed=0\n{tracing}{code}\nset +x\ntrap - ERR\n")
        # What the manual's `well` waits for.
        waited_for = self.directory / "status"
        waited_for.unlink(missing_ok=True)
        self.process.stdin.write(f". {script} > {output} 2>&1; echo $failed > {status}.new; mv {status}.new {status}\n")
        self.process.stdin.flush()
        end = time.monotonic() + BLOCK_DEADLINE_S
        while not status.exists():
            has_died = self.process.poll() is not None
            if has_died or time.monotonic() > end:
                state = waited_for.read_text() if waited_for.exists() else ""
                why = "the shell ended" if has_died else "it did not end"
                return -1, f"{output.read_text()}\n({why})\n{state}{steps(trace)}"
            time.sleep(0.02)
        return int(status.read_text()), output.read_text()

    def close(self):
        # Its own session, and so its own group: the servers that the manual started are in it.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def network():
    generator = random.Random()
    return f"127.{generator.randrange(1, 250)}.{generator.randrange(1, 250)}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--verbose", action="store_true", help="print what every block prints")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    parser.add_argument("--manual", type=pathlib.Path, default=MANUAL)
    arguments = parser.parse_args()

    directory = pathlib.Path(tempfile.mkdtemp(prefix="ferrozone-operations-"))
    (directory / "bin").mkdir()
    (directory / "bin" / "ferrozone").symlink_to(arguments.binary.resolve())
    environment = {**os.environ, **SETTINGS, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}"}
    environment.pop("FERROZONE_CONFIG", None)
    own = network()
    passed = failed = 0
    shell = Shell(directory, environment)
    try:
        for line, code, expected in blocks(arguments.manual.read_text()):
            began = time.monotonic()
            code_here = code.replace("127.0.0.", own)
            status, printed = shell.run(code_here)
            printed = printed.replace(own, "127.0.0.")
            absent = missing(expected, printed) if expected and status == 0 else []
            took = time.monotonic() - began
            good = status == 0 and not absent
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok  ' if good else 'FAIL'} {MANUAL.name}:{line} ({took:.1f} s)", flush=True)
            if not good or arguments.verbose:
                print("".join(f"    $ {word}\n" for word in code.splitlines()), end="")
                print("".join(f"    | {word}\n" for word in printed.splitlines()), end="", flush=True)
            for word in absent:
                print(f"    not printed: {word}")
            if status != 0:
                print(f"    exit code {status}; what follows rests on it")
                for log in sorted(directory.glob("*.log")):
                    tail = log.read_text(errors="replace").splitlines()[-15:]
                    print(f"    {log.name}:\n" + "".join(f"      {word}\n" for word in tail), end="")
                break
    finally:
        shell.close()
        if arguments.keep:
            print(f"kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
