"""Chains of elementwise operators as one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from .build import Body, prim_func
from .kernel import Cpu, Kernel
from .sweep import SERIAL, sweep

Operand: TypeAlias = Literal["whole", "row", "scalar"]
"""[rows, C], [C] for every row, [1] for all."""

_PART = 4096
"""Numbers of a task: three operands of it fit in a first-level cache."""


def elementwise(
    name: str,
    operands: Sequence[Operand],
    chain: Callable[..., Any],
    rows: int | None,
    columns: int,
    cpu: Cpu,
) -> Kernel:
    """operands → chain(*numbers)[rows, C].

    ``chain``: TIR expressions of float32 numbers → one, made with ``math``'s functions, which are vectors'.
    ``name``: of the chain.
    """

    def body(b: Body) -> None:
        count = b.variable("rows") if rows is None else rows
        shapes = {"whole": (count, columns), "row": (columns,), "scalar": (1,)}
        given = [b.buffer(f"x{n}", shapes[kind]) for n, kind in enumerate(operands)]
        y = b.buffer("y", (count, columns))

        def number(n: int, i: Any, at: Any) -> Any:
            index = {"whole": (i, at), "row": (at,), "scalar": (0,)}[operands[n]]
            return given[n][index]

        parts = -(-columns // _PART)
        small = isinstance(count, int) and count * columns < SERIAL
        loop = b.serial if cpu.threads == 1 or small else b.parallel
        with loop(count * parts) as task:
            i = task // parts if parts > 1 else task
            first = task % parts * _PART if parts > 1 else 0
            width = b.ir.min(columns - first, _PART) if parts > 1 else columns

            def write(at: Any, lanes: int) -> None:
                with b.vector(lanes) as v:
                    value = chain(*(number(n, i, first + at + v) for n in range(len(given))))
                    b.store(y, value, i, first + at + v)

            sweep(b, width, cpu.lanes, write)

    symbol = f"elementwise_{name}_{columns}"
    return Kernel(symbol, prim_func(symbol, body))
