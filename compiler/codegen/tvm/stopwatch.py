"""Times kernels in a process of their own: one that crashes or never ends takes no compile with it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from ...errors import CompileError

Argument: TypeAlias = tuple[str, tuple[int, ...]]
"""dtype and shape."""

PATIENCE = 20.0
"""Seconds for a kernel's first calls, beside what is asked for."""


class MeasureError(CompileError):
    """A kernel that could not be timed."""


class Stopwatch:
    """``runtime``: the path of libtvm_runtime.so. The process starts with the first kernel."""

    __slots__ = ("_process", "_runtime")

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self._process: subprocess.Popen[bytes] | None = None

    def seconds(
        self, libraries: Sequence[Path], arguments: Sequence[Argument], seconds: float
    ) -> list[list[float]]:
        """Of a call of each library's ``main``, in rounds that take turns; ``seconds`` of them for each.

        Raises: MeasureError if one fails, crashes or takes too long.
        """
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        request = {"libraries": list(map(str, libraries)), "arguments": arguments, "seconds": seconds}
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE + 2 * seconds * len(libraries))
            line = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, line = [process.stdout], b""
        if not line:
            self.close()
            raise MeasureError(
                "kernel", "crashed" if ready else f"took more than {PATIENCE:g} s", "leave it out"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise MeasureError("kernel", answer["error"], "leave it out")
        return answer["seconds"]  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            file = Path(__file__).with_name("stopwatch_process.py")
            self._process = subprocess.Popen(
                [sys.executable, str(file), self._runtime],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1", "TVM_NUM_THREADS": "1"},
            )
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
