"""A PrimFunc written by Python: parameters, loops and stores, without parsing source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

OPAQUE = 8
"""``op_pattern`` of what no other operator is fused into."""


class Registers:
    """An array in registers of several rows."""

    __slots__ = ("_rows", "shape")

    def __init__(self, rows: dict[tuple[int, ...], Any], shape: tuple[int, ...]) -> None:
        self._rows, self.shape = rows, shape

    def row(self, index: Sequence[Any]) -> Any:
        """The buffer of a row."""
        return self._rows[tuple(index)]

    def __getitem__(self, index: Sequence[Any]) -> Any:
        return self.row(index[:-1])[index[-1]]


class Body:
    """What the body of a kernel is written with: loops are context managers, buffers are indexed.

    Wraps TVM's IR builder, whose module every call would name else.
    """

    __slots__ = ("ir",)

    def __init__(self, ir: Any) -> None:
        self.ir = ir

    def buffer(self, name: str, shape: Sequence[Any], dtype: str = "float32") -> Any:
        """A parameter."""
        return self.ir.arg(name, self.ir.buffer(tuple(shape), dtype))

    def variable(self, name: str) -> Any:
        """A dimension that the arguments fix."""
        from tvm import tirx

        return tirx.Var(name, "int64")

    def local(self, *shape: int, dtype: str = "float32") -> Any:
        """An array in registers; all dimensions but the last are indexed by plain numbers.

        One buffer for each of its rows: TVM puts what has less than a kilobyte on the stack, where LLVM makes
        registers of it; the rest is allocated anew at run time. So are buffers of scope "local".
        """
        *outer, lanes = shape
        rows = {i: self.ir.alloc_buffer((lanes,), dtype) for i in _indices(outer)}
        return Registers(rows, shape) if outer else rows[()]

    def scratch(self, *shape: Any, dtype: str = "float32") -> Any:
        """An array in memory."""
        return self.ir.alloc_buffer(shape, dtype)

    def serial(self, extent: Any) -> AbstractContextManager[Any]:
        """A loop from 0."""
        return self.ir.serial(0, extent)  # type: ignore[no-any-return]

    def span(self, first: Any, last: Any) -> AbstractContextManager[Any]:
        """A loop from ``first`` to before ``last``."""
        return self.ir.serial(first, last)  # type: ignore[no-any-return]

    def parallel(self, extent: Any) -> AbstractContextManager[Any]:
        """A loop whose turns are shared by the threads."""
        return self.ir.parallel(0, extent)  # type: ignore[no-any-return]

    def vector(self, lanes: int) -> AbstractContextManager[Any]:
        """A loop that is one vector instruction; of one lane it is a plain one."""
        return self.ir.vectorized(0, lanes) if lanes > 1 else self.ir.serial(0, 1)  # type: ignore[no-any-return]

    def store(self, buffer: Any, value: Any, *index: Any) -> None:
        """``buffer[index] = value``."""
        if isinstance(buffer, Registers):
            buffer, index = buffer.row(index[:-1]), index[-1:]
        self.ir.buffer_store(buffer, value, list(index))

    def words(self, buffer: Any, index: Sequence[Any], count: int) -> Any:
        """``count`` bytes from ``index`` on as int32, one or a vector of them."""
        from tvm import tirx

        lanes = f"int32x{count // 4}" if count > 4 else "int32"
        return tirx.reinterpret(lanes, buffer.vload(list(index), f"{buffer.dtype}x{count}"))

    def load(self, buffer: Any, lanes: int, *index: Any) -> Any:
        """A vector of ``lanes`` numbers from ``index`` on."""
        if isinstance(buffer, Registers):
            buffer, index = buffer.row(index[:-1]), index[-1:]
        return buffer.vload(list(index), f"{buffer.dtype}x{lanes}")

    def put(self, buffer: Any, vector: Any, lanes: int, *index: Any) -> None:
        """A vector of ``lanes`` numbers stored from ``index`` on."""
        from tvm import tirx

        if isinstance(buffer, Registers):
            buffer, index = buffer.row(index[:-1]), index[-1:]
        self.ir.buffer_store(buffer, vector, [*index[:-1], tirx.Ramp(index[-1], 1, lanes)])

    def fill(self, buffer: Any, value: float) -> None:
        """Every number of a local array; its last dimension is a vector."""
        *outer, lanes = (int(n) for n in buffer.shape)
        for index in _indices(outer):
            with self.vector(lanes) as v:
                self.store(buffer, self.ir.float32(value), *index, v)


def _indices(extents: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for extent in extents:
        found = [(*index, i) for index in found for i in range(extent)]
    return found


def prim_func(name: str, body: Callable[[Body], None], **attributes: Any) -> Any:
    """The ``tvm.tirx.PrimFunc`` that ``body`` writes; its parameters are what ``body`` declares."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir

    with IRBuilder() as builder, ir.prim_func():
        ir.func_name(name)
        fixed = {"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": OPAQUE}
        ir.func_attr({"global_symbol": name, **fixed, **attributes})
        body(Body(ir))
    return builder.get()
