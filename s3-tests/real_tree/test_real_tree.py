"""The real tree at a size that CI can afford; its full size is run by hand (see real_tree.py)."""

import pathlib
import shutil

import pytest

from real_tree.real_tree import Run

pytestmark = pytest.mark.clients


def test_a_small_real_tree(tmp_path):
    source = pathlib.Path(__file__).parent.parent.parent / "docs"
    run = Run(tmp_path / "run")
    try:
        run.run(source if source.is_dir() else None, files=150, total=20 << 20, big=30 << 20)
    finally:
        run.server.end()
        shutil.rmtree(tmp_path / "run")
