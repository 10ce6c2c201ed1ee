"""The Ray cluster of this process: connected by the first replica that needs it, left by the last."""

from __future__ import annotations

import os
import threading
from typing import Any

from ...compiler.errors import WorkerError, require
from .options import ParallelOptions

RANK = "miaotui_rank"
"""What a cluster that we start ourselves has plenty of: on one machine there is always room for a rank."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DASHBOARD": "1",
    # without clusters Ray takes the loopback address: nobody outside reaches what we start here
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

_STATE: dict[str, int] = {"users": 0, "connected": 0, "started": 0}
"""How many need Ray; whether it was us who connected to the cluster, and who started it."""

_LOCK = threading.Lock()

_FIXES = {
    "AuthToken": "set RAY_AUTH_MODE=token, and give this machine the cluster's token",
    "ray[client]": "pip install 'ray[client]', which ray:// takes",
}
"""By what Ray says."""


def connected(options: ParallelOptions) -> Any:
    """Ray, connected to the cluster asked for, or to one of this machine that is started for it.

    Raises: ToolError without Ray, WorkerError if there is no such cluster.
    """
    if not options.address:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    ray: Any = require("ray", extra="ray")
    with _LOCK:
        if not ray.is_initialized():
            try:
                if options.address:
                    ray.init(address=options.address, log_to_driver=False, logging_level="error")
                else:
                    ray.init(
                        address="local",
                        num_cpus=1,
                        resources={RANK: 1 << 20},
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="error",
                    )
            except Exception as error:
                place = f"--executor: ray: address {options.address!r}"
                raise WorkerError(place, first_line(error), _fix(error)) from error
            _STATE["connected"], _STATE["started"] = 1, int(not options.address)
        _STATE["users"] += 1
    return ray


def disconnect() -> None:
    """One fewer needs Ray; the last one leaves, if it was us who connected."""
    with _LOCK:
        _STATE["users"] -= 1
        if _STATE["users"] == 0 and _STATE["connected"]:
            _STATE["connected"] = _STATE["started"] = 0
            require("ray", extra="ray").shutdown()


def _fix(error: BaseException | None) -> str:
    """What to do about a cluster that can't be connected to; Ray says why in what the error came from."""
    while error is not None:
        for said, fix in _FIXES.items():
            if said in str(error):
                return fix
        error = error.__cause__ or error.__context__
    return "start one with `ray start --head`"


def is_ours() -> bool:
    """Whether the cluster was started for us, on this machine."""
    return bool(_STATE["started"])


def first_line(error: BaseException) -> str:
    """What an error says, without where it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
