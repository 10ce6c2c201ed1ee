"""Where the CUDA toolkit and its programs are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from ...errors import ToolError

TOOLKIT = Path("/usr/local/cuda")
"""Where the toolkit is installed by default."""


def find_nvcc() -> Path:
    """The compiler of ``$CUDA_HOME``, ``$CUDA_PATH``, on PATH or in ``TOOLKIT``. Raises: ToolError."""
    return tool("nvcc", "install the CUDA toolkit, or set CUDA_HOME to where it is")


@cache
def toolkit_of(nvcc: Path) -> Path:
    """The folder of the toolkit that an nvcc belongs to, which may be a script elsewhere."""
    done = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(found[1]).resolve() if found else nvcc.resolve().parents[1]


def tool(name: str, fix: str) -> Path:
    """A program of the toolkit, of the same places or of nvidia's packages. Raises: ToolError."""
    homes = [Path(h) for v in ("CUDA_HOME", "CUDA_PATH") if (h := os.environ.get(v))]
    packages = [Path(p) / "nvidia" / "cu13" for p in sys.path]
    on_path = shutil.which(name)
    places = [*(h / "bin" / name for h in homes), *([Path(on_path)] if on_path else [])]
    places += [p / "bin" / name for p in (TOOLKIT, *packages)]
    for place in places:
        if place.is_file():
            return place
    raise ToolError(name, "was not found", fix)
