"""Nothing here is collected where TVM is not installed."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("tvm") else ["test_*.py"]
