"""What a process says of itself under a measurement."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

PEAK = "from miaotui.runtime.conditions import peak_rss; print(peak_rss())"


def test_peak_memory_is_of_the_program_itself_not_of_who_started_it() -> None:
    held = np.ones(1 << 27, np.float32)  # 512 MB
    printed = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout
    assert 5e6 < int(printed) < 0.8 * held.nbytes
