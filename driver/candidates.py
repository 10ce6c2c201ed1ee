"""Which backends a compile tries: the one asked for; else native code where it may fit, and ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..compiler.codegen.isa import isa_of
from ..compiler.codegen.native.toolchain import find_toolchain
from ..compiler.codegen.tvm.versions import check_pair
from ..compiler.errors import OptionError, Problem, ToolError
from ..compiler.options import BackendName, CompileOptions
from ..compiler.program import Program
from ..passes.base import Pass
from ..passes.pipeline import pipeline
from .progress import Journal

_SHOWN = 4
"""Kinds of nodes that a note names."""

_PRODUCTS = frozenset(("MatMul", "Gemm", "Linear"))
_WEIGHING = frozenset(("Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedAttention"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend to try: ``options`` name it. ``passes``: its pipeline."""

    options: CompileOptions
    passes: tuple[Pass, ...]


def candidates(
    program: Program, options: CompileOptions, journal: Journal, passes: Sequence[Pass] | None = None
) -> list[Candidate]:
    """What to try, the likeliest best first; ``passes`` replaces their pipelines.

    Raises: OptionError if the options fit none of them.
    """
    if passes is not None and options.backend == "auto":
        names: tuple[BackendName, ...] = ("ort",)
    else:
        names = _backends(program, options, journal)
    found, refusals = [], []
    for name in names:
        chosen = replace(options, backend=name)
        try:
            steps = tuple(pipeline(chosen) if passes is None else passes)
        except OptionError as error:  # a pass of the other backend was asked for
            refusals.append(error)
            continue
        found.append(Candidate(chosen, steps))
    if not found:
        raise refusals[-1]
    return found


def _backends(program: Program, options: CompileOptions, journal: Journal) -> tuple[BackendName, ...]:
    if options.backend == "tvm":
        check_pair()
    if options.backend != "auto":
        return (options.backend,)
    if options.target.device != "cpu":
        return ("ort",)
    if options.target.arch:
        return ("native",)
    if not has_attention(program):
        return ("ort",)
    try:
        find_toolchain(isa_of(options.target))
    except (ToolError, OptionError) as missing:
        journal.note(f"no native code: {missing}")
        return ("ort",)
    return ("native", "ort")


def has_attention(program: Program) -> bool:
    """Whether it is built like a transformer: products, a softmax over them, and no convolution."""
    kinds = {node.op_type for model in program.entries.values() for node in model.graph}
    return bool(kinds & _PRODUCTS) and bool(kinds & _WEIGHING) and not any("Conv" in kind for kind in kinds)


def summary(problems: Iterable[Problem]) -> str:
    """What can't be run, in a line: kinds of nodes by how many there are, with one name and reason each."""
    found = list(problems)
    reasons = Counter(problem.fact for problem in found)
    first = {problem.fact: problem.place for problem in reversed(found)}
    shown = [
        f"{first[fact]}: {fact}" + (f" ({count}×)" if count > 1 else "")
        for fact, count in reasons.most_common()
    ]
    more = f" and {len(shown) - _SHOWN} more reasons" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more
