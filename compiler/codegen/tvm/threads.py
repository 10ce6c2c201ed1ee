"""What gives every kernel of a GPU its threads: dlight's rules, and ours where they choose badly."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from .schedule import follow

RULES = ("Matmul", "GEMV", "Short", "Reduction", "GeneralReduction", "Fallback")
"""The first that fits a kernel; Matmul takes convolutions too, as products over windows in shared memory."""

SHORT = 64
"""Elements up to which one thread reduces all by itself: pools, convolutions of one channel."""


THREADS = 256
"""In a block of those."""


def threads_bound() -> Any:
    """The pass that binds loops to threads."""
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    found = [_Short() if name == "Short" else getattr(gpu, name)() for name in RULES]
    return dlight.ApplyDefaultSchedule(*map(_Tried, found))


class _Tried:
    """A rule of dlight's; where it fails, it does not fit: some find out only while they schedule."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        """A schedule, or None. The last rule fits every kernel."""
        try:
            with frames_alone():
                return self._rule.apply(function, target, tunable)
        except Exception:  # dlight's rules raise whatever TVM and Python do
            return None


@contextmanager
def frames_alone() -> Iterator[None]:
    """``inspect.stack`` without lines of source while it lasts.

    dlight imports TVM's tensor intrinsics when it first wants one: 250 functions in TVMScript, each of which
    asks for the stack twice, for its frames only. With torch loaded, finding the source of every frame in
    thousands of modules takes four minutes in all.
    """
    with patch.object(inspect, "stack", _frames):
        yield


def _frames(context: int = 0) -> list[inspect.FrameInfo]:
    """The caller's frames and those around it, as ``inspect.stack`` gives them."""
    found, frame = [], inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        code = frame.f_code
        found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
    return found


class _Short:
    """A thread for each result, where dlight would have a block share out a handful of elements."""

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        """A schedule of kernels with one reduction to one tensor, of a known and small size; else None."""
        from tvm import s_tir
        from tvm.s_tir import dlight

        schedule = s_tir.Schedule(function, error_render_level="none")
        blocks = dlight.try_inline(schedule, dlight.normalize_prim_func(schedule) or [])
        found = [block for block in blocks if not block.is_injective()]
        if len(found) != 1 or not _is_short([i.dom for i in found[0].iters if i.kind == "R"]):
            return None
        block, kinds = found[0].block_rv, found[0].dom_kind()
        if len(schedule.get(block).writes) != 1:  # pairs of place and value
            return None
        loops = list(zip(schedule.get_loops(block), kinds, strict=True))
        outer, inner = ([loop for loop, kind in loops if kind == wanted] for wanted in "SR")
        schedule.reorder(*outer, *inner)
        blocks_of, threads = schedule.split(schedule.fuse(*outer), [None, THREADS])
        schedule.bind(blocks_of, "blockIdx.x")
        schedule.bind(threads, "threadIdx.x")
        local = schedule.cache_write(block, 0, "local")
        schedule.reverse_compute_at(local, threads)
        follow(schedule, local)
        schedule.decompose_reduction(block, inner[0])
        return schedule if len(schedule.get_child_blocks(schedule.get_sblock("root"))) == 3 else None


def _is_short(extents: Sequence[Any]) -> bool:
    return all(isinstance(n, int) for n in extents) and math.prod(extents) <= SHORT
