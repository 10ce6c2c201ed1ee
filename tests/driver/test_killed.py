"""Killing a compile at any moment leaves the previous folder whole."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import miaotui
import pytest
from miaotui.compiler.artifact import check

SCRIPT = "import sys, miaotui; miaotui.compile(sys.argv[1], output=sys.argv[2], timing=0.0).close()"


@pytest.mark.slow
def test_killed_compile_leaves_the_previous_folder(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.miaotui"
    miaotui.compile(classifier, output=folder, timing=0).close()
    command = [sys.executable, "-c", SCRIPT, str(classifier), str(folder)]
    start = time.monotonic()
    subprocess.run(command, check=True, timeout=120)
    whole = time.monotonic() - start
    delays = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(command)
        time.sleep(delays.uniform(0.3, 1.05) * whole)
        process.kill()
        process.wait(timeout=30)
        check(folder)
    miaotui.compile(classifier, output=folder, timing=0).close()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
