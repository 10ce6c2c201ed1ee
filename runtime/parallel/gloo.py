"""A group over torch.distributed: gloo between processors, NCCL between GPUs, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np

from ...compiler.errors import WorkerError, require
from ...compiler.parallel.plan import Collective
from ...compiler.reference import Array
from .meeting import combined
from .work import MEETING, RUNNING, PeerFailedError, Status

_FAILED, _FINE = 0, 1

_SUMMED = ("float32", "float64", "int32", "int64")
"""Types that torch sums as we do."""


class TorchGroup:
    """Rank ``place`` of ``size``, which meet at ``address``: ``gloo://host:port`` or ``nccl://host:port``.

    Before each collective they tell each other whether they come, so that none waits for one that failed.
    Raises: ToolError without torch, WorkerError if the others do not come in ``timeout`` seconds.
    """

    def __init__(
        self, address: str, place: int, size: int, timeout: float, *, status: Status | None = None
    ) -> None:
        self._torch: Any = require("torch", extra="torch")
        backend, _, where = address.partition("://")
        host = where.rpartition(":")[0]
        if host == "127.0.0.1":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import torch.distributed as dist

        self._dist: Any = dist
        self._place, self._size, self._status = place, size, status or Status()
        self._device = "cuda" if backend == "nccl" else "cpu"
        self._left = 0
        try:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{where}",
                rank=place,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
        except Exception as error:
            raise WorkerError(f"shard {place}", f"can't join {address}: {_line(error)}") from error

    def begin(self, number: int, meetings: int) -> None:
        """Before run ``number``, in which there are ``meetings`` collectives."""
        self._left = meetings

    def meet(self, step: Collective, given: Array) -> Array:
        """What this rank gets for what it gives. Raises: PeerFailedError, WorkerError if a rank is gone."""
        self._status.phase = MEETING
        try:
            self._agree(step)
            whole = self._reduced(step, given)
            found = combined(step, self._gathered(step, given), self._place) if whole is None else whole
        except WorkerError:
            raise
        except Exception as error:
            self._left = 0
            raise WorkerError(f"collective {step.name!r}", _line(error)) from error
        self._status.phase = RUNNING
        return found

    def abort(self, number: int) -> None:
        """Come to the next collective of the run, if there is one, only to say that there is none."""
        if self._left:
            self._left = 0
            # a rank that is gone is told about by whoever waits for the run
            with suppress(Exception):
                self._vote(_FAILED)

    def _agree(self, step: Collective) -> None:
        if self._vote(_FINE) == _FAILED:
            self._left = 0
            raise PeerFailedError(f"collective {step.name!r}", "another shard failed before it came")
        self._left -= 1

    def _vote(self, vote: int) -> int:
        """The least of all ranks' votes."""
        votes = self._torch.tensor([vote], device=self._device)
        self._dist.all_reduce(votes, op=self._dist.ReduceOp.MIN)
        return int(votes)

    def _reduced(self, step: Collective, given: Array) -> Array | None:
        """The sum, by torch's own reduction; None where that is not what is wanted."""
        if step.op != "AllReduce" or given.dtype.name not in _SUMMED:
            return None
        total = self._torch.from_numpy(given.copy()).to(self._device)
        self._dist.all_reduce(total)
        summed: Array = total.cpu().numpy()
        return summed

    def _gathered(self, step: Collective, given: Array) -> Sequence[Array]:
        """What each rank gives; all as wide as the widest while it travels."""
        sizes = step.sizes if step.op == "AllGather" else ()
        shapes = [_with(given.shape, step.dim, size) for size in sizes] or [given.shape] * self._size
        # bytes: numpy's types are not all torch's
        flat = np.frombuffer(np.ascontiguousarray(given).tobytes(), np.uint8)
        lengths = [int(np.prod(shape)) * given.itemsize for shape in shapes]
        padded = np.zeros(max(lengths), np.uint8)
        padded[: len(flat)] = flat
        own = self._torch.from_numpy(padded).to(self._device)
        parts = [self._torch.empty_like(own) for _ in shapes]
        self._dist.all_gather(parts, own)
        arrays = [part.cpu().numpy()[:length] for part, length in zip(parts, lengths, strict=True)]
        return [a.view(given.dtype).reshape(s) for a, s in zip(arrays, shapes, strict=True)]


def _with(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    changed = list(shape)
    changed[dim] = size
    return tuple(changed)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
