"""Where things lie on disk that no folder of the user's holds."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MIAOTUI_CACHE``, else ``miaotui`` in the user's cache folder. It need not exist."""
    if own := os.environ.get("MIAOTUI_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "miaotui"
