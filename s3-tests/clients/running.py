"""Runs a client program and keeps what it said."""

import subprocess


def run(environment, *words, expect=0, **more):
    """Standard output as text; fails with both outputs unless the program ends as expected."""
    outcome = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=150, **more)
    assert outcome.returncode == expect, f"{words}: {outcome.returncode}\n{outcome.stdout}\n{outcome.stderr}"
    return outcome.stdout


def tree(directory, files):
    """Writes files by relative path."""
    for name, body in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return directory


def read_tree(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
