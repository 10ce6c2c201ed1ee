"""The one verifier: every invariant of the IR, each violation a Problem. Runs after every pass in tests."""

from __future__ import annotations

import onnx_ir as ir

from ..errors import InternalError, Problem
from ..program import Program
from .check_nodes import operator_problems
from .check_shapes import inference_problems
from .check_sharding import sharding_problems
from .check_structure import structure_problems

_SHOWN = 20
"""Problems an InternalError prints; a broken pass tends to break every node."""


def problems(model: ir.Model, inference: bool = True) -> list[Problem]:
    """Everything that is wrong with ``model``: structure, operators, types, and shapes if ``inference``.

    Structure: unique names, values defined before use, no cycle, use lists that agree with the inputs,
    initializers that have their declared dtype and shape. Operators: known to their domain at the
    imported opset, arity, attributes, type constraints; those of unknown domains are opaque. Shapes:
    what each node's inference derives from its recorded inputs must not contradict its recorded outputs.
    """
    found = structure_problems(model)
    found += operator_problems(model)
    if inference and not found:  # inference would only repeat what is wrong already
        found += inference_problems(model)
    return found


def verify(program: Program, after: str = "", inference: bool = True) -> None:
    """Check every entry of ``program``, and where it is partitioned its annotations.

    Raises: InternalError listing the problems, naming pass ``after``.
    """
    found = [
        Problem(f"{entry}: {p.place}" if len(program.entries) > 1 else p.place, p.fact, p.fix)
        for entry, model in program.entries.items()
        for p in (*problems(model, inference=inference), *_partition_problems(program, model))
    ]
    if not found:
        return
    where = f"after pass {after}: " if after else ""
    lines = [str(p) for p in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more")
    raise InternalError(f"{where}the program is not well-formed ({len(found)} problems)\n" + "\n".join(lines))


def _partition_problems(program: Program, model: ir.Model) -> list[Problem]:
    return [] if program.mesh is None else sharding_problems(model, program.mesh)
