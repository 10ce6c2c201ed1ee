"""Which pass, and which node of it, made an executable's outputs wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler.ir.provenance import sources
from ..compiler.reference import Arrays
from ..runtime.compare import difference
from ..runtime.tensors import fitted
from .lower import Lowered, Recipe
from .workbench import Built, Workbench

IMPORT = "import"
"""Culprit's name when the error is there without any optional pass."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """The pass after which the outputs are off, and the first node whose value differs because of it.

    ``pass_name`` is ``"import"`` if the error is there without any optional pass. ``node`` may be empty if
    no surviving intermediate shows the difference.
    """

    pass_name: str
    node: str = ""
    op_type: str = ""
    value: str = ""
    error: float = 0.0
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        layers = ", ".join(self.sources[:3])
        at = f" at node {self.node!r} ({self.op_type}{'; ' + layers if layers else ''})" if self.node else ""
        return f"{self.pass_name}{at}, scaled error {self.error:.2e}"


def find_culprit(
    recipe: Recipe,
    workbench: Workbench,
    inputs: Arrays,
    tolerance: float,
    is_good: Callable[[Lowered, Built], bool],
    without: frozenset[str] = frozenset(),
    lossy: bool = False,
) -> Culprit | None:
    """Bisect the optional passes that fired by prefix, then compare values on both sides of the culprit.

    Any subset of optional passes gives a complete program, so each prefix can be built: log2(n) builds.
    ``lossy``: passes of the precision that was asked for may be to blame too. None if the result of the
    whole pipeline is good.
    """
    passes = recipe.lower(without).fired(lossy)

    def built(count: int) -> tuple[Lowered, Built]:
        lowered = recipe.lower(without | frozenset(passes[count:]))
        return lowered, workbench.optimized(lowered, f"bisect-{count}")

    low, high = 0, len(passes)
    bad = built(high)
    if is_good(*bad):
        return None
    good = built(low) if passes else bad
    if not passes or not is_good(*good):
        return Culprit(IMPORT)
    while high - low > 1:
        middle = (low + high) // 2
        probe = built(middle)
        if is_good(*probe):
            low, good = middle, probe
        else:
            high, bad = middle, probe
    return _first_difference(passes[high - 1], good, bad, inputs, tolerance)


def _first_difference(
    name: str, good: tuple[Lowered, Built], bad: tuple[Lowered, Built], inputs: Arrays, tolerance: float
) -> Culprit:
    common = _values(good[0].program.main) & _values(bad[0].program.main)
    with good[1].open(taps=sorted(common)) as runner:
        right = runner.run(fitted(inputs, runner.inputs))
    with bad[1].open(taps=sorted(common)) as runner:
        wrong = runner.run(fitted(inputs, runner.inputs))
    for node in bad[0].program.main.graph:
        for output in node.outputs:
            if output.name not in right or output.name not in wrong:
                continue
            if np.shape(right[output.name]) != np.shape(wrong[output.name]):
                continue  # the passes gave another value the same name
            found = difference(output.name, wrong[output.name], right[output.name], tolerance)
            if not found.ok:
                layers = tuple(map(str, sources(node)))
                return Culprit(name, node.name or "", node.op_type, output.name, found.scaled, layers)
    return Culprit(name)


def _values(model: ir.Model) -> set[str]:
    """Names of the tensors that the main graph computes; sequences and optionals can't be compared."""

    def named() -> Iterator[str]:
        for node in model.graph:
            for output in node.outputs:
                if output.name and isinstance(output.type, ir.TensorType):
                    yield output.name

    return set(named())
