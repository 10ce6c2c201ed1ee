"""Compiling a large model takes little more memory than its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.big_model import write_big_model

COMPILE = """
import sys, miaotui
from miaotui.runtime.conditions import peak_rss
miaotui.compile(sys.argv[1], output=sys.argv[2], timing=1).close()
print(peak_rss())
"""


@pytest.mark.slow
def test_peak_is_under_one_and_a_half_times_the_weights_and_600_mb(tmp_path: Path) -> None:
    layers, width = 8, 4096
    model = write_big_model(tmp_path, layers, width)
    command = [sys.executable, "-c", COMPILE, str(model), str(tmp_path / "out.miaotui")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    assert int(printed) < 1.5 * layers * width * width * 4 + 600e6
